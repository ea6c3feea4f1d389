"""Training on a folder, with all that data can be; resumed bit for bit; encoders freed before it starts."""

import tomllib
import weakref

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from impasto.bases import loader
from impasto.config import change, resolve
from impasto.data.batch import Batch
from impasto.errors import UserError
from impasto.noise.schedule import RectifiedFlow
from impasto.objectives.denoise import denoise
from impasto.training import fit
from impasto.training.plan import data_lines
from impasto.training.train import dry_run, train

WEIGHTS = "pytorch_lora_weights.safetensors"
THINGS = ["a rocket", "two cats", "a street at night", "a cup", "a rose"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five pictures in three shapes; one with a mask, one in a kohya folder."""
    folder = tmp_path_factory.mktemp("data") / "style"
    sizes = [(40, 40), (64, 20), (20, 64), (50, 48), (40, 40)]
    for i, (name, size) in enumerate(zip(["a", "b", "c", "d", "3_more/e"], sizes, strict=True)):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", size, (50 * i, 200 - 40 * i, 90))
        ImageDraw.Draw(image).ellipse((i * 3, 2, 14 + i * 4, 18), fill="white")
        image.save(path)
        path.with_suffix(".txt").write_text(f"{THINGS[i]}, [trigger]")
    Image.linear_gradient("L").resize((40, 40)).save(folder / "a.mask.png")
    return folder


@pytest.fixture
def config(tiny_sd3, folder, tmp_path):
    options = {"trigger": "wibble", "mask": "files", "crops": 3, "flip": True, "caption_dropout": 0.3}
    run = {"rank": 4, "steps": 8, "checkpoint_every": 2, "preview": False, "tensorboard": False}
    return resolve("style-friendly", str(tiny_sd3), image=[str(folder)], out=str(tmp_path / "run"), **options, **run)


class StopError(Exception):
    pass


def stop_at(step):
    def progress(phase, done=0, total=None, note=""):
        if phase == "training" and done == step:
            raise StopError

    return progress


def test_a_folder_is_trained_and_goes_on_bit_for_bit(config, tmp_path):
    said = []
    whole = change(config, out=tmp_path / "whole")
    result = train(whole, lambda phase, done=0, total=None, note="": said.append((phase, done, total)))
    phases = list(dict.fromkeys(phase for phase, *_ in said))
    assert phases == [f"loading {config.base}", "encoding images", "encoding captions", "training"]
    assert result["steps"] == 8 and said[-1] == ("training", 8, 8)
    with pytest.raises(StopError):
        train(config, stop_at(5))
    assert train(config)["resumed_from"] == 4
    one, two = load_file(whole.out / WEIGHTS), load_file(config.out / WEIGHTS)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (whole.out / "metrics.jsonl").read_bytes() == (config.out / "metrics.jsonl").read_bytes()
    kept = tomllib.loads((config.out / "recipe.toml").read_text())
    assert kept["data"]["trigger"] == "wibble" and len(kept["impasto"]["references_sha256"]) == 5
    assert kept["impasto"]["captions"] == [f"{thing}, wibble" for thing in [THINGS[4], *THINGS[:4]]]
    assert kept["impasto"]["caption_counts"] == [1] * 5 and kept["impasto"]["pictures"] == 5
    assert sorted(file.name for file in config.out.glob("reference*.png")) == [
        *(f"reference-{i}.png" for i in range(1, 5)),
        "reference.png",
    ]
    card = (config.out / "README.md").read_text()
    assert "learnt from 5 pictures" in card and '"a rocket, wibble"' in card


def test_a_changed_caption_file_is_refused(config, folder):
    with pytest.raises(StopError):
        train(config, stop_at(3))
    file = folder / "a.txt"
    before = file.read_text()
    try:
        file.write_text("another, [trigger]")
        with pytest.raises(UserError, match=r"data_sha256.*use another --out"):
            train(config)
    finally:
        file.write_text(before)
    assert train(config)["resumed_from"] == 2


def test_vae_and_text_encoders_are_gone_before_training_starts(config, monkeypatch):
    """As they take memory that training needs: nothing may hold them any more."""
    held, family_of = {}, {}
    load = loader.load

    def remembered(*args, **options):
        family_of["it"] = load(*args, **options)
        return family_of["it"]

    def prepared(family, *args):
        result = prepare_items(family, *args)
        parts = {"vae": family.vae, "text_encoder": family.encoders.text_encoder}
        parts["text_encoder_3"] = family.encoders.text_encoder_3
        held.update({name: weakref.ref(part) for name, part in parts.items()})
        return result

    prepare_items = fit.prepare_items
    monkeypatch.setattr(loader, "load", remembered)
    monkeypatch.setattr(fit, "prepare_items", prepared)
    alive = []

    def look(phase, *rest):
        if phase == "training":
            alive.extend(name for name in held if held[name]() is not None)

    train(change(config, steps=1, preview=True), look)
    assert len(held) == 3 and alive == []
    assert not {"vae", "encoders"} & family_of["it"].__dict__.keys()


def test_the_plan_shows_the_data(config):
    data = dry_run(config)["data"]
    assert data["pictures"] == 5 and data["masks"] == 1 and data["crops"] == 30
    assert data["buckets"] == {"8x24": 1, "16x16": 3, "24x8": 1} and data["repeats"] == {"1": 4, "3": 1}
    assert data["advice"] == []
    text = data_lines(data)
    assert "buckets: 8x24 (1), 16x16 (3), 24x8 (1)" in text and "repeats: 1 times (4), 3 times (1)" in text
    advice = dry_run(change(config, trigger="wobble", caption_prefix="bright oil brushstrokes,"))["data"]["advice"]
    assert any("brushstrokes" in line for line in advice) and "advice: captions say how" in data_lines(
        data | {"advice": advice}
    )


def test_advice_is_a_warning_and_never_refuses(config, folder, tmp_path):
    for name in "xyz":
        Image.effect_noise((16, 16), 90).convert("RGB").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("a cat in ink style")
    config = change(config, image=tuple(tmp_path / f"{name}.png" for name in "xyz"), mask="off", steps=1)
    config = change(config, trigger="", crops=1)
    with pytest.warns(UserWarning, match="all 3 captions say 'cat'"):
        assert train(config)["steps"] == 1


class Still:
    """A family that predicts zeros: the loss is the target's."""

    schedule = RectifiedFlow()

    def predict(self, z_t, lam, cond):
        return torch.zeros_like(z_t)

    def target(self, x, eps, lam):
        return eps - x


def test_the_masked_loss_by_hand():
    """Error 2 where the mask is, 10 elsewhere: the masked item gives 4, the other one (12 * 100 + 4 * 4) / 16."""
    error = torch.full((2, 3, 4, 4), 10.0)
    error[:, :, :2, :2] = 2.0
    weights = torch.zeros(1, 4, 4)
    weights[:, :2, :2] = 16 / 4
    batch = Batch(torch.zeros(2, 3, 4, 4), error, {}, torch.stack([weights, torch.ones(1, 4, 4)]))
    loss = denoise(Still(), batch, torch.zeros(2), [])["loss"].item()
    assert loss == pytest.approx((4 + (4 * 4 + 12 * 100) / 16) / 2)


def test_what_is_masked_out_has_no_gradient():
    error = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.zeros(1, 1, 4, 4)
    weights[..., :2] = 2.0
    denoise(Still(), Batch(torch.zeros(1, 3, 4, 4), error, {}, weights), torch.zeros(1), [])["loss"].backward()
    assert error.grad[..., 2:].abs().max() == 0 and error.grad[..., :2].abs().min() > 0


def test_numbers_out_of_range(config):
    for wrong, message in (
        ({"caption_dropout": 1.5}, "caption_dropout must be from 0 to 1"),
        ({"crops": 0}, "crops must be above 0"),
        ({"repeats": (0,)}, "repeats must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            train(change(config, **wrong))


def test_a_long_picture_stays_within_the_base_s_positions(config, tmp_path):
    """They reach to 64 px here; by its proportions alone its bucket would be longer."""
    (tmp_path / "long").mkdir()
    Image.linear_gradient("L").resize((360, 120)).save(tmp_path / "long" / "a.png")
    (tmp_path / "long" / "a.txt").write_text("a road, wibble")
    Image.linear_gradient("L").resize((120, 120)).save(tmp_path / "long" / "b.png")
    (tmp_path / "long" / "b.txt").write_text("a rose, wibble")
    config = change(config, image=(tmp_path / "long",), size=48, mask="off", crops=1, steps=2, accumulate=2)
    told = dry_run(config)["data"]["buckets"]
    assert {max(map(int, bucket.split("x"))) for bucket in told} == {48, 64}
    assert train(config)["steps"] == 2
