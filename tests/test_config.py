"""Recipes, cards and flags: who wins, and what is refused."""

from dataclasses import fields

import pytest

from impasto.adapters.config import LoRA, TextLoRA
from impasto.bases import cards
from impasto.cli.settings import parse_config
from impasto.config import (
    FREE,
    TrainConfig,
    change,
    flatten,
    kind_of,
    make_config,
    nest,
    read_recipe_file,
    recipes,
    resolve,
)
from impasto.errors import UserError
from impasto.methods.config import FineStyle, StyleDrop
from impasto.noise.config import LogitNormalNoise, SD3Noise, StyleFriendlyNoise, UniformNoise
from impasto.noise.histogram import bars, histogram
from impasto.noise.laws import noise_law
from impasto.training.run_folder import recipe_text


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_resolves_on_every_base(name):
    for base in (*cards.embedded(), "stabilityai/stable-diffusion-3.5-large", "owner/whatever"):
        config = resolve(name, base)
        assert noise_law(config) is not None and config.recipe == name and config.base == base


def test_the_recipes_are_the_paper_s():
    one, two = resolve("style-friendly", "stabilityai/stable-diffusion-3.5-large"), resolve("sd3-sampler")
    assert one.noise == StyleFriendlyNoise(mean=-6, std=2) and one.adapter == LoRA(rank=32, alpha=None)
    assert (one.optim.lr, one.optim.steps, one.optim.batch, one.optim.accumulate, one.data.size) == (
        1e-4,
        300,
        1,
        4,
        1024,
    )
    assert noise_law(two).log_snr == pytest.approx((-2.19722, 2.0), abs=1e-5)  # type: ignore[attr-defined]


def test_recipes_share_what_belongs_to_the_base():
    one, two = resolve("style-friendly"), resolve("sd3-sampler")
    different = {field.name for field in fields(one) if getattr(one, field.name) != getattr(two, field.name)}
    assert different == {"recipe", "noise"} and one.data.size == 128
    assert one.optim.lr == cards.card("mini-sd3")["train"]["lr"]


def test_who_wins(tmp_path, tiny_sd3, monkeypatch):
    (tmp_path / "mine.toml").write_text("rank = 8\nsteps = 9\nnoise_mean = -4\n[impasto]\nbase_sha256 = 'x'\n")
    recipe = str(tmp_path / "mine.toml")
    assert resolve(recipe, str(tiny_sd3)).optim.steps == 9  # the recipe beats the card
    assert resolve(recipe, str(tiny_sd3), steps=3).optim.steps == 3  # a flag beats both
    assert resolve(recipe, str(tiny_sd3)).noise.mean == -4.0
    card = cards.card(str(tiny_sd3)) | {"recipes": {recipe: {"noise_mean": -1.5}}}
    monkeypatch.setattr("impasto.bases.cards.card", lambda base: card)
    assert resolve(recipe, str(tiny_sd3)).noise.mean == -1.5  # what the base says of this recipe beats it


def test_resolve_another_noise_law_drops_the_recipes_parameters():
    assert resolve("style-friendly-offset", noise="uniform").noise == UniformNoise(offset=0.01)  # offset belongs to all
    assert resolve("style-friendly", noise="logit-normal", noise_shift=2.0).noise == LogitNormalNoise(shift=2.0)
    assert resolve("style-friendly", noise="style-friendly").noise.mean == -6


def test_resolve_recipe_without_a_law_has_the_default_one(tmp_path):
    (tmp_path / "own.toml").write_text("noise_mean = -4.0")
    assert resolve(str(tmp_path / "own.toml"), noise="style-friendly").noise.mean == -4.0
    assert resolve(str(tmp_path / "own.toml"), noise="uniform").noise == UniformNoise()


