"""Runs on a tiny Muse folder: train, resume, generate, evaluate, FineStyle; what does not apply to it is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from impasto.bases.loader import load
from impasto.cli.main import main
from impasto.config import resolve
from impasto.errors import UserError
from impasto.generation import generate
from impasto.guidance.config import PromptSwitch, StyleAligned
from impasto.invert import invert_image
from impasto.noise.laws import CosineMask
from impasto.objectives.config import MaskedTokens
from impasto.regions.attention import attention_maps
from impasto.sampling.sample import Sampling
from impasto.training.train import train

CAPTION = "a rocket in ink style"


def config_of(base, picture, out, **keys):
    given = {"image": [str(picture)], "caption": [CAPTION], "preview": False, "tensorboard": False, "size": 16}
    return resolve(
        keys.pop("recipe", None), str(base), out=out, **(given | {"steps": 4, "batch": 2, "lr": 1e-2} | keys)
    )


def command(monkeypatch, capsys, *args):
    monkeypatch.setattr("sys.argv", ["impasto", *map(str, args)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr()


def test_recipe_of_the_base_is_the_papers(tiny_muse, picture, tmp_path):
    config = config_of(tiny_muse, picture, tmp_path / "run")
    assert config.recipe == "cosine-mask" and config.objective == MaskedTokens()
    assert type(config.noise).__name__ == "CosineMaskNoise"


def test_cosine_mask_is_the_law_of_the_ratios():
    law, u = CosineMask(), torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    m = torch.sigmoid(-law.quantile(u) / 2)
    torch.testing.assert_close(m, torch.cos(u * torch.pi / 2))
    torch.testing.assert_close(law.cdf(law.quantile(u)), u)
    lam = torch.linspace(-8, 8, 33, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(law.cdf(lam).sum(), lam)
    torch.testing.assert_close(law.pdf(lam), slope)
    drawn = law([torch.Generator().manual_seed(0)] * 20000)
    assert torch.sigmoid(-drawn / 2).mean().item() == pytest.approx(2 / torch.pi, abs=0.01)


@pytest.mark.filterwarnings("ignore:after")
def test_stopped_run_ends_as_one_that_was_not(tiny_muse, picture, tmp_path):
    whole = config_of(tiny_muse, picture, tmp_path / "whole", checkpoint_every=2, caption_dropout=0.3)
    train(whole)
    stopped = config_of(tiny_muse, picture, tmp_path / "stopped", checkpoint_every=2, caption_dropout=0.3)

    def stop(phase, step=0, total=None, note=""):
        if phase == "training" and step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, progress=stop)
    assert train(stopped)["resumed_from"] == 2
    first, second = (load_file(next(config.out.glob("*.safetensors"))) for config in (whole, stopped))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    rows = [(config.out / "metrics.jsonl").read_text().splitlines() for config in (whole, stopped)]
    losses = [[json.loads(row)["loss"] for row in some] for some in rows]
    assert losses[0] == losses[1] and 0 <= json.loads(rows[0][0])["accuracy"] <= 1


@pytest.mark.filterwarnings("ignore:after")
def test_train_learns_the_tokens_of_its_image(tiny_muse, picture, tmp_path):
    config = config_of(tiny_muse, picture, tmp_path / "run", steps=40, batch=4, lr=3e-2, **{"adapter.rank": 8})
    train(config)
    losses = [json.loads(row)["loss"] for row in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-5:]) < 0.75 * losses[0]
    plain, styled = (
        next(generate(str(tiny_muse), [CAPTION], styles=style, seed=1))[0] for style in ([], [f"{config.out}:1"])
    )
    assert (np.asarray(plain) != np.asarray(styled)).any()


@pytest.mark.filterwarnings("ignore:after")
def test_commands_train_generate_and_evaluate(tiny_muse, picture, tmp_path, monkeypatch, capsys):
    out, images = tmp_path / "run", tmp_path / "images"
    common = ("--base", tiny_muse)
    flags = ("--image", picture, "--caption", CAPTION, "--steps", 1, "--size", 16, "--no-tensorboard", "--out", out)
    code, _ = command(monkeypatch, capsys, "train", *common, *flags)
    assert code == 0 and (out / "README.md").read_text().count("MusePipeline") == 2
    temperatures = ("--temperature", 3, "--token-temperature", 0.5)
    flags = ("--style", out, "--prompt", "a cat", *temperatures, "--lambda1", 1, "--out", images)
    code, _ = command(monkeypatch, capsys, "generate", *common, *flags)
    info = json.loads(Image.open(images / "0000.png").text["impasto"])
    assert code == 0 and (info["temperature"], info["token_temperature"]) == (3, 0.5)
    assert info["style_semantics"]["lambda1"] == 1
    code, found = command(monkeypatch, capsys, "--json", "evaluate", images, "--reference", picture)
    assert code == 0, found.err


def test_images_do_not_depend_on_their_batch(tiny_muse):
    prompts = ["a cat", "a rocket", "a star"]
    several, single = (
        [np.asarray(image) for image, _ in generate(str(tiny_muse), prompts, sampling=Sampling(batch=batch))]
        for batch in (3, 1)
    )
    assert np.array_equal(several, single)


@pytest.mark.filterwarnings("ignore:after")
@pytest.mark.filterwarnings("ignore:no region shows")  # a random base
def test_finestyle_finds_its_concepts_and_trains(tiny_muse, tmp_path):
    scene = np.full((16, 16, 3), 255, np.uint8)
    scene[2:7, 2:7], scene[9:15, 8:15] = (200, 30, 30), (30, 30, 200)
    Image.fromarray(scene).resize((64, 64), Image.Resampling.NEAREST).save(tmp_path / "scene.png")
    keys = {"recipe": "finestyle", "steps": 1, "method.finder": "error", "noise": "cosine-mask"}
    keys["caption"] = ["a rocket and a cat in ink style"]
    config = config_of(tiny_muse, tmp_path / "scene.png", tmp_path / "run", **keys)
    assert len(train(config)["concepts"]) >= 2
    guidance = json.loads((config.out / "style.json").read_text())["guidance"]
    assert "style-semantics" in guidance
    family = load(str(tiny_muse), device="cpu", precision="fp32")
    maps = attention_maps(family, Image.fromarray(scene), keys["caption"][0], ["rocket", "cat"])
    assert maps.shape == (2, 8, 8) and maps.min() == 0 and maps.max() == 1


@pytest.mark.parametrize(
    "keys, message",
    [
        (
            {"objective": "denoise"},
            "denoise is not for this base, which predicts masked tokens: use masked-tokens",
        ),
        ({"objective": "dco"}, "--objective dco is not for this base"),
        ({"objective": "denoise", "weighting": "min-snr"}, "--objective denoise is not for this base"),
        ({"recipe": "instastyle", "objective": "masked-tokens"}, "a base of masked tokens cannot be inverted"),
        ({"objective.label_smoothing": 1.0}, "label_smoothing must be from 0 to below 1"),
        ({"size": 15}, "size must be a multiple of 2"),
    ],
)
def test_settings_that_do_not_apply_are_refused(tiny_muse, picture, tmp_path, keys, message):
    with pytest.raises(UserError, match=message):
        train(config_of(tiny_muse, picture, tmp_path / "run", **keys))


def test_masked_tokens_on_another_base_is_refused(tiny_sd3, picture, tmp_path):
    with pytest.raises(UserError, match="masked-tokens is not for this base, which has Gaussian noise: use denoise"):
        train(config_of(tiny_sd3, picture, tmp_path / "run", objective="masked-tokens"))


@pytest.mark.parametrize(
    "sampling, guidances, message",
    [
        ({"steps": 0}, (), "steps must be at least 1"),
        ({"temperature": -1.0}, (), "temperature must be a finite number from 0"),
        ({"token_temperature": -1.0}, (), "token-temperature must be a finite number from 0"),
        ({"guidance": -1.0}, (), "guidance must be a finite number from 0"),
        ({"sampler": "euler"}, (), "sampler 'euler' is for Gaussian noise"),
        ({"size": 15}, (), "size must be a multiple of 2"),
        ({}, (PromptSwitch("{prompt} in ink", -4.0),), "switch-to is for bases that denoise"),
        ({}, (StyleAligned("picture", "a cat"),), "aligned-to inverts its reference"),
    ],
)
def test_sampling_that_does_not_apply_is_refused(tiny_muse, picture, sampling, guidances, message):
    own = [StyleAligned(picture, one.caption) if isinstance(one, StyleAligned) else one for one in guidances]
    with pytest.raises(UserError, match=message):
        generate(str(tiny_muse), ["a cat"], sampling=Sampling(**sampling), guidances=own)


def test_temperature_on_another_base_and_inversion_are_refused(tiny_sd3, tiny_muse, picture, tmp_path):
    with pytest.raises(UserError, match="temperature is for bases that draw tokens"):
        generate(str(tiny_sd3), ["a cat"], sampling=Sampling(temperature=2.0))
    with pytest.raises(UserError, match="token-temperature is for bases that draw tokens"):
        generate(str(tiny_sd3), ["a cat"], sampling=Sampling(token_temperature=0.5))
    with pytest.raises(UserError, match="masked tokens cannot be inverted"):
        invert_image(str(tiny_muse), picture, "a cat", out=tmp_path, size=16)


@pytest.mark.filterwarnings("ignore:after")
def test_lora_of_a_diffusion_base_is_refused(tiny_muse, tiny_sd15, picture, tmp_path):
    config = config_of(tiny_sd15, picture, tmp_path / "run", recipe="style-friendly", steps=1)
    train(config)
    with pytest.raises(UserError):
        generate(str(tiny_muse), ["a cat"], styles=[str(config.out)])


def test_bf16_predicts_nearly_the_same(tiny_muse):
    exact, rounded = (load(str(tiny_muse), device="cpu", precision=precision) for precision in ("fp32", "bf16"))
    z = torch.full((1, 1, 8, 8), 39)
    with torch.no_grad():
        logits = [f.predict(z, torch.tensor([-9.0]), f.encode_prompt(["a cat"])).float() for f in (exact, rounded)]
    assert (logits[0] - logits[1]).abs().max() < 0.1 * logits[0].abs().max()
