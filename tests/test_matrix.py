"""Every family with every row of the tables: one training step, save, load, generate. And a new row of each table."""

import json
import sys
import tomllib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

import numpy as np
import pytest
import tyro
from peft import LoHaConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from impasto.adapters import ADAPTERS, TEXT
from impasto.adapters.base import Adapter
from impasto.adapters.lora import endings, ends
from impasto.bases.loader import load
from impasto.cli.settings import parse_config
from impasto.config import resolve
from impasto.generation import generate
from impasto.guidance import GUIDANCES
from impasto.guidance.base import Guidance
from impasto.noise import NOISE_LAWS
from impasto.objectives import OBJECTIVES
from impasto.optim.optimizers import OPTIMIZERS
from impasto.registry import Entry
from impasto.sampling.sample import Sampling
from impasto.styles.load import load_style, tuner_layers
from impasto.styles.parts import read_parts
from impasto.training.train import train

CAPTION = "a rocket in ink style"
OF_LAW = {"truncated-normal": {"noise_low": -8.0, "noise_high": 4.0}}
AXES: dict[str, list[str]] = {
    "noise": list(NOISE_LAWS),
    "objective": list(OBJECTIVES),
    "adapter": list(ADAPTERS),
    "text": list(TEXT),
    "optimizer": list(OPTIMIZERS),
}
ROWS = [{axis: names[i % len(names)] for axis, names in AXES.items()} for i in range(max(map(len, AXES.values())))]
"""Every name of every axis at least once."""


def run(base, picture, out, **keys):
    given = {"image": [str(picture)], "caption": [CAPTION], "preview": False, "tensorboard": False}
    config = resolve("style-friendly", str(base), out=out, steps=1, batch=2, size=16, lr=1e-2, **given, **keys)
    return config, train(config)


def images(base, style=None, **more):
    styles = [] if style is None else [f"{style}:1"]
    plain = Sampling(2, negative="", style_guidance=0.0)
    return [np.asarray(image) for image, _ in generate(str(base), ["a cat"], styles=styles, sampling=plain, **more)]


@cache
def shape_of_images(base):
    """Of the base without a style."""
    return images(base)[0].shape


@pytest.mark.filterwarnings("ignore:--text lora trains the CLIP", "ignore:after 1 steps", "ignore:without guidance")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row.values()))
@pytest.mark.parametrize("kind", ["sd3", "flux", "sdxl", "sd15", "muse"])
def test_matrix_trains_saves_loads_and_generates(kind, row, request, picture, tmp_path):
    base, keys = request.getfixturevalue(f"tiny_{kind}"), {**row, **OF_LAW.get(row["noise"], {})}
    if kind == "muse" or row["objective"] == "masked-tokens":
        keys["objective"] = "masked-tokens" if kind == "muse" else "denoise"  # by the kind of noise
    if keys["objective"] == "distill":
        keys["objective.teacher"] = str(base)
    if row["optimizer"] == "prodigy":
        keys["text"] = "frozen"  # one rate for all weights
    if row["optimizer"] == "muon":
        keys["adapter"] = "lora"  # matrices only
    if row["adapter"] == "full":
        keys["objective"] = "masked-tokens" if kind == "muse" else "denoise"  # no base to compare with
    if keys["text"] == "token":
        keys["text.words"] = ["ink"]
    config, result = run(base, picture, tmp_path / "run", **keys)
    assert result["steps"] == 1 and np.isfinite(result["loss"])
    recipe = tomllib.loads((config.out / "recipe.toml").read_text())
    assert recipe["noise"]["name"] == row["noise"] and recipe["adapter"]["name"] == keys["adapter"]
    assert (config.out / read_parts(config.out)[0].file).is_file()
    assert images(base, config.out)[0].shape == shape_of_images(base)


@pytest.mark.filterwarnings("ignore:after 1 steps", "ignore:Already found a `peft_config`")
def test_styles_of_two_kinds_are_both_active_in_either_order(tiny_sd15, picture, tmp_path):
    runs = {name: run(tiny_sd15, picture, tmp_path / name, adapter=name)[0].out for name in ("lora", "styleinject")}
    for order in (list(runs), list(runs)[::-1]):
        pipe = load(str(tiny_sd15), device="cpu", precision="fp32").pipeline()
        for name, strength in zip(order, (0.5, 0.8), strict=True):
            load_style(pipe, runs[name], strength)
        layers = tuner_layers(pipe)
        active = {
            (one, layer.scaling[one]) for layer in layers for one in layer.active_adapters if one in layer.scaling
        }
        assert active == {("style0", 0.5), ("style1", 0.8)}


# One file with a setting of its own, and one row: this is all that a new adapter or guidance needs.


@dataclass(frozen=True, kw_only=True)
class HadamardSettings:
    """Hadamard products of low-rank matrices (LoHa)."""

    rank: int = 2
    """Rank of the factors."""
    targets: tuple[str, ...] = ("image_stream",)
    """Layers."""


def attach_hadamard(family, settings, seed):
    config = LoHaConfig(r=settings.rank, target_modules=endings(family, settings.targets), init_weights=True)
    family.denoiser.add_adapter(config, adapter_name="default")
    named = {name: p for name, p in family.denoiser.named_parameters() if "hada_" in name}
    for p in named.values():
        p.data = p.data.float()
    return named


