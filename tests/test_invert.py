"""`impasto invert`: files, figures, messages."""

import json
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from impasto.bases.loader import load
from impasto.errors import UserError
from impasto.inversion import log_snr_of, noise_file, sample, timestep_of
from impasto.invert import invert_image, paper_snr_until, psnr

CAPTION = "a cat in neon style"


@pytest.fixture(autouse=True)
def _ignore_poor_reconstructions():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the reconstruction is")
        yield


def test_invert_image_writes_noise_that_gives_the_reconstruction(tiny_base, picture, tmp_path):
    result = invert_image(str(tiny_base), picture, CAPTION, out=tmp_path / "out", steps=12, refine=2, device="cpu")
    family, found = load(str(tiny_base), device="cpu"), noise_file.read(tmp_path / "out" / result["noise"])
    found.check(family.hash, 16)
    assert found.info.caption == CAPTION and found.info.steps == 12 and result["steps"] == 12
    back = family.decode(sample(family, found.noise, found.log_snr, family.encode_prompt([CAPTION])))
    image = np.asarray(Image.open(tmp_path / "out" / result["reconstruction"]))
    expected = ((back[0].clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
    assert abs(image - expected).max() <= 0.51
    assert (result["snr_paper"] is None) == (result["log_snr"] == -torch.inf)
    assert 0 < abs(result["correlation"]) < 1


def test_refine_and_until_are_used(tiny_sd15, picture, tmp_path):
    kind = {"out": tmp_path, "steps": 20, "device": "cpu"}
    plain, refined = (invert_image(str(tiny_sd15), picture, CAPTION, refine=n, **kind) for n in (0, 6))
    assert refined["decibels"] > plain["decibels"] + 3
    half = invert_image(str(tiny_sd15), picture, CAPTION, until=500, **kind)
    assert half["timestep"] == 451 and half["steps"] == 10
    assert noise_file.read(tmp_path / "noise.safetensors").level == pytest.approx(half["log_snr"])


def test_timesteps_and_levels_agree(tiny_sd15, tiny_flux):
    for base, top in ((tiny_sd15, 999), (tiny_flux, 1000)):
        family = load(str(base), device="cpu")
        for timestep in (1, 321.5, 998):
            level = torch.tensor(log_snr_of(family, timestep), dtype=torch.float64)
            assert timestep_of(family, level) == pytest.approx(timestep, abs=1e-3)
        with pytest.raises(UserError, match=f"up to {top} for this base"):
            log_snr_of(family, 1001)
    assert log_snr_of(load(str(tiny_flux), device="cpu"), 500) == pytest.approx(0, abs=1e-9)


def test_paper_snr_at_the_last_timestep_is_the_paper_s(tiny_sd15):
    family = load(str(tiny_sd15), device="cpu")
    assert paper_snr_until(family, family.schedule.levels[-1]) == 0.015144


def test_psnr_is_in_decibels_of_the_whole_range():
    black, grey = -torch.ones(1, 3, 4, 4), -0.8 * torch.ones(1, 3, 4, 4)
    assert psnr(black, grey) == pytest.approx(20) and psnr(grey, grey) == float("inf")


def test_poor_reconstruction_warns_and_names_refine(tiny_sd15, picture, tmp_path):
    with pytest.warns(UserWarning, match=r"below 25: --refine 2"):
        invert_image(str(tiny_sd15), picture, CAPTION, out=tmp_path, steps=3, device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption": " "}, "caption is empty"),
        ({"refine": -1}, "refine must be 0 or more"),
        ({"steps": 0}, "steps of an inversion"),
        ({"size": 17}, "multiple of"),
        ({"until": 0}, "above 0 and up to 999"),
        ({"until": 1, "steps": 10, "image": "none.png"}, "does not exist"),
    ],
    ids=str,
)
def test_bad_input(changes, message, tiny_sd15, picture, tmp_path):
    given = {"image": picture, "caption": CAPTION, "out": tmp_path / "out", "device": "cpu"} | changes
    with pytest.raises(UserError, match=message):
        invert_image(str(tiny_sd15), **given)


def test_foreign_image_is_not_overwritten(tiny_sd15, picture, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "reconstruction.png")
    with pytest.raises(UserError, match="did not write"):
        invert_image(str(tiny_sd15), picture, CAPTION, out=tmp_path, device="cpu")


def test_command_prints_json(tiny_sd3, picture, tmp_path, monkeypatch, capsys):
    from impasto.cli import main as cli

    flags = ["--base", tiny_sd3, "--image", picture, "--caption", CAPTION, "--steps", 4, "--out", tmp_path, "--json"]
    monkeypatch.setattr(sys, "argv", ["impasto", "invert", *map(str, flags)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    found = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0 and found["log_snr"] == "-inf" and (tmp_path / found["noise"]).is_file()
