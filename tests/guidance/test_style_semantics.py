"""Style and semantic guidance: the rule, its identities, every family, the flags and the style's defaults."""

import json
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from impasto.adapters.base import adapter_of
from impasto.adapters.config import KVBottleneck, LoRA
from impasto.adapters.lora import disabled
from impasto.adapters.text_encoder import FROZEN
from impasto.bases.loader import load
from impasto.cli.main import main
from impasto.errors import UserError
from impasto.generation import generate
from impasto.guidance import merged, style_guidance
from impasto.guidance.config import PromptSwitch, StyleAligned, StyleSemantics
from impasto.guidance.style_semantics import guiding, terms
from impasto.sampling.sample import Sampling
from impasto.styles import save
from impasto.styles.load import load_style


def save_style(base, folder, settings=None):
    """A style of random weights that does something."""
    settings = settings or LoRA(rank=4, alpha=6.0)
    family = load(str(base), device="cpu", precision="fp32")
    shared = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in adapter_of(settings).attach(family, settings, 0).values():
            p.add_(0.3 * torch.randn(p.shape, generator=shared))
    folder.mkdir(exist_ok=True)
    save.save(family, folder, FROZEN, adapter_of(settings))
    return folder


@pytest.fixture
def style(tiny_base, tmp_path):
    return save_style(tiny_base, tmp_path / "style")


def drawn(base, style, *guidances, prompts=("a cat", "a rocket"), **sampling):
    """uint8 images as int, and the Info of the first."""
    settings = Sampling(steps=3, **sampling)
    made = generate(str(base), prompts, styles=[f"{style}:1"], seed=3, sampling=settings, guidances=guidances)
    images, info = zip(*made, strict=True)
    return np.stack([np.asarray(image) for image in images]).astype(int), info[0]


def test_terms_add_up_to_1_and_0_is_left_out():
    for a, b, c in product((0.0, 1.0, 3.0), repeat=3):
        found = terms(StyleSemantics(a, b, c))
        assert sum(found.values()) == pytest.approx(1) and all(found.values())
        assert [key for key in found if key[0]] == list(found)[: sum(key[0] for key in found)]
    assert terms(StyleSemantics()) == {(True, "prompt"): 1}
    assert len(terms(StyleSemantics(3, 2, 3))) == 3  # B(t) cancels
    assert len(terms(StyleSemantics(3, 2, 1))) == 4


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("weights", [(3.0, 2.0, 1.0), (3.0, 2.0, 3.0), (0.0, 2.0, 0.0), (2.0, 0.0, 5.0)])
@torch.no_grad()
def test_guiding_every_family_returns_the_rule(tiny_base, style, weights, batched, monkeypatch):
    """Methods.md 2.6, against four predictions taken one by one."""
    if not batched:
        monkeypatch.setattr(style_guidance, "is_plain_lora", lambda denoiser: False)
    family = load(str(tiny_base), device="cpu", precision="fp32")
    pipe = family.pipeline()
    denoiser = getattr(pipe, family.part)
    load_style(pipe, style, 1.0)
    conds = {name: family.encode_prompt([text], pipe=pipe) for name, text in TEXTS.items()}
    calls = {name: (lambda *a, n=name: predict_with(family, pipe, conds[n], *a)) for name in conds}
    styled = {name: call() for name, call in calls.items()}
    with disabled(denoiser):
        base = {name: call() for name, call in calls.items()}
    a, b, c = weights
    t = "prompt"
    wanted = styled[t] + a * (styled[t] - base[t]) + b * (styled[t] - styled["n2"]) + c * (base[t] - base["n1"])
    nulls = {name: conds[name] for name in ("n1", "n2")}
    with guiding(family, denoiser, terms(StyleSemantics(a, b, c)), nulls, False):
        found = calls[t]()
    assert (found - wanted).abs().max() < 1e-4 * max(1.0, float(wanted.abs().max()))
    assert min((styled[t] - base[t]).abs().max(), (styled[t] - styled["n2"]).abs().max()) > 1e-4
    assert torch.equal(calls[t](), styled[t])  # as it was


TEXTS = {"prompt": "a cat in ink", "n1": "", "n2": "neon drawing"}


def predict_with(family, pipe, cond, *args):
    """The first prediction of the pipeline's own loop for this condition."""
    denoiser, seen = getattr(pipe, family.part), []
    handle = denoiser.register_forward_hook(lambda module, args, out: seen.append(out[0].clone()))
    pipe.set_progress_bar_config(disable=True)
    call = family.call_arguments(cond, None)
    pipe(**call, num_inference_steps=1, guidance_scale=1.0, height=16, width=16, output_type="latent",
         generator=torch.Generator().manual_seed(0))  # fmt: skip
    handle.remove()
    return seen[0]