def count_hadamard(family, settings, model):
    names = endings(family, settings.targets, model)
    layers = [layer for name, layer in model.named_modules() if ends(name, names)]
    return sum(2 * settings.rank * sum(layer.weight.shape) for layer in layers)


def hadamard_state(family):
    tensors = get_peft_model_state_dict(family.denoiser, adapter_name="default")
    targets = sorted(family.denoiser.peft_config["default"].target_modules)
    settings = {"rank": family.denoiser.peft_config["default"].r, "targets": targets}
    return {name: t.cpu() for name, t in tensors.items()}, {"hadamard": json.dumps(settings)}


def load_hadamard(pipe, tensors, metadata, name, strength):
    settings = json.loads(metadata["hadamard"])
    pipe.transformer.add_adapter(LoHaConfig(r=settings["rank"], target_modules=settings["targets"]), adapter_name=name)
    set_peft_model_state_dict(pipe.transformer, tensors, adapter_name=name)
    pipe.transformer.set_adapters([name], [strength])


HADAMARD = Adapter(
    attach_hadamard,
    count_hadamard,
    lambda family, settings, model: True,
    kind="hadamard",
    mergeable=True,
    state=hadamard_state,
    load=load_hadamard,
)


@dataclass(frozen=True)
class DimSettings:
    """Predictions scaled by a factor."""

    factor: Annotated[float, tyro.conf.arg(name="dim-factor", prefix_name=False)] = 1.0
    """Factor on every prediction."""


class Dim(Guidance):
    def __init__(self, settings: DimSettings, family: Any, sampling: Any, encode: Any) -> None:
        self.factor, self.part = settings.factor, family.part

    @contextmanager
    def apply(self, pipe, rows):
        hook = getattr(pipe, self.part).register_forward_hook(lambda module, args, out: (self.factor * out[0],))
        try:
            yield {}
        finally:
            hook.remove()

    def info(self, prompt):
        return {"dim_factor": self.factor}


@pytest.fixture
def hadamard(monkeypatch):
    module = sys.modules[__name__]
    monkeypatch.setitem(sys.modules, "example_of_a_row", module)
    settings = f"{HadamardSettings.__module__}:HadamardSettings"
    monkeypatch.setitem(ADAPTERS, "hadamard", Entry(settings, "example_of_a_row:HADAMARD", "LoHa"))


@pytest.fixture
def dim(monkeypatch):
    monkeypatch.setitem(sys.modules, "example_of_a_row", sys.modules[__name__])
    settings = f"{DimSettings.__module__}:DimSettings"
    monkeypatch.setitem(GUIDANCES, "dim", Entry(settings, "example_of_a_row:Dim", "scaled predictions"))


@pytest.mark.filterwarnings("ignore:after")
def test_new_adapter_needs_one_file_and_one_row(hadamard, tiny_sd3, picture, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse_config(["--adapter", "hadamard", "--help"], "train")
    text = capsys.readouterr().out
    assert "--adapter.rank" in text and "Rank of the factors" in text and "--adapter.alpha" not in text
    (tmp_path / "own.toml").write_text('[adapter]\nname = "hadamard"\nrank = 3\n')
    assert resolve(str(tmp_path / "own.toml"), str(tiny_sd3)).adapter == HadamardSettings(rank=3)
    config, _ = run(tiny_sd3, picture, tmp_path / "run", adapter="hadamard", **{"adapter.rank": 3})
    parts = json.loads((config.out / "style.json").read_text())["parts"]
    assert parts == [{"kind": "hadamard", "file": "hadamard.safetensors"}]
    recipe = tomllib.loads((config.out / "recipe.toml").read_text())
    assert recipe["adapter"] == {"name": "hadamard", "rank": 3, "targets": ["image_stream"]}
    assert train(config)["resumed_from"] == 1
    plain, styled = images(tiny_sd3), images(tiny_sd3, config.out)
    assert (plain[0] != styled[0]).any()
    family = load(str(tiny_sd3), device="cpu", precision="fp32")
    named = attach_hadamard(family, config.adapter, 0)
    assert count_hadamard(family, config.adapter, family.denoiser) >= sum(p.numel() for p in named.values()) > 0


def test_new_guidance_needs_one_file_and_one_row(dim, tiny_sd3, picture, tmp_path, monkeypatch, capsys):
    from impasto.cli.main import main

    def call(*flags):
        monkeypatch.setattr(sys, "argv", ["impasto", "generate", "--base", str(tiny_sd3), *flags])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, capsys.readouterr().out

    code, text = call("--help")
    assert code == 0 and "--dim-factor" in text and "Factor on every prediction" in text
    out = tmp_path / "images"
    code, _ = call("--prompt", "a cat", "--steps", "2", "--dim-factor", "0.5", "--out", str(out))
    dimmed, plain = images(tiny_sd3, guidances=[DimSettings(0.5)]), images(tiny_sd3)
    assert code == 0 and (dimmed[0] != plain[0]).any()
    config, _ = run(tiny_sd3, picture, tmp_path / "run")
    (config.out / "style.json").write_text(json.dumps({"guidance": {"dim": {"factor": 0.5}}}))
    infos = [info for _, info in generate(str(tiny_sd3), ["a cat"], styles=[str(config.out)], sampling=Sampling(2))]
    assert infos[0]["dim_factor"] == 0.5
