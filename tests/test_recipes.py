"""Every recipe on every family: what it resolves to, on which it makes no sense, and what the papers say of it."""

import warnings

import pytest
import torch

from impasto.adapters.base import adapter_of
from impasto.adapters.lora import endings
from impasto.bases import loader
from impasto.bases.cards import card
from impasto.bases.style_defaults import of_card
from impasto.cli.settings import parse_config
from impasto.config import TrainConfig, change, flatten, read_recipe, recipes, resolve
from impasto.errors import UserError
from impasto.noise.laws import noise_law, truncate_to_schedule
from impasto.objectives.base import build_objective
from impasto.objectives.config import DCO, Denoise
from impasto.training import prior

CANNOT = {("style-friendly-image-stream", name): "target 'image_stream' matches no layer" for name in ("sd15", "sdxl")}
CANNOT |= {("distill", name): "target 'convolution' matches no layer" for name in ("sd3", "flux", "schnell")}
FLUX, SD35 = "black-forest-labs/FLUX.1-dev", "stabilityai/stable-diffusion-3.5-large"
QKVO = ["to_k", "to_out.0", "to_q", "to_v"]


@pytest.fixture(scope="module", params=["sd3", "sd15", "sdxl", "flux", "schnell"])
def named(request):
    folder = request.getfixturevalue(f"tiny_{request.param}")
    return request.param, loader.load(str(folder), device="cpu", precision="fp32")


@pytest.mark.filterwarnings("ignore:the prompt is too long")  # for the tiny bases' tokenizers of letters
def test_every_recipe_on_every_family(named):
    """Law, layers and objective, as `train` takes them; or one line that says why not, and what there is."""
    name, family = named
    for recipe in recipes():
        config = resolve(recipe, str(family.folder))
        lam = truncate_to_schedule(noise_law(config), family.schedule)([torch.Generator().manual_seed(0)] * 100)
        assert lam.isfinite().all() and lam.min() >= family.schedule.range[0]
        if (recipe, name) in CANNOT:
            with pytest.raises(UserError, match=CANNOT[recipe, name]) as error:
                endings(family, config.adapter.targets)
            assert "known: attention" in str(error.value) or "self_attention" in str(error.value)
            assert "\n" not in str(error.value)
        else:
            assert adapter_of(config.adapter).count(family, config.adapter, family.denoiser) > 0
        if recipe == "distill":
            with pytest.raises(UserError, match="needs a base to learn from"):
                build_objective(config.objective, family)
            config = change(config, **{"objective.teacher": str(family.folder)})
        build_objective(config.objective, family)


@pytest.fixture(autouse=True)
def _priors_without_images(monkeypatch):
    """Images for prior preservation are tested in tests/objectives."""
    monkeypatch.setattr(prior.PriorSampler, "latent", lambda self, prompt, seed: torch.zeros(1, 4, 8, 8))


def test_every_recipe_says_what_it_is():
    for name, file in recipes().items():
        lines = file.read_text().splitlines()
        comment = [line for line in lines if line.startswith("#")]
        assert lines[0] in comment and len(" ".join(comment)) > 80, name
        assert max(map(len, lines)) <= 120, name
        assert {"noise.name", "adapter.name"} & read_recipe(name).keys(), name
        stages = name == "dreambooth" or "method.name" in read_recipe(name)
        if not stages and not name.endswith("-paper"):  # rate, steps and size are the base's own
            assert not any(path.startswith(("optim.", "data.")) for path in read_recipe(name)), name


@pytest.mark.parametrize(
    ("recipe", "mean", "std"),
    [
        ("style-friendly", -6, 2),
        ("style-friendly-128px", -1.84, 2),
        ("sd3-sampler", -2.19722, 2),
        ("sd3-128px", 1.96166, 2),
        ("logit-normal", 0, 2),
        ("style-friendly-offset", -6, 2),
        ("sd3-offset", -2.19722, 2),
        ("dco", -2.19722, 2),
        ("dco-style-friendly", -6, 2),
    ],
)
def test_the_laws_in_log_snr(recipe, mean, std):
    law = noise_law(resolve(recipe))
    quantiles = law.quantile(torch.tensor([0.5, 0.841344746], dtype=torch.float64)).tolist()
    assert quantiles == pytest.approx([mean, mean + std], abs=1e-4)


def test_the_matched_means_are_sd3_s_rule():
    """log-SNR moves by the log of the ratio of positions: 128^2 to 16^2 is + 4.1589."""
    move = torch.log(torch.tensor(128**2 / 16**2)).item()
    for raw, matched in (("style-friendly", "style-friendly-128px"), ("sd3-sampler", "sd3-128px")):
        one, two = (noise_law(resolve(name)).quantile(torch.tensor(0.5)).item() for name in (raw, matched))
        assert two - one == pytest.approx(move, abs=2e-3)


