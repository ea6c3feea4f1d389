"""Training that watches its score: the rule on rows whose answer is known, and one tiny run that really evaluates."""

import json

import pytest
import torch
from fakes import FakeEncoder

from impasto.bases.loader import load
from impasto.config import EvaluateConfig, resolve
from impasto.errors import UserError
from impasto.evaluation.base_text import text_by_base, text_score
from impasto.evaluation.diversity import pairwise_diversity
from impasto.report.run import read_run
from impasto.report.sections import evaluation_plot
from impasto.styles.defaults import own_sampling
from impasto.training import watch as module
from impasto.training.checkpoints import read_adapter
from impasto.training.train import train
from impasto.training.watch import CHOSEN, FILE, choose, load_chosen, read_rows, save_chosen, stops

ROWS = [
    {"step": 1, "style": 0.2, "text": 0.9},
    {"step": 2, "style": 0.5, "text": 0.85},
    {"step": 3, "style": 0.9, "text": 0.6},
]


@pytest.mark.parametrize(("margin", "step"), [(0.0, 1), (0.1, 2), (0.34, 3)])
def test_choose_takes_most_style_within_margin_of_best_text(margin, step):
    assert choose(ROWS, margin)["step"] == step


def test_stops_after_patience_evaluations_without_new_choice():
    assert stops(ROWS, EvaluateConfig(patience=1)) and not stops(ROWS, EvaluateConfig(patience=2))
    assert not stops(ROWS, EvaluateConfig(patience=1, margin=0.34)) and not stops(ROWS, EvaluateConfig())


def test_text_score_is_gain_of_own_prompt():
    assert text_score(torch.eye(4) / 2) == 0.5 and text_score(torch.zeros(4, 4)) == 0
    assert text_score(-torch.eye(4)) == -1


def test_text_by_base_gains_are_relative_and_do_not_depend_on_other_images(tiny_sd3):
    family = load(str(tiny_sd3), device="cpu")
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    cond = family.encode_prompt(["a rocket", "a cat in neon style"])
    gains = text_by_base(family, x, cond)
    assert gains.shape == (2, 2) and gains.sum(1) == pytest.approx([0, 0], abs=1e-5) and gains.abs().max() > 0
    assert torch.allclose(text_by_base(family, x[:1], cond), gains[:1], atol=1e-6)


def test_pairwise_diversity_equal_images_is_zero():
    assert pairwise_diversity(torch.ones(3, 1)) == pytest.approx(0) and pairwise_diversity(torch.eye(3)) == 1
    assert pairwise_diversity(torch.eye(1)) is None


def config_of(base, image, out, **keys):
    own = {
        "image": (image,),
        "caption": ("a rocket in neon style",),
        "out": out,
        "steps": 3,
        "rank": 2,
        "preview": False,
    }
    own |= {
        "evaluate.every": 1,
        "evaluate.clip": "fake",
        "evaluate.prompt": ("a cat in neon style", "a star in neon style"),
    }
    return resolve("style-friendly", str(base), **{**own, "tensorboard": False, **keys})


@pytest.fixture
def scored(monkeypatch):
    """An encoder of mean colours, and scores that are set: step 2 is the rule's choice."""
    monkeypatch.setattr(module, "load_encoder", lambda name="": FakeEncoder())
    real = module.Watch.score
    given = iter([(0.1, 0.9), (0.5, 0.85), (0.9, 0.2), *[(0.1 * i, 0.9) for i in range(10)]])

    def score(self, strength=None, sampling=None):
        style, text = next(given)
        return real(self, strength, sampling) | {"style": style, "text": text}

    monkeypatch.setattr(module.Watch, "score", score)


def test_train_watched_keeps_chosen_weights_and_advice(tiny_sd3, picture, tmp_path, scored):
    result = train(config_of(tiny_sd3, picture, tmp_path / "a", keep=0))
    assert result["chosen_step"] == 2 and [row["step"] for row in read_rows(tmp_path / "a")] == [1, 2, 3]
    assert {"leakage", "diversity", "seconds"} < read_rows(tmp_path / "a")[0].keys()
    states = (
        read_adapter(tmp_path / "a/state/step-000002.safetensors"),
        read_adapter(tmp_path / "a/state/step-000003.safetensors"),
    )
    kept = torch.cat([t.flatten() for _, t in sorted(states[0].items())])
    from safetensors.torch import load_file

    chosen = torch.cat([t.flatten() for _, t in sorted(load_file(tmp_path / "a/state" / CHOSEN).items())])
    assert torch.equal(kept, chosen)
    assert not torch.equal(kept, torch.cat([t.flatten() for _, t in sorted(states[1].items())]))
    advised = own_sampling(tmp_path / "a")
    assert advised == result["advised"] and advised["style_guidance"] == 2.0 and advised["strength"] == 1.2
    assert len(json.loads((tmp_path / "a/style.json").read_text())["advice"]["grid"]) == 10
    assert "step 2 was chosen" in evaluation_plot(read_run(tmp_path / "a"), 0)


def test_train_watched_stops_early_and_stays_stopped(tiny_sd3, picture, tmp_path, scored):
    own = {"evaluate.patience": 1, "evaluate.advice": False, "steps": 5}
    first = train(config_of(tiny_sd3, picture, tmp_path / "a", **own))
    assert [row["step"] for row in read_rows(tmp_path / "a")] == [1, 2, 3] and first["chosen_step"] == 2
    assert not (tmp_path / "a/style.json").exists()
    train(config_of(tiny_sd3, picture, tmp_path / "a", **own))
    assert len(read_rows(tmp_path / "a")) == 3


def test_train_unwatched_writes_no_evaluations(tiny_sd3, picture, tmp_path):
    result = train(config_of(tiny_sd3, picture, tmp_path / "a", **{"evaluate.every": 0}))
    assert not (tmp_path / "a" / FILE).exists() and "chosen_step" not in result


def test_train_watched_foreign_base_names_encoder(tiny_sd3, picture, tmp_path):
    with pytest.raises(UserError, match=r"--evaluate\.clip openai"):
        train(config_of(tiny_sd3, picture, tmp_path / "a", **{"evaluate.clip": ""}))


def test_load_chosen_of_another_step_is_refused(tmp_path):
    named = {"a": torch.nn.Parameter(torch.zeros(2))}
    save_chosen(tmp_path, 2, {"a": torch.ones(2)})
    assert not load_chosen(tmp_path, 3, named) and named["a"].sum() == 0
    assert load_chosen(tmp_path, 2, named) and named["a"].sum() == 2
