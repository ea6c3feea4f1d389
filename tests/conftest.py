"""Shared fixtures: one tiny base per session, an own cache folder per session, one reference picture."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
os.environ["HF_HUB_OFFLINE"] = "1"
settings.register_profile("impasto", deadline=None)  # a busy machine is no bug
settings.load_profile("impasto")


def pytest_collection_modifyitems(items):
    """Tests marked `gpu` are skipped where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache."""
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("IMPASTO_CACHE", str(cache))


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory) -> Path:
    """A tiny random SD3 diffusers folder (see tiny.py)."""
    from tiny import sd3_folder

    return sd3_folder(tmp_path_factory.mktemp("tiny") / "sd3")


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory) -> Path:
    """A tiny random FLUX diffusers folder, with guidance embedding (dev)."""
    from tiny import flux_folder

    return flux_folder(tmp_path_factory.mktemp("tiny") / "flux")


@pytest.fixture(scope="session")
def tiny_schnell(tmp_path_factory) -> Path:
    """A tiny random FLUX diffusers folder without guidance embedding."""
    from tiny import flux_folder

    return flux_folder(tmp_path_factory.mktemp("tiny") / "schnell", guidance_embeds=False)


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory) -> Path:
    """A tiny random SDXL diffusers folder."""
    from tiny import sdxl_folder

    return sdxl_folder(tmp_path_factory.mktemp("tiny") / "sdxl")


@pytest.fixture(scope="session")
def tiny_sd15(tmp_path_factory) -> Path:
    """A tiny random SD1.5 diffusers folder."""
    from tiny import sd15_folder

    return sd15_folder(tmp_path_factory.mktemp("tiny") / "sd15")


@pytest.fixture(scope="session")
def tiny_muse(tmp_path_factory) -> Path:
    """A tiny random aMUSEd diffusers folder."""
    from tiny import muse_folder

    return muse_folder(tmp_path_factory.mktemp("tiny") / "muse")


@pytest.fixture(scope="session", params=["sd3", "sd15", "sdxl", "flux", "schnell"])
def tiny_base(request) -> Path:
    """Each of the tiny bases in turn."""
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture(scope="session")
def picture(tmp_path_factory) -> Path:
    """A small RGB picture with structure."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (40, 40), "orange")
    ImageDraw.Draw(image).ellipse((8, 8, 30, 30), fill="navy")
    path = tmp_path_factory.mktemp("picture") / "ref.png"
    image.save(path)
    return path