def test_flat_and_nested_recipes_are_the_same(tmp_path):
    """The flat form of earlier versions states keys of classes that are not selected, at their defaults."""
    flat = 'noise = "sd3"\nnoise_shift = 2.0\ntext_encoder_lora = true\nrank = 4\nlr = 3e-4\ndco_beta = 1.0\n'
    nested = '[noise]\nname = "sd3"\nshift = 2.0\n[text]\nname = "lora"\n[adapter]\nrank = 4\n[optim]\nlr = 3e-4\n'
    for name, text in (("flat", flat), ("nested", nested)):
        (tmp_path / f"{name}.toml").write_text(text)
    one, two = (resolve(str(tmp_path / f"{name}.toml")) for name in ("flat", "nested"))
    assert change(one, recipe="x") == change(two, recipe="x") and one.text == TextLoRA()
    assert one.adapter.rank == 4 and one.noise == SD3Noise(shift=2.0)


@pytest.mark.parametrize("name", recipes())
def test_recipe_toml_and_flat_keys_lose_nothing(tmp_path, name):
    config = resolve(name, "mini-sd15", text_encoder_lora=name == "uniform")
    config = change(config, **{"adapter.alpha": 8.0} if hasattr(config.adapter, "alpha") else {})
    (tmp_path / "recipe.toml").write_text(recipe_text(config, {"captions": ["a cat"]}))
    flat, own = read_recipe_file(tmp_path / "recipe.toml")
    assert flat | {"hub_private": False} == flatten(config) and own == {"captions": ["a cat"]}
    assert make_config(**flat) == make_config(**nest(config)) == config


def test_keys_of_another_class_are_refused():
    with pytest.raises(
        UserError, match=r"'denoise' has no objective\.beta .*: leave it out, or choose --objective dco"
    ):
        resolve(dco_beta=100.0)
    with pytest.raises(UserError, match=r"'uniform' has no noise\.mean \(it has noise\.offset, noise\.shift\)"):
        resolve(noise="uniform", noise_mean=-4.0)
    with pytest.raises(UserError, match=r"'frozen' has no text\.lr"):
        resolve(text_encoder_lr=1e-4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rnk = 3", "unknown key 'rnk': did you mean 'rank'"),
        ("rank = 'big'", "rank must be int, not 'big'"),
        ("rank = true", "rank must be int"),
        ("lr = 'fast'", "lr must be float"),
        ("targets = 'to_q'", "targets must be a list"),
        ("schedule = 'zigzag'", "schedule must be one of constant, linear, cosine"),
        ("[noise]\nmeen = 3", "'style-friendly' has no noise.meen .*did you mean 'noise.mean'"),
        ("[optim]\nlr = 3\nstep = 4", "unknown key 'step' of optim: did you mean 'steps'"),
        ("rank = ", "not valid TOML"),
    ],
)
def test_a_recipe_file_is_read_strictly(tmp_path, content, message):
    (tmp_path / "bad.toml").write_text(content)
    with pytest.raises(UserError, match=message):
        resolve(str(tmp_path / "bad.toml"))


def test_flags_of_data_reach_recipe_toml(tmp_path):
    """Repeated flags are lists, numbers stay numbers in a recipe file."""
    flags = ["--image", "a", "--image", "b.png", "--repeats", "1", "--repeats", "20", "--mask", "files", "--flip"]
    config, _ = parse_config([*flags, "--trigger", "wibble", "--crops", "3", "--caption-dropout", "0.1"], "train")
    assert config.data.repeats == (1, 20) and config.data.mask == "files" and config.data.flip
    assert config.data.crops == 3 and config.data.caption_dropout == 0.1
    (tmp_path / "recipe.toml").write_text(recipe_text(config, {}))
    assert resolve(str(tmp_path / "recipe.toml")).data.repeats == (1, 20)


