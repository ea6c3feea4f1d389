"""checks.py on a machine without a GPU: what it asks for exists, what it tells is what came of it."""

import argparse
import json
import sys
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image

from impasto.bases import loader
from impasto.config import TrainConfig
from impasto.generation import generate
from impasto.sampling.config import GenerateConfig
from impasto.sampling.sample import Sampling

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "gpu"))
import checks


def write(folder: Path, losses: list[float]) -> None:
    folder.mkdir(parents=True)
    rows = [{"step": i, "loss": x} for i, x in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_losses_and_pictures_are_compared(tmp_path):
    write(tmp_path / "a", [1.0, 2.0])
    write(tmp_path / "b", [1.0, 2.5])
    a, b = checks.losses(tmp_path / "a"), checks.losses(tmp_path / "b")
    assert checks.away(a, a) == 0 and checks.away(a, b) == pytest.approx(0.2)
    assert checks.away(a, b[:1]) is None and checks.away([], []) is None and checks.losses(tmp_path / "c") == []
    for name, grey in (("x", 10), ("y", 13)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4), (grey,) * 3).save(tmp_path / name / "0000.png")
    assert checks.difference(tmp_path / "x", tmp_path / "y") == 3
    assert checks.difference(tmp_path / "x", tmp_path / "z") is None


def test_every_flag_is_one_of_impasto(tmp_path, monkeypatch):
    asked: list[tuple[str, ...]] = []

    def record(name: str, *args: str, **_: object) -> checks.Row:
        asked.append(args)
        return {"check": name, "rc": 0, "said": ""}

    monkeypatch.setattr(checks, "impasto", record)
    monkeypatch.setattr(checks, "spread_ways", lambda base, style: {"check": base, "rc": 0, "said": ""})
    monkeypatch.setattr(checks, "free_memory", lambda gb: nullcontext(24.0))
    rows: list[checks.Row] = []
    o = argparse.Namespace(work=tmp_path, bases=["mini-sd3"], jobs=2, folder=tmp_path / "flux", size=64, steps=2)
    checks.mini(o, rows.append)
    o.what, o.seconds, o.limit = ["auto", "offload-24", "generate-part"], 100.0, 50.0
    checks.flux(o, rows.append)
    assert "is not made (yet)" in rows.pop()["said"]
    o.folder.mkdir(exist_ok=True)
    (o.folder / "made").write_text("")
    checks.flux(o, rows.append)
    assert len(rows) == len(asked) + 1 == 14 + 5 + 1 + 3
    known = {"train": {f.name for f in fields(TrainConfig)}, "generate": {f.name for f in fields(GenerateConfig)}}
    known["generate"] |= {"style", "prompt"}
    for verb, *flags in asked:
        names = {flag[2:].removeprefix("no-").replace("-", "_") for flag in flags if flag.startswith("--")}
        assert names and names <= known[verb], names - known[verb]


def test_rows_of_an_earlier_check_are_kept(tmp_path, monkeypatch):
    out = tmp_path / "checks.json"
    for what in ("auto", "generate"):
        monkeypatch.setattr(sys, "argv", ["checks.py", "flux", "--folder", str(tmp_path), "--out", str(out)])
        monkeypatch.setattr(checks, "flux", lambda o, say, what=what: say({"check": what, "rc": 0, "said": ""}))
        checks.main()
    assert [row["check"] for row in json.loads(out.read_text())] == ["auto", "generate"]


TINY = {
    "transformer": {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
    },
    "text_encoder": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 32,
        "vocab_size": 1000,
    },
    "text_encoder_2": {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_layers": 2, "num_heads": 4, "vocab_size": 200},
    "vae": {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1},
}


def test_a_flux_of_random_weights_is_a_whole_base_with_a_style(tmp_path, monkeypatch):
    """Weights are numbers, differ within a layer and from layer to layer, and each is in its file."""
    monkeypatch.setattr(checks, "LITTLE", TINY)
    tests, folder = Path(__file__).parents[1], tmp_path / "flux"
    checks.make_flux(argparse.Namespace(folder=folder, tests=tests, little=True, device="cpu"))
    assert (folder / "made").is_file()
    family = loader.load(str(folder), device="cpu", precision="bf16")
    pipe = family.pipeline(**{family.part: family.denoiser})
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        state = getattr(pipe, part).state_dict()
        assert all(t.isfinite().all() and t.any() for t in state.values()), part
        matrices = [t.flatten() for t in state.values() if t.ndim > 1]
        assert all(len(t.unique()) > 1 for t in matrices)
        starts = {tuple(t[:4].tolist()) for t in matrices}
        assert len(starts) > 0.9 * len(matrices), "each from another place of the block on"
    sampling = Sampling(steps=1, size=32)
    about = {"seed": 1, "sampling": sampling, "device": "cpu", "precision": "bf16"}
    ((plain, _),) = generate(str(folder), ["a cat"], **about)
    ((styled, _),) = generate(str(folder), ["a cat"], styles=[str(checks.style_of(folder))], **about)
    assert plain.size == (32, 32) and plain.tobytes() != styled.tobytes()
    assert len(set(plain.tobytes())) > 10


def test_random_weights_have_a_layer_s_size():
    block = torch.randn(10_007)
    weights = checks.random_weights((500, 64), "to_q.weight", block, 3)
    assert weights.shape == (500, 64) and weights.std() * 8 == pytest.approx(1, rel=0.05)
    assert len(weights.unique(dim=0)) == 500
    assert (checks.random_weights((64,), "norm.weight", block, 3) == 1).all()
    assert 0 < checks.random_weights((64,), "to_q.bias", block, 3).abs().max() < 0.2


def test_a_command_is_told_with_its_exit_code(tmp_path, capsys):
    row = checks.impasto("bad", "train", "--base", "nothing", "--out", str(tmp_path / "run"))
    assert row["rc"] == 2 and "unknown base" in row["said"] and "bad rc 2" in capsys.readouterr().out
