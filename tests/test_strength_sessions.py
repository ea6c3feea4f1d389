"""A style at several strengths from one loading of the base: to the bit the images of a session of its own."""

import pytest

from impasto import generation
from impasto.config import resolve
from impasto.generation import StrengthSessions, generate
from impasto.sampling.sample import Sampling
from impasto.training.train import train

SAMPLING = Sampling(2, 3.0, negative="", style_guidance=0.0)
STRENGTHS = (1.5, 0.75)
STYLES = {
    "lora of denoiser and text": {"text": "lora"},
    "styleinject": {"adapter": "styleinject"},
    "full": {"adapter": "full"},
}


@pytest.mark.parametrize("kind", STYLES)
def test_sessions_at_each_strength_generate_as_one_of_their_own(kind, tiny_sd15, picture, tmp_path, monkeypatch):
    base, keys = str(tiny_sd15), STYLES[kind]
    own = {"image": [str(picture)], "caption": ["a rocket in ink style"], "steps": 2, "lr": 0.1, "size": 16, "batch": 2}
    style = tmp_path / "ink"
    train(resolve("uniform", base, out=style, preview=False, tensorboard=False, **own, **keys))
    expected = [list(generate(base, ["a cat"], styles=[f"{style}:{s}"], sampling=SAMPLING)) for s in STRENGTHS]
    opened, real = [], generation.open_session
    monkeypatch.setattr(generation, "open_session", lambda *args, **more: opened.append(more) or real(*args, **more))
    sessions = StrengthSessions(base, style, sampling=SAMPLING)
    found = [list(sessions.at(strength).sample([("a cat", 0)])) for strength in STRENGTHS]
    assert len(opened) == (2 if kind == "full" else 1)
    for ((image, info),), ((other, about),) in zip(found, expected, strict=True):
        assert image.tobytes() == other.tobytes() and info == about
    assert len({image.tobytes() for ((image, _),) in found}) == 2, "the strength shows"


def test_sessions_of_a_base_alone_are_one(tiny_sd3):
    sessions = StrengthSessions(str(tiny_sd3), sampling=SAMPLING)
    assert sessions.at(0.75) is sessions.at(1.5)