def test_flags_select_the_classes_and_their_keys(capsys):
    config, _ = parse_config(
        ["--noise", "uniform", "--noise.shift", "2", "--adapter.rank", "4", "--lr", "3e-4"], "train"
    )
    assert config.noise == UniformNoise(shift=2.0) and config.adapter.rank == 4 and config.optim.lr == 3e-4
    config, _ = parse_config(["--rank", "8", "--noise-mean=-4", "--text-encoder-lora", "--prior-weight", "0"], "train")
    assert config.adapter.rank == 8 and config.noise.mean == -4 and config.text == TextLoRA()
    note = capsys.readouterr().err
    assert "--noise-mean is now --noise.mean" in note and "--text-encoder-lora is now --text lora" in note
    assert "--rank" not in note
    with pytest.raises(SystemExit):
        parse_config(["--noise", "uniform", "--noise.mean", "3"], "train")
    assert "Unrecognized options: --noise.mean" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "flags", "lr"),
    [
        ('optimizer = "prodigy"', {}, 1.0),
        ('optimizer = "prodigy"\nlr = 0.5', {}, 0.5),
        ('optimizer = "prodigy"\nlr = 0.5', {"optimizer": "adamw"}, 1e-3),  # the base's: its card says so
        ('optimizer = "prodigy"\nlr = 0.5', {"optimizer": "adamw", "lr": 2e-4}, 2e-4),
        ("lr = 3e-4", {}, 3e-4),
        ("lr = 3e-4", {"optimizer": "muon"}, 3e-4),
        ("lr = 3e-4", {"optimizer": "prodigy"}, 1.0),
        ("", {}, 1e-3),
    ],
)
def test_a_learning_rate_belongs_to_its_optimiser(tmp_path, tiny_sd3, recipe, flags, lr):
    (tmp_path / "own.toml").write_text(recipe)
    assert resolve(str(tmp_path / "own.toml"), str(tiny_sd3), **flags).optim.lr == lr


def test_unknown_names():
    with pytest.raises(UserError, match="did you mean 'style-friendly'"):
        resolve("style-frendly")
    with pytest.raises(UserError, match="did you mean 'noise_mean'"):
        resolve(noise_men=1.0)


@pytest.mark.parametrize(
    "changes",
    [{"rank": 0}, {"lr": 0.0}, {"steps": -1}, {"ema": 1.0}, {"alpha": -1.0}, {"clip": -1.0}, {"lr": float("nan")}],
)
def test_numbers_out_of_range(changes):
    with pytest.raises(UserError, match=f"{next(iter(changes))} must be"):
        resolve(**changes)


def test_a_warm_up_ends_before_the_run_does():
    resolve(warmup=10, steps=10)
    with pytest.raises(UserError, match="warmup 11 is more than steps 10"):
        resolve(warmup=11, steps=10)


def test_free_keys_exist():
    assert set(FREE) - {
        "components",
        "pairs",
        "concept_file",
        "checkpointing",
        "push_to_hub",
        "hub_private",
    } <= flatten(TrainConfig()).keys() | {one.name for method in (FineStyle, StyleDrop) for one in fields(method)}
    assert all(kind_of(key) is not None for key in FREE)


def test_the_histogram_shows_where_a_law_lies():
    noise = histogram(noise_law(resolve("style-friendly", noise_mean=-6.0)))
    assert noise["log_snr"]["median"] == pytest.approx(-6, abs=0.1)
    assert noise["sigma"]["median"] == pytest.approx(0.9526, abs=5e-3)
    for part in noise.values():
        assert sum(part["shares"]) == pytest.approx(1, abs=1e-3)
    assert noise["sigma"]["shares"][9] == pytest.approx(0.7889, abs=0.02)
    text = bars(noise)
    assert "sigma 0.940" in text and "█" * 36 in text


def test_a_recipe_may_name_its_base(tiny_sd3, tmp_path):
    """Its card counts too; a base that is given beats it."""
    (tmp_path / "own.toml").write_text(f'base = "{tiny_sd3}"\nrank = 3\n')
    (tmp_path / "none.toml").write_text("rank = 3\n")
    own, none = (str(tmp_path / f"{name}.toml") for name in ("own", "none"))
    assert resolve(own) == resolve(own, str(tiny_sd3)) and resolve(own).base == str(tiny_sd3)
    assert resolve(own).optim.steps == 6 != resolve(none).optim.steps
    assert resolve(own, "mini-sd3") == change(resolve(none, "mini-sd3"), recipe=own)
    assert resolve(none).base == resolve().base == "mini-sd3"