def test_all_0_is_the_adapted_model_to_the_bit(tiny_base, style):
    family = load(str(tiny_base), device="cpu", precision="fp32")
    plain = {} if family.guided_by != "negative" else {"guidance": 1.0}
    images, info = drawn(tiny_base, style, StyleSemantics(0.0, 0.0, 0.0))
    own, _ = drawn(tiny_base, style, style_guidance=0.0, negative="", **plain)
    assert np.array_equal(images, own)
    assert info["style_semantics"] == {"lambda1": 0, "lambda2": 0, "lambda_base": 0, "n1": "", "n2": ""}


@pytest.mark.parametrize("kind", ["sd15", "sd3", "sdxl", "muse"])
def test_semantics_alone_is_ordinary_guidance_of_1_more(kind, request, tmp_path):
    base = request.getfixturevalue(f"tiny_{kind}")
    style = save_style(base, tmp_path / "style")
    images, info = drawn(base, style, StyleSemantics(0.0, 2.0, 0.0, n2="ink"))
    ordinary, _ = drawn(base, style, guidance=3.0, style_guidance=0.0, negative="ink")
    assert np.abs(images - ordinary).max() <= 2 and info["guidance"] == 1.0
    assert np.abs(images - drawn(base, style, StyleSemantics(0.0, 2.0, 0.0))[0]).max() > 2


@pytest.mark.parametrize("kind", ["sd15", "sd3"])
def test_styledrops_form_and_the_adapter_in_the_positive_branch_alone(kind, request, tmp_path):
    """(s, 0, b) and style guidance of the same weights; (w - 1, 0, w - 1)."""
    base = request.getfixturevalue(f"tiny_{kind}")
    style = save_style(base, tmp_path / "style")
    for weights in ((2.0, 1.5), (2.0, 2.0)):
        images, _ = drawn(base, style, StyleSemantics(weights[0], 0.0, weights[1]))
        sampling = {"style_guidance": weights[0], "base_guidance": weights[1]}
        other, _ = drawn(base, style, guidance=1.0, negative="", **sampling)
        assert np.abs(images - other).max() <= 2


def test_images_do_not_depend_on_their_batch(tiny_base, style):
    asked = StyleSemantics(2.0, 1.0, 1.0, n2="ink")
    both, _ = drawn(tiny_base, style, asked, batch=2)
    single, _ = drawn(tiny_base, style, asked, batch=1)
    assert np.abs(both - single).max() <= 1
    alone, _ = drawn(tiny_base, style, asked, prompts=("a cat",), batch=4)
    assert np.abs(both[0] - alone[0]).max() <= 1


def test_a_kv_bottleneck_is_guided_as_a_lora_is(tiny_sd15, tmp_path):
    style = save_style(tiny_sd15, tmp_path / "style", KVBottleneck(dim=2))
    weak, strong = (drawn(tiny_sd15, style, StyleSemantics(x, 1.0, 0.0))[0] for x in (0.0, 3.0))
    assert np.abs(weak - strong).max() > 2


def test_style_json_gives_the_default_and_flags_change_parts_of_it(tiny_sd3, tmp_path):
    style = save_style(tiny_sd3, tmp_path / "style")
    table = {"style-semantics": {"lambda1": 3, "lambda2": 2, "lambda_base": 3, "n2": "ink"}}
    (style / "style.json").write_text(json.dumps({"guidance": table}))

    def info_of(guidances, **sampling):
        settings = Sampling(steps=2, **sampling)
        return next(generate(str(tiny_sd3), ["a cat"], styles=[str(style)], guidances=guidances, sampling=settings))[1]

    own = {"lambda1": 3, "lambda2": 2, "lambda_base": 3, "n1": "", "n2": "ink"}
    assert info_of(None)["style_semantics"] == own and info_of(None)["style_guidance"] == 0
    assert info_of([StyleSemantics(lambda1=1.0, n2="")])["style_semantics"] == own | {"lambda1": 1, "n2": ""}
    switch = PromptSwitch("{prompt} in ink", 0.0)
    assert info_of([switch])["style_semantics"] == own
    assert "style_semantics" not in info_of((), guidance=2.0)


def test_merged_keeps_defaults_of_other_classes():
    switch, own = PromptSwitch("x", 0.0), StyleSemantics(1.0, 2.0, n2="ink")
    assert merged([StyleSemantics(0.0)], [own, switch]) == (StyleSemantics(0.0, 2.0, None, None, "ink"), switch)
    assert merged([switch], []) == (switch,)


