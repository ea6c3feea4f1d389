"""Sessions of pretraining, from random weights to the package, for every kind of base."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from impasto.artworld import ArtWorld, load_meta, load_slice
from impasto.bases import embedded as mini
from impasto.bases.loader import load
from impasto.errors import UserError
from impasto.files import MODELS
from impasto.pretrain import run
from impasto.pretrain.base import make_bank, shape_of
from impasto.pretrain.image_tokenizer import CODES, closed_form_tokenizer
from impasto.pretrain.pool import build_pool
from impasto.pretrain.state import Clock
from impasto.pretrain.text import new_tower


class Ticks(Clock):
    """A clock that ends a session after three steps."""

    ticks = 0

    @property
    def progress(self) -> float:
        return self.ticks / 3

    @property
    def stop(self) -> bool:
        self.ticks += 1
        return self.ticks > 3


@pytest.fixture(scope="module")
def pool():
    """A pool of the slice's images, with their styles renamed to train styles."""
    part = load_slice(styles=["fluent-emoji-3d", "streamline-emojis"])
    train = load_meta()["split"]["train_styles"]
    names = {style: train[i] for i, style in enumerate(np.unique(part.style_id))}
    world = ArtWorld(part.rgba, np.array([names[s] for s in part.style_id]), part.concept_id, part.meta)
    return build_pool(ground=0.05, procedurals=0.02, scenes=0.02, seed=0, world=world)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with the shared components and no base."""
    models = tmp_path / "models"
    for part in ("autoencoder", "clip"):
        shutil.copytree(MODELS / part, models / part)
    monkeypatch.setattr(run, "MODELS", models)
    monkeypatch.setattr(mini, "MODELS", models)
    return models


@pytest.fixture
def image_tokenizer(package):
    """The package with a random codebook."""
    g = torch.Generator().manual_seed(0)
    kernel, codes = 0.1 * torch.randn(16, 3, 4, 4, generator=g), torch.randn(CODES, 16, generator=g)
    closed_form_tokenizer(kernel, torch.zeros(16), codes).half().save_pretrained(package / "image-tokenizer")


@pytest.mark.parametrize(("base", "size"), [("mini-sd3", "1x1"), ("mini-sd15", "32x32x32"), ("mini-muse", "1x1")])
@pytest.mark.usefixtures("image_tokenizer")
def test_pretrain_resumes_and_exports(base, size, pool, package, tmp_path, monkeypatch):
    before = mini.text_weights(package / "clip")
    monkeypatch.setattr(run, "build_pool", lambda known, seed: type(pool)(pool.rgb, pool.entries))
    monkeypatch.setattr(run, "Clock", Ticks)
    monkeypatch.setattr(run, "LOG_STEPS", 2)
    settings = {"size": size, "batch": 4, "device": "cpu", "score": 0, "folder": tmp_path / "run"}
    first = run.pretrain(base, minutes=1, **settings)
    assert (first["step"], first["pictures"], first["sessions"]) == (3, 12, 1)
    with pytest.raises(UserError, match="--resume"):
        run.pretrain(base, minutes=1, **settings)
    second = run.pretrain(base, minutes=1, resume=True, export=True, **settings)
    assert (second["step"], second["pictures"], second["sessions"]) == (6, 24, 2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses and np.isfinite(losses).all()

    assert mini.names() == (base,) and mini.card(base)["training"]["pictures"] == second["pictures"]
    stored = load_file(package / base / mini.DENOISER[base] / "diffusion_pytorch_model.safetensors")
    state = load_file(next((tmp_path / "run").glob("state-*.safetensors")))
    assert all(torch.equal(value, state[f"ema.{name}"].half()) for name, value in stored.items())
    after = mini.text_weights(package / "clip")
    assert before.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in before.items())
    folder = mini.ensure(base)
    family = load(base, device="cpu")
    pipe = family.pipeline_type.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a rocket", num_inference_steps=1, height=128, width=128).images[0].size == (128, 128)
    assert family.folder == folder and family.card["train"]["steps"] > 0
    cond = family.encode_prompt(["a rocket"])
    z = family.encode_image(torch.zeros(1, 3, 128, 128))
    assert family.predict(z, torch.tensor([-2.0]), cond).shape[2:] == z.shape[2:]


def test_pretrain_with_teacher_records_it(pool, package, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "build_pool", lambda known, seed: type(pool)(pool.rgb, pool.entries))
    monkeypatch.setattr(run, "Clock", Ticks)
    shutil.copytree(MODELS / "mini-sd3", package / "mini-sd3")
    settings = {"size": "32x32x32", "batch": 4, "device": "cpu", "score": 0, "folder": tmp_path / "run", "minutes": 1}
    assert run.pretrain("mini-sd15", teacher="mini-sd3", **settings)["teachers"] == ["mini-sd3 0.75"]
    assert run.pretrain("mini-sd15", resume=True, offset=0.1, **settings)["teachers"] == ["mini-sd3 0.75"]


def test_pretrain_with_text_along_exports_tower(pool, package, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "build_pool", lambda known, seed: type(pool)(pool.rgb, pool.entries))
    monkeypatch.setattr(run, "Clock", Ticks)
    settings = {"size": "1x1", "batch": 4, "device": "cpu", "score": 0, "folder": tmp_path / "run", "minutes": 1}
    before = load_file(package / "clip" / "model.safetensors")
    run.pretrain("mini-sd3", **settings)  # the next session loads a state of a frozen tower
    run.pretrain("mini-sd3", text="new", resume=True, **settings)
    begun = new_tower(MODELS / "clip", 0).state_dict()
    first = load_file(next((tmp_path / "run").glob("state-*.safetensors")))
    moved = [name for name, value in begun.items() if not torch.equal(first[f"tower.{name}"], value)]
    assert {"text_projection.weight", "text_model.embeddings.token_embedding.weight"} <= set(moved)
    assert any("self_attn.q_proj.weight" in name for name in moved)
    with pytest.raises(UserError, match="trained along"):
        run.pretrain("mini-sd3", text="frozen", resume=True, **settings)
    run.pretrain("mini-sd3", resume=True, export=True, **settings)  # resumes along
    state = load_file(next((tmp_path / "run").glob("state-*.safetensors")))
    after = load_file(package / "clip" / "model.safetensors")
    assert after.keys() == before.keys()
    for name, value in after.items():
        half = state[f"tower_ema.{name}"].half() if name.startswith("text_") else before[name]
        assert torch.equal(value, half), name
    assert mini.card("mini-sd3")["training"]["text_tower"] == "trained along"
    heard = load_file(mini.ensure("mini-sd3") / "text_encoder" / "model.safetensors")
    assert torch.equal(heard["text_projection.weight"], after["text_projection.weight"])
    other = run.Session("mini-sd3", tmp_path / "elsewhere", "cpu", None, 2e-3, 0)  # without the state
    assert other.along and torch.equal(other.tower.text_projection.weight, after["text_projection.weight"].float())
    (package / "mini-sd15" / "unet").mkdir(parents=True)
    (package / "mini-sd15" / "card.json").write_text("{}")
    assert not run.Session("mini-sd3", tmp_path / "elsewhere", "cpu", None, 2e-3, 0).along
    with pytest.raises(UserError, match="mini-sd15 depends on the packaged text tower"):
        run.pretrain("mini-sd3", resume=True, export=True, **(settings | {"minutes": 0}))


def test_caption_gap_is_other_minus_own(pool, package, tmp_path):
    session = run.Session("mini-sd3", tmp_path, "cpu", "1x1", 2e-3, 0)
    bank = make_bank(type(pool)(pool.rgb, pool.entries), session.vae, session.tokenizer, 0)
    own = {x.float().numpy().tobytes(): ids[0] for x, ids in zip(bank.latents, bank.ids, strict=True)}
    seen = []

    class Listener:
        def levels(self, z):
            return z

        def text(self, tower, ids):
            return {"ids": ids}

        def loss(self, model, x0, eps, t, cond):
            assert torch.equal(t, torch.full((len(x0),), 2.0))
            pairs = zip(x0, cond["ids"], strict=True)
            wrong = [float(not torch.equal(own[x.numpy().tobytes()], ids)) for x, ids in pairs]
            seen.append(len(x0))
            return torch.tensor(wrong).mean()

    session.net = Listener()
    gap = session.caption_gap(bank, n=100)
    assert seen == [50] * 4 and gap["own"] == 0 and gap["hears"] == gap["other"] > 0.9


def test_score_uses_guidance_of_card(package, tmp_path, monkeypatch):
    session = run.Session("mini-sd15", tmp_path / "run", "cpu", "32x32x32", 1e-3, 0)
    card = run.cards.card("mini-sd15") | {"generate": {"guidance": 2.5}}
    monkeypatch.setattr(run.cards, "card", lambda base: card)
    monkeypatch.setattr(run.Session, "pipeline", lambda self: "pipe")
    asked = []
    monkeypatch.setattr("impasto.pretrain.score.score_base", lambda pipe, world, **a: asked.append(a) or {"x": 1})
    monkeypatch.setattr(
        "impasto.pretrain.score.sample_grid",
        lambda pipe, call, guidance: asked.append(guidance) or Image.new("L", (1, 1)),
    )
    assert session.score(None, 7) == {"x": 1}
    assert asked == [2.5, {"n": 7, "call": session.net.call, "guidance": 2.5}]
    assert json.loads((session.folder / "scores.jsonl").read_text())["x"] == 1


def test_packaged_concepts_match_card(monkeypatch):
    labels = [concept["label"] for concept in load_meta()["concepts"]]
    for name in ("core_everywhere", "core_concepts", "all"):
        card = {"concepts": [labels[c] for c in run.known_concepts(name)]}
        monkeypatch.setattr(run.mini, "card", lambda base, card=card: card)
        assert run.packaged_concepts("mini-sd3") == name
    monkeypatch.setattr(run.mini, "names", tuple)
    assert run.packaged_concepts("mini-sd3") == "core_everywhere"


def test_pretrain_with_unknown_name_raises():
    with pytest.raises(UserError, match="did you mean 'mini-sd15'"):
        run.pretrain("mini-sd1")
    with pytest.raises(UserError, match="core_concepts"):
        run.pretrain("mini-sd3", concepts="core_concept", resume=True)
    with pytest.raises(UserError, match="leave out --teacher or --offset"):
        run.pretrain("mini-sd15", teacher="mini-sd3", offset=0.1, resume=True)
    with pytest.raises(UserError, match="from 0 to 1"):
        run.pretrain("mini-sd15", offset=-1.0, resume=True)
    for wrong in ({"batch": 0}, {"threads": -1}, {"threads": 0}):
        with pytest.raises(UserError, match="at least 1"):
            run.pretrain("mini-sd3", resume=True, **wrong)
    with pytest.raises(UserError, match="size '0x3': its numbers are at least 1"):
        shape_of(run.MMDiT(), "0x3")
    for lr in (0.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="lr must be above 0"):
            run.pretrain("mini-sd3", resume=True, lr=lr)
    with pytest.raises(UserError, match="did you mean 'along'"):
        run.pretrain("mini-sd3", text="alon", resume=True)
