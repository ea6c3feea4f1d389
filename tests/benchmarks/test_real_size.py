"""The benchmark of real sizes, on the CPU: its rows on tiny models, its count of operations, its budget of time."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import flux_config, sd3_config

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import real_size as bench

TINY = {"FluxTransformer2DModel": flux_config(), "SD3Transformer2DModel": sd3_config()}


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> list[str]:
    """config.json of a tiny model of either kind."""
    folder = tmp_path_factory.mktemp("configs")
    for name, config in TINY.items():
        (folder / f"{name}.json").write_text(json.dumps({"_class_name": name} | config))
    return [str(folder / f"{name}.json") for name in TINY]


def flags(configs, *more: str) -> list[str]:
    fixed = ["--sizes", "32", "64", "--steps", "1", "--rank", "2", "--compile", "no", "--device", "cpu"]
    return ["--models", *configs, *fixed, *more]


def test_every_variant_of_both_models_is_measured(configs, tmp_path):
    rows = bench.main(flags(configs, "--patience", "0", "--out", str(tmp_path / "bench.json")))
    found = [(row["model"], row["pixels"], row["checkpointing"]) for row in rows]
    assert found == [(name, pixels, k) for name in TINY for k in (False, True) for pixels in (32, 64)]
    assert all(row["seconds"] > 0 and row["loss"] > 0 and row["share_of_peak"] > 0 for row in rows)
    told = json.loads((tmp_path / "bench.json").read_text())
    assert told["rows"] == rows and told["configs"]["FluxTransformer2DModel"]["num_single_layers"] == 2
    by = {(row["model"], row["pixels"]): row["operations"] for row in rows}
    assert all(by[name, 64] > by[name, 32] for name in TINY)


def test_without_time_nothing_begins_and_the_rows_say_so(configs, monkeypatch):
    monkeypatch.setattr(bench, "measure", lambda *_: pytest.fail("it began"))
    rows = bench.main(flags(configs[:1], "--seconds", "10"))
    assert [row["skipped"] for row in rows] == ["no time left"] * 4


def test_what_overruns_is_stopped(configs, monkeypatch):
    monkeypatch.setattr(bench, "operations", lambda *_: 1)
    monkeypatch.setattr(bench, "make_model", lambda *_: torch.nn.Linear(1, 1))
    monkeypatch.setattr(bench, "one", lambda *_: time.sleep(60))
    begun = time.monotonic()
    rows = bench.main(flags(configs[:1], "--seconds", ".3", "--patience", "0"))
    assert time.monotonic() - begun < 30 and [row.get("skipped") for row in rows] == ["no time left"] * 4


def test_a_variant_that_fails_does_not_end_the_others(configs, monkeypatch):
    fit = bench.measure

    def measure(model, batch, steps, limit):
        if batch["hidden_states"].numel() == bench.inputs(flux, 64, "meta")["hidden_states"].numel():
            raise torch.OutOfMemoryError("too large")
        return fit(model, batch, steps, limit)

    flux = bench.read_size(configs[0])
    monkeypatch.setattr(bench, "measure", measure)
    rows = bench.main(flags(configs[:1], "--patience", "0"))
    assert ["failed" in row for row in rows] == [False, True, False, True] and "too large" in rows[1]["failed"]


@pytest.mark.parametrize(("name", "rank_32"), [("flux-dev", 89_753_600), ("sd35-large", 47_161_344)])
def test_real_sizes_get_the_adapter_of_the_paper(name, rank_32):
    model = bench.make_model(bench.read_size(name), "meta", 32)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == rank_32


def test_operations_are_those_of_the_matrix_products():
    """Frozen weights: forward and the gradient of the input, 2 operations each per weight and token; attention as in
    `softmax(q k) v`, 4 n^2 d forward and twice that backward. By hand, on two blocks of FLUX's width."""
    size = bench.read_size("flux-dev")
    size = bench.Size("two blocks", size.config | {"num_layers": 1, "num_single_layers": 1})
    d, image, text = 3072, 32 * 32, 512
    n = image + text
    double = 4 * d * d + 8 * d * d  # per stream: q, k, v, out and the two of the MLP, each stream its own tokens
    single = 3 * d * d + 4 * d * d + 5 * d * d  # q, k, v; proj_mlp; proj_out
    linear = 2 * n * (double + single)
    attention = 2 * 4 * n * n * d
    expected = 2 * linear + 3 * attention
    assert bench.operations(size, 512, 32) == pytest.approx(expected, rel=0.06)  # LoRA, embeddings, no gradient below