def test_flags_of_generate_state_the_rule(tiny_sd3, tmp_path, monkeypatch):
    style = save_style(tiny_sd3, tmp_path / "style")
    flags = ["--lambda1", "2", "--lambda2", "1.5", "--semantics-null", "ink", "--base-null", "a"]
    args = ["impasto", "generate", "--base", str(tiny_sd3), "--style", str(style), "--prompt", "a cat", "--steps", "2"]
    monkeypatch.setattr("sys.argv", [*args, *flags, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    told = json.loads(Image.open(tmp_path / "out" / "0000.png").info["impasto"])["style_semantics"]
    assert told == {"lambda1": 2, "lambda2": 1.5, "lambda_base": 0, "n1": "a", "n2": "ink"}


@pytest.mark.parametrize("keys", [{"lambda1": -1.0}, {"lambda2": float("nan")}, {"lambda_base": float("inf")}])
def test_weights_that_are_negative_or_not_finite_are_refused(keys):
    with pytest.raises(UserError, match=f"{next(iter(keys)).replace('_', '-')} must be a finite number from 0 on"):
        StyleSemantics(**keys)


@pytest.mark.parametrize(
    ("sampling", "says"),
    [
        ({"guidance": 4.0}, "--guidance and .* exclude each other: --lambda2 3 is the same"),
        ({"style_guidance": 2.0}, "--style-guidance .* it is --lambda1"),
        ({"base_guidance": 2.0}, "--base-guidance .* it is --lambda-base"),
        ({"negative": "ink"}, "--negative .* --semantics-null and --base-null"),
    ],
)
def test_weights_of_another_rule_beside_it_are_refused(tiny_sd3, tmp_path, sampling, says):
    style = save_style(tiny_sd3, tmp_path / "style")
    with pytest.raises(UserError, match=says):
        drawn(tiny_sd3, style, StyleSemantics(1.0), **sampling)


def test_without_a_style_or_style_words_it_is_refused(tiny_sd3, tmp_path, picture):
    with pytest.raises(UserError, match="give a --style that changes the denoiser"):
        generate(str(tiny_sd3), ["a cat"], guidances=[StyleSemantics(1.0)])
    with pytest.raises(UserError, match="a null prompt of style words needs a style"):
        generate(str(tiny_sd3), ["a cat"], guidances=[StyleSemantics(0.0, 1.0, n2="style words")])
    style = save_style(tiny_sd3, tmp_path / "style")
    with pytest.raises(UserError, match=r"do not tell its style words.*--semantics-null 'ink drawing'"):
        drawn(tiny_sd3, style, StyleSemantics(1.0, 1.0, n2="style words"))
    with pytest.raises(UserError, match="aligned-to and the guidance style-semantics do not go together"):
        drawn(tiny_sd3, style, StyleSemantics(1.0), StyleAligned(picture, "a cat in ink"))


def test_semantics_without_a_style_is_ordinary_guidance_of_the_base(tiny_sd3):
    (image, _), *_ = generate(str(tiny_sd3), ["a cat"], guidances=[StyleSemantics(0.0, 2.0)], sampling=Sampling(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (other, _), *_ = generate(str(tiny_sd3), ["a cat"], sampling=Sampling(2, 3.0))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(other)).max() <= 2


@pytest.mark.parametrize(
    ("preset", "weights"),
    [
        ("ordinary", (0.0, 2.0, 0.0)),
        ("finestyle", (2.0, 2.0, 0.0)),
        ("styledrop", (2.0, 0.0, 2.0)),
        ("asymmetric", (2.0, 0.0, 2.0)),
    ],
)
def test_preset_is_its_explicit_weights_in_flags_style_json_and_png(tiny_sd3, tmp_path, preset, weights):
    style = save_style(tiny_sd3, tmp_path / "style")
    explicit, told = drawn(tiny_sd3, style, StyleSemantics(*weights, n1="", n2=""))
    named, info = drawn(tiny_sd3, style, StyleSemantics(preset=preset), guidance=3.0)
    assert np.array_equal(explicit, named)
    assert info["style_semantics"] == told["style_semantics"] | {"preset": preset}
    (style / "style.json").write_text(json.dumps({"guidance": {"style-semantics": {"preset": preset}}}))
    made = generate(str(tiny_sd3), ["a cat"], styles=[f"{style}:1"], sampling=Sampling(steps=3), guidances=None)
    assert next(made)[1]["style_semantics"]["preset"] == preset


def test_preset_takes_the_scale_of_the_base_and_given_weights_come_first():
    assert StyleSemantics(preset="asymmetric").resolved(4.0).weights == (3, 0, 3)
    assert StyleSemantics(lambda1=1.0, n2="ink", preset="finestyle").resolved(4.0) == StyleSemantics(
        1.0, 3.0, 0.0, "", "ink", "finestyle"
    )
    assert StyleSemantics(preset="ordinary").resolved(0.0).weights == (0, 0, 0)


def test_preset_that_is_unknown_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="unknown guidance-preset 'style-drop': did you mean 'styledrop'"):
        StyleSemantics(preset="style-drop")