def differing(one, two):
    return {key for key in one.keys() | two.keys() if one.get(key) != two.get(key)}


def test_prior_preservation_is_style_friendly_with_a_prior_and_on_the_small_base_sd3_s_law():
    for base in (SD35, FLUX):
        one, two = flatten(resolve("prior-preservation", base)), flatten(resolve("style-friendly", base))
        assert differing(one, two) == {"recipe", "prior_weight", "prior_prompt"}
    small, plain = flatten(resolve("prior-preservation", "mini-sd3")), flatten(resolve("sd3-sampler", "mini-sd3"))
    assert differing(small, plain) == {"recipe", "prior_weight", "prior_batch", "lr"}
    one, two = flatten(resolve("prior-preservation", "mini-sd15")), flatten(resolve("style-friendly", "mini-sd15"))
    assert differing(one, two) == {"recipe", "prior_weight", "prior_batch"}


DCO_KEYS = {"dco_beta", "dco_reduction", "weighting", "gamma"}
"""Of the one and of the other objective."""


@pytest.mark.parametrize(
    ("recipe", "of", "differs"),
    [
        ("dco", "sd3-sampler", {"objective", *DCO_KEYS}),
        ("dco-100", "dco", {"dco_beta"}),
        ("dco-1000", "dco", {"dco_beta"}),
        ("dco-sum", "dco", {"dco_reduction"}),
        ("dco-style-friendly", "style-friendly", {"objective", *DCO_KEYS}),
        ("sd3-offset", "sd3-sampler", {"offset_noise"}),
        ("style-friendly-offset", "style-friendly", {"offset_noise"}),
        ("style-friendly-128px", "style-friendly", {"noise_mean"}),
        ("sd3-128px", "sd3-sampler", {"noise_shift"}),
        ("style-friendly-rank-4", "style-friendly", {"rank"}),
        ("sd3-rank-128", "sd3-sampler", {"rank"}),
        ("style-friendly-image-stream", "style-friendly", {"targets"}),
    ],
)
def test_an_ablation_changes_one_thing(recipe, of, differs):
    for base in ("mini-sd3", SD35, FLUX):
        one, two = flatten(resolve(recipe, base)), flatten(resolve(of, base))
        assert differing(one, two) == differs | {"recipe"}


def test_the_text_stream_ablation_is_the_paper_s(tiny_sd3, tiny_flux):
    """P-SF C.1 on SD3.5: without add_*_proj and to_add_out. On FLUX the paper's list less add_*_proj, by its card."""
    one = loader.load(str(tiny_sd3), device="cpu", precision="fp32")
    assert endings(one, resolve("style-friendly-image-stream", SD35).adapter.targets) == QKVO
    two = loader.load(str(tiny_flux), device="cpu", precision="fp32")
    whole, ablated = (
        set(endings(two, resolve(r, FLUX).adapter.targets)) for r in ("style-friendly", "style-friendly-image-stream")
    )
    assert whole - ablated == {"add_q_proj", "add_k_proj", "add_v_proj"} and ablated == {*QKVO, "proj_mlp", "proj_out"}


def test_flags_and_recipe_of_the_new_keys(tmp_path):
    """What a run writes is a recipe again; a flag that has no effect is refused."""
    from impasto.training.run_folder import recipe_text

    config = resolve("dco-sum", offset_noise=0.2)
    (tmp_path / "recipe.toml").write_text(recipe_text(config, {}))
    again = resolve(str(tmp_path / "recipe.toml"))
    assert again.objective == config.objective == DCO(beta=1.0, reduction="sum") and again.noise.offset == 0.2
    assert resolve("dco-sum", objective="denoise").objective == Denoise()
    assert TrainConfig().noise.offset == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve("dco-1000")


def test_keep_content_is_the_earlier_name_of_prior_preservation(capsys):
    config, _ = parse_config(["--recipe", "keep-content", "--base", "mini-sd3"], "train")
    assert config == parse_config(["--recipe=prior-preservation", "--base", "mini-sd3"], "train")[0]
    assert config.prior.weight == 1 and config.recipe == "prior-preservation"
    assert capsys.readouterr().err.count("--recipe keep-content is now --recipe prior-preservation") == 1
    assert of_card(card("mini-sd3"), "keep-content") == of_card(card("mini-sd3"), "prior-preservation")
    assert of_card(card("mini-sd3"), "keep-content").style_guidance == 3
