"""Prior preservation: the base's own pictures, drawn once; zero at the start; a pull back to the base later."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from fakes import prepare
from PIL import Image

from impasto.adapters.config import LoRA
from impasto.adapters.lora import add, disabled
from impasto.bases.loader import load
from impasto.config import change, resolve
from impasto.data import references
from impasto.data.draws import Draws
from impasto.errors import UserError
from impasto.noise.laws import noise_law
from impasto.noise.random import generators
from impasto.objectives.base import build_objective
from impasto.training import prior
from impasto.training.prior import PriorSampler
from impasto.training.train import dry_run, train

CAPTION = "a rocket in pixel art style"


@pytest.fixture
def config(tiny_sd3, picture, tmp_path):
    settings = {"image": [str(picture)], "caption": [CAPTION], "rank": 4, "preview": False, "tensorboard": False}
    weight = {"prior_weight": 2.0, "prior_prompt": ["a cat", "a star"]}
    return resolve("style-friendly", str(tiny_sd3), out=str(tmp_path / "run"), **settings, **weight)


def built(config, family):
    """The objective with prior preservation, as a run builds it."""
    return prior.build(config, family, build_objective(config.objective, family))


@pytest.fixture
def parts(config, picture):
    """(family, objective, its batch, lam, generators, the adapter's parameters)."""
    family = load(config.base, device="cpu")
    objective = built(config, family)
    parameters = add(family, LoRA(rank=4, alpha=None, targets=config.adapter.targets), 0)
    draws = Draws(config, noise_law(config), prepare(family, [(references.read(picture), CAPTION)], 16))
    batch, lam, own = draws(1, 0)
    return family, objective, batch, lam, own, parameters


def disturb(parameters, size=0.2):
    shared = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in parameters.items():
            if "lora_B" in name:
                p.copy_(size * torch.randn(p.shape, generator=shared))


def test_the_pictures_are_the_base_s_own(config, tiny_sd3):
    from diffusers import StableDiffusion3Pipeline

    kept = built(config, load(config.base, device="cpu"))
    pipe = StableDiffusion3Pipeline.from_pretrained(tiny_sd3)
    call = {"num_inference_steps": 4, "guidance_scale": 3.0, "max_sequence_length": 1, "output_type": "latent"}
    for i, prompt in enumerate(config.prior.prompt):
        theirs = pipe(prompt, generator=torch.Generator().manual_seed(i), **call).images
        assert torch.allclose(kept.x[i : i + 1], theirs, atol=1e-5)
    assert kept.cond["text"].shape[0] == 2 and kept.count == 2


def test_they_are_drawn_once(config, monkeypatch):
    first = built(config, load(config.base, device="cpu"))
    family = load(config.base, device="cpu")
    monkeypatch.setattr(type(family), "pipeline", None)
    assert torch.equal(built(config, family).x, first.x)
    with pytest.raises(TypeError):  # in another precision they are others
        built(config, load(config.base, device="cpu", precision="bf16"))


def test_it_is_zero_at_the_start_and_adds_up(config, parts):
    family, objective, batch, lam, own, parameters = parts
    first = objective(family, batch, lam, own)
    assert first["prior"].item() == 0 and first["loss"].item() == first["fit"].item()
    disturb(parameters)
    later = objective(family, batch, lam, generators(0, 1, range(3)))
    assert later["prior"].item() > 1e-4
    assert later["loss"].item() == pytest.approx((later["fit"] + 2 * later["prior"]).item(), rel=1e-6)


def test_its_gradient_leads_back_to_the_base(config, parts):
    family, objective, batch, lam, _, parameters = parts
    disturb(parameters)
    alone = replace(objective, objective=lambda *_: {"loss": torch.zeros(())})
    optimizer = torch.optim.Adam(parameters.values(), lr=3e-3)
    distances = []
    for step in range(30):
        loss = alone(family, batch, lam, generators(0, step, range(3)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        distances.append(loss.item())
    assert sum(distances[-5:]) < 0.5 * sum(distances[:5])


def test_the_adapter_is_on_again_afterwards(config, parts):
    family, objective, batch, lam, own, parameters = parts
    disturb(parameters)
    z = batch.x + batch.eps
    with torch.no_grad():
        before = family.predict(z, lam, batch.cond)
        objective(family, batch, lam, own)
        assert torch.equal(family.predict(z, lam, batch.cond), before)
        with disabled(family.denoiser):
            assert not torch.equal(family.predict(z, lam, batch.cond), before)


def test_a_whole_run_with_it(config):
    result = train(config)
    row = (config.out / "metrics.jsonl").read_text().splitlines()[-1]
    assert result["steps"] == 6 and '"fit"' in row and '"prior"' in row


def test_no_captions_to_preserve(config):
    with pytest.raises(UserError, match=r"prior\.weight needs captions"):
        built(change(config, prior_prompt=()), load(config.base, device="cpu"))


def test_a_whole_run_from_an_empty_cache(config, tmp_path, monkeypatch):
    """Nothing is drawn, encoded or looked at yet; afterwards the base's two pictures are in it."""
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "empty"))
    drawn, draw = [], PriorSampler.draw
    monkeypatch.setattr(PriorSampler, "draw", lambda self, *asked: drawn.append(asked) or draw(self, *asked))
    assert train(change(config, steps=1))["steps"] == 1
    assert drawn == [("a cat", 0), ("a star", 1)]


def test_more_pictures_than_a_batch_holds_are_told(config):
    """At the planning and at the start; each of the base's pictures has the noise level of one of the batch. Nothing of
    the default, which nobody has asked for."""
    told = r"prior\.batch 3 is more than batch 1, .*: 1 a forward pass"
    config = change(config, batch=1, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        dry_run(change(config, prior_batch=2))
    config = change(config, prior_batch=3)
    for begin in (dry_run, train):
        with pytest.warns(UserWarning, match=told):
            begin(config)
    assert built(config, load(config.base, device="cpu")).count == 1


CLASS = ["a cat", "a cat", "a face"]


@pytest.fixture
def images(tmp_path):
    """Three images, of which the last one has a caption of its own."""
    folder = tmp_path / "class"
    folder.mkdir()
    for i, size in enumerate([(16, 16), (40, 20), (20, 30)]):
        Image.effect_noise(size, 40 + i).convert("RGB").save(folder / f"{i}.png")
    (folder / "2.txt").write_text(CLASS[2])
    return folder


def test_given_images_take_the_place_of_the_base_s(config, images, monkeypatch):
    monkeypatch.setattr(PriorSampler, "draw", None)
    config = change(config, prior_prompt=["a cat"], prior_image=[str(images)])
    family = load(config.base, device="cpu")
    kept = prior.build(config, family, build_objective(config.objective, family), prior.read_images(config))
    assert len(kept.x) == 3 and [kept.captions[i].item() for i in range(3)] == [0, 0, 1]
    for i, caption in enumerate(CLASS):
        pixels = references.load(images / f"{i}.png").pixels(16)
        assert torch.allclose(kept.x[i : i + 1], family.encode_image(pixels), atol=1e-3)
        text = family.encode_prompt([caption])["text"]
        assert torch.equal(kept.cond["text"][kept.captions[i]][None], text)
    files = change(config, prior_image=[str(images / "0.png"), str(images / "1.png")])
    assert [one.caption for one in prior.read_images(files)] == ["a cat", "a cat"]


def test_images_without_a_caption_are_refused_by_the_prior_s_flags(config, images):
    config = change(config, prior_prompt=(), prior_image=[str(images)])
    with pytest.raises(UserError, match=r"prior.image: 2 of 3 pictures .* have no caption.*--prior\.prompt$"):
        dry_run(config)
    with pytest.raises(UserError, match=r"prior.image: image .*none.png' does not exist"):
        dry_run(change(config, prior_prompt=["a cat"], prior_image=["none.png"]))
    with pytest.raises(UserError, match=r"prior\.image has no effect .*--prior\.weight 1"):
        change(config, prior_weight=0.0)


def test_several_images_per_prompt_have_seeds_of_their_own(config, monkeypatch):
    drawn = []
    latent = torch.zeros(1, 4, 4, 4)
    monkeypatch.setattr(PriorSampler, "latent", lambda self, *asked: drawn.append(asked) or latent + len(drawn))
    kept = built(change(config, prior_per_prompt=2), load(config.base, device="cpu"))
    assert drawn == [("a cat", 0), ("a star", 1), ("a cat", 2), ("a star", 3)]
    assert kept.captions.tolist() == [0, 1, 0, 1] and kept.x[:, 0, 0, 0].tolist() == [1, 2, 3, 4]
    assert len(kept.cond["text"]) == 2


def test_target_data_is_the_regression_target_of_dreambooth(config, parts, monkeypatch):
    """Eq. 2 by hand, from the draws of the items' generators; no adapter is switched off."""
    family, objective, batch, lam, _, parameters = parts
    disturb(parameters)
    objective = replace(objective, target="data", captions=torch.tensor([1, 0]))
    monkeypatch.setattr("impasto.objectives.prior.disabled", None)
    found = objective(family, batch, lam, generators(0, 1, range(3)))["prior"]
    own = generators(0, 1, range(2))
    index = torch.cat([torch.randint(2, (1,), generator=g) for g in own])
    eps = torch.stack([torch.randn(4, 4, 4, generator=g) for g in own])
    x, cond = objective.x[index], {name: rows[1 - index] for name, rows in objective.cond.items()}
    z_t = family.schedule.add_noise(x, eps, lam[:2])
    expected = (family.predict(z_t, lam[:2], cond) - family.target(x, eps, lam[:2])).square().mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6) and found > 0.01


@pytest.mark.parametrize("given", [True, False])
def test_dreambooth_recipe_trains_a_subject(given, tiny_sd15, images, tmp_path, monkeypatch):
    subject = tmp_path / "subject"
    subject.mkdir()
    for i in range(3):
        Image.new("RGB", (16, 16), (60 * i, 200, 30)).save(subject / f"{i}.png")
    keys = {"image": [str(subject)], "caption": ["a [trigger] cat"], "trigger": "wibble", "out": str(tmp_path / "run")}
    keys |= {"prior_image": [str(images)]} if given else {"prior_per_prompt": 2}
    keys |= {"prior_prompt": ["a cat"], "preview": False, "tensorboard": False, "batch": 2}
    config = resolve("dreambooth", str(tiny_sd15), **keys)
    assert (config.optim.lr, config.optim.steps, config.prior.target) == (1e-4, 800, "data")
    drawn, draw = [], PriorSampler.draw
    monkeypatch.setattr(PriorSampler, "draw", lambda self, *asked: drawn.append(asked) or draw(self, *asked))
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    config = change(config, steps=2)
    assert train(config)["steps"] == 2
    assert drawn == ([] if given else [("a cat", 0), ("a cat", 1)])
    row = json.loads((config.out / "metrics.jsonl").read_text().splitlines()[0])
    assert row["prior"] > 0.01 and row["loss"] == pytest.approx(row["fit"] + row["prior"], rel=1e-5)
    if given:
        assert dry_run(config)["data"]["prior_pictures"] == 3
        (images / "2.txt").write_text("another face")
        with pytest.raises(UserError, match=r"prior_sha256.*use another --out"):
            train(config)
