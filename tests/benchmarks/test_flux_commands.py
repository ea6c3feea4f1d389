"""The benchmark of commands at FLUX.1-dev's size, on the CPU: a small random FLUX is a whole base; rows are written."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from impasto.bases import loader

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import flux_commands as bench

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


@pytest.fixture(scope="module")
def flux(tmp_path_factory) -> Path:
    """A tiny FLUX made by the benchmark."""
    folder = tmp_path_factory.mktemp("made") / "flux"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "SMALL", TINY)
        bench.make_flux(folder, "cpu", small=True)
    return folder


def test_make_flux_writes_a_base_of_random_weights(flux):
    """Finite, not constant, and each matrix from another place of the block."""
    family = loader.load(str(flux), device="cpu", precision="bf16")
    pipe = family.pipeline(**{family.part: family.denoiser})
    for part in TINY:
        state = getattr(pipe, part).state_dict()
        assert all(t.isfinite().all() and t.any() for t in state.values()), part
        matrices = [t.flatten() for t in state.values() if t.ndim > 1]
        assert all(len(t.unique()) > 1 for t in matrices)
        assert len({tuple(t[:4].tolist()) for t in matrices}) > 0.9 * len(matrices)


def test_run_writes_a_row_per_command(flux, tmp_path):
    """Real commands in processes of their own; the base and the style are used."""
    flags = ["--folder", str(flux), "--work", str(tmp_path / "work"), "--size", "32", "--out", str(tmp_path / "x.json")]
    bench.main(["run", *flags, "--limit", "300", "--what", "generate"])
    bench.main(["run", *flags, "--steps", "2", "--limit", "300", "--what", "auto"])
    generate, train = json.loads((tmp_path / "x.json").read_text())
    assert (generate["rc"], generate["from_whole"], train["rc"]) == (0, 0.0, 0), (generate, train)
    assert len(train["losses"]) == 2 and train["first_step"] > 0


def test_run_without_time_says_so(flux, tmp_path):
    bench.main(["run", "--folder", str(flux), "--work", str(tmp_path), "--seconds", "5", "--what", "auto",
                "--out", str(tmp_path / "x.json")])  # fmt: skip
    assert json.loads((tmp_path / "x.json").read_text()) == [{"name": "auto", "rc": None, "stderr": "no time left"}]


def test_difference_is_the_mean_of_255(tmp_path):
    for name, grey in (("x", 10), ("y", 13)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4), (grey,) * 3).save(tmp_path / name / "0000.png")
    assert bench.difference(tmp_path / "x", tmp_path / "y") == 3
    assert bench.difference(tmp_path / "z", tmp_path / "x") is None


def test_random_weights_have_the_variance_of_their_inputs():
    block = torch.randn(10_007)
    weights = bench.random_weights((500, 64), "to_q.weight", block, 3)
    assert weights.shape == (500, 64) and weights.std() * 8 == pytest.approx(1, rel=0.05)
    assert len(weights.unique(dim=0)) == 500
    assert (bench.random_weights((64,), "norm.weight", block, 3) == 1).all()
    assert 0 < bench.random_weights((64,), "to_q.bias", block, 3).abs().max() < 0.2
