"""The commands on CUDA, on both embedded bases: losses beside the CPU's, images beside those of another placement.

Noise and batches are drawn on the CPU, so that runs are comparable step by step. Run with `pytest -m gpu`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from impasto import devices
from impasto.cli.main import main
from impasto.pretrain.mmdit import MMDiT
from impasto.pretrain.muon import StackedMuon

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::UserWarning")]  # of quantized bases, and the like
FP32 = ("--precision", "fp32")
SAME = {  # run exactly as float32 without the flag
    "offload": ("--offload", "on"),
    "checkpointing": ("--checkpointing", "1"),
    "compile": ("--compile", "on"),
    "adamw8bit": ("--optimizer", "adamw8bit"),
}
LIKE_CPU = {
    "plain": (),
    "dco": ("--objective", "dco", "--dco-beta", "1"),
    "prior": ("--prior-weight", "1"),
    "text-encoder": ("--text-encoder-lora",),
    "muon": ("--optimizer", "muon"),
}
LOW_PRECISION = {  # largest relative difference to float32; on an H100 (docs/training.md) .012, .025, .017, .06
    "bf16": ((), 0.03),
    "int8": (("--quantize", "int8"), 0.05),
    "fp8": (("--quantize", "fp8"), 0.04),
    "nf4": (("--quantize", "nf4"), 1.5),  # an emulation on the CPU was 1.08 off
}
PROMPT = ("--prompt", "a cat, pixel art", "--count", "2", "--seed", "3")


@pytest.fixture(scope="module", params=["mini-sd3", "mini-sd15"])
def runs(request, tmp_path_factory):
    """A function (name, *flags) -> (losses of six steps, run folder); each run is made once."""
    work, done = tmp_path_factory.mktemp(request.param), {}
    image = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(image).ellipse((21, 21, 107, 107), fill="crimson", outline="navy", width=6)
    image.save(work / "ref.png")
    fixed = ("--base", request.param, "--image", str(work / "ref.png"), "--caption", "a ball, pixel art",
             "--steps", "6", "--batch", "4", "--no-preview", "--no-tensorboard")  # fmt: skip

    def run(name: str, *flags: str):
        if name not in done:
            command("train", *fixed, *flags, "--out", str(work / name))
            rows = map(json.loads, (work / name / "metrics.jsonl").read_text().splitlines())
            done[name] = [row["loss"] for row in rows if "loss" in row]
        return np.array(done[name]), work / name

    run.base = request.param
    return run


def command(*args: str) -> None:
    """Run an impasto command in this process; it must succeed."""
    before, sys.argv = sys.argv, ["impasto", *args]
    try:
        with pytest.raises(SystemExit) as stop:
            main()
    finally:
        sys.argv = before
    assert not stop.value.code, " ".join(args)


def generate(runs, out: Path, *flags: str) -> np.ndarray:
    """Two images in the style that float32 on CUDA trained, [2, h, w, 3] in 0 to 255."""
    _, style = runs("cuda-plain", *FP32)
    command("generate", "--base", runs.base, "--style", str(style), *PROMPT, *flags, "--out", str(out))
    return np.stack([np.asarray(Image.open(out / f"{i:04d}.png").convert("RGB"), float) for i in range(2)])


@pytest.mark.parametrize("way", LIKE_CPU)
def test_train_on_cuda_has_the_losses_of_the_cpu(runs, way):
    """Measured on an H100: within 2e-4."""
    cpu, _ = runs(f"cpu-{way}", *FP32, *LIKE_CPU[way], "--device", "cpu")
    cuda, _ = runs(f"cuda-{way}", *FP32, *LIKE_CPU[way])
    np.testing.assert_allclose(cuda, cpu, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("way", SAME)
def test_train_in_less_memory_has_the_same_losses(runs, way):
    plain, _ = runs("cuda-plain", *FP32)
    np.testing.assert_allclose(runs(way, *FP32, *SAME[way])[0], plain, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("way", LOW_PRECISION)
def test_train_in_low_precision_stays_near_float32(runs, way):
    flags, tolerance = LOW_PRECISION[way]
    plain, _ = runs("cuda-plain", *FP32)
    np.testing.assert_allclose(runs(way, *flags)[0], plain, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("flags", [(), ("--switch-at", "-2", "--switch-to", "a ball")])
def test_generate_on_cuda_resembles_the_cpu(runs, tmp_path, flags):
    """bf16 beside float32: the same picture, the mean difference below 12 of 255."""
    cuda, cpu = (generate(runs, tmp_path / d, *flags, "--device", d) for d in ("cuda", "cpu"))
    assert cpu.std() > 10 and np.abs(cuda - cpu).mean() < 12


def test_generate_on_an_int8_base_resembles_the_whole_one(runs, tmp_path):
    whole, quantized = generate(runs, tmp_path / "whole"), generate(runs, tmp_path / "int8", "--quantize", "int8")
    assert 0 < np.abs(quantized - whole).mean() < 25


@pytest.mark.parametrize("how", ["by part", "by layer"])
def test_generate_placed_otherwise_gives_the_same_images(runs, tmp_path, monkeypatch, how):
    whole = generate(runs, tmp_path / "whole")
    monkeypatch.setattr(devices, "drawing", lambda parts, pixels, free: how)
    assert np.abs(generate(runs, tmp_path / "placed") - whole).max() <= 2


def test_stacked_muon_on_cuda_equals_torch_muon():
    """Within 5 % of the step's length: bfloat16, in another order of sums."""
    blocks = [MMDiT().new((2, 3)).cuda() for _ in range(2)]
    blocks[1].load_state_dict(blocks[0].state_dict())
    matrices = [[p for p in b.transformer_blocks.parameters() if p.ndim == 2] for b in blocks]
    begin = [p.detach().clone() for p in matrices[0]]
    for kind, mine in zip((torch.optim.Muon, StackedMuon), matrices, strict=True):
        for i, p in enumerate(mine):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i)).cuda()
        kind(mine, lr=0.02, adjust_lr_fn="match_rms_adamw").step()
    for start, p, q in zip(begin, *matrices, strict=True):
        assert torch.dist(p.detach(), q.detach()) < 0.05 * torch.dist(p.detach(), start)
