"""Diffusers folders of a supported pipeline class whose denoiser or weights are not supported."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from impasto.bases.loader import load, load_config_only
from impasto.errors import UserError


def copied(base, tmp_path):
    return Path(shutil.copytree(base, tmp_path / "base"))


def change_config(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("read", [load_config_only, load])
@pytest.mark.parametrize(
    ("base", "channels", "what"),
    [
        ("tiny_sd15", 9, "an inpainting model: impasto reads FLUX.1"),
        ("tiny_sdxl", 8, "an inpainting model: impasto reads FLUX.1"),
        ("tiny_flux", 96, r"a FLUX.1 with an image input \(Fill, Depth, Canny\): impasto reads FLUX.1"),
    ],
)
def test_load_image_input_raises(base, channels, what, read, request, tmp_path):
    """In a plain pipeline's folder, by the configurations alone (`--dry-run`), in the words for single files."""
    folder = copied(request.getfixturevalue(base), tmp_path)
    part = "transformer" if base == "tiny_flux" else "unet"
    out = json.loads((folder / part / "config.json").read_text())["in_channels"]
    change_config(folder / part / "config.json", in_channels=channels, out_channels=out)
    with pytest.raises(UserError, match=f"base '{folder}' is {what}"):
        read(str(folder))


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_load_pickled_weights_raises_with_conversion(part, tiny_sd15, tmp_path, capsys):
    """The command of the message makes a folder that loads."""
    folder = copied(tiny_sd15, tmp_path)
    (weights,) = (folder / part).glob("*.safetensors")
    pickle = {"unet": "diffusion_pytorch_model.bin", "text_encoder": "pytorch_model.bin"}[part]
    torch.save(load_file(weights), folder / part / pickle)
    load_config_only(str(folder))  # beside safetensors it is not read
    weights.unlink()
    with pytest.raises(
        UserError, match=rf"has pickled weights \({part}/{pickle}\).*convert it once: python -c"
    ) as error:
        load_config_only(str(folder))
    exec(str(error.value).rsplit("python -c ", 1)[1].strip('"'))
    shutil.copy(folder / "impasto.json", f"{folder}-safetensors")
    assert load(f"{folder}-safetensors", device="cpu").denoiser is not None


def test_load_pickle_of_a_component_that_is_not_read_is_no_fault(tiny_sd15, tmp_path):
    folder = copied(tiny_sd15, tmp_path)
    (folder / "safety_checker").mkdir()
    torch.save({}, folder / "safety_checker" / "pytorch_model.bin")
    assert load_config_only(str(folder)) is not None
