"""Every family end to end: prepare, train, save, reload in plain diffusers, generate, compare the images."""

import json
import re

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from impasto.bases.loader import load
from impasto.config import change, resolve
from impasto.generation import generate
from impasto.training.train import train

PROMPT = "a cat in ink style"


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.fixture(scope="module")
def config(tiny_base, picture, tmp_path_factory):
    settings = {"rank": 4, "alpha": 6.0, "lr": 0.05, "tensorboard": False, "seed": 5, "prior_weight": 0.5}
    if tiny_base.name in ("sd15", "sdxl"):
        settings["targets"] = ("attention", "convolution")
    return resolve(
        "style-friendly",
        str(tiny_base),
        image=[str(picture)],
        caption=["a rocket in ink style"],
        preview_prompt=[PROMPT],
        prior_prompt=["a star"],
        checkpoint_every=2,
        out=str(tmp_path_factory.mktemp("runs") / "ink"),
        **settings,
    )


@pytest.fixture(scope="module")
def run(config):
    """A trained style with previews."""
    assert train(config)["steps"] == 6
    return config.out


def code_of_the_card(run):
    """The pipeline call in the model card, so that the card's code is what is tested."""
    card = (run / "README.md").read_text()
    return re.search(r"^image = (pipe\(.*?\)\.images\[0\])$", card, re.DOTALL | re.MULTILINE).group(1)


def test_preview_generate_and_plain_diffusers_match(run, tiny_base):
    pipe = DiffusionPipeline.from_pretrained(tiny_base)
    pipe.set_progress_bar_config(disable=True)
    call = code_of_the_card(run).replace("manual_seed(0)", "manual_seed(5)")
    base = eval(call, {"pipe": pipe, "torch": torch})
    pipe.load_lora_weights(run)
    plain = eval(call, {"pipe": pipe, "torch": torch})
    image, info = next(generate(str(tiny_base), [PROMPT], styles=[str(run)], seed=5))
    preview = Image.open(run / "previews" / "step-000006-0.png")
    assert (pixels(image) == pixels(plain)).all()
    assert (pixels(preview) == pixels(image)).all()
    assert (pixels(image) != pixels(base)).mean() > 0.5
    saved = json.loads(preview.text["impasto"])
    assert {key: saved[key] for key in info if key != "styles"} == {key: info[key] for key in info if key != "styles"}


def test_saved_lora_has_nonzero_layers(run, tiny_base):
    family = load(str(tiny_base), device="cpu")
    with safe_open(run / "pytorch_lora_weights.safetensors", "pt") as file:
        up = {key: file.get_tensor(key) for key in file.keys() if key.endswith("lora_B.weight")}  # noqa: SIM118
        assert f'"{family.part}.lora_alpha": 6.0' in file.metadata()["lora_adapter_metadata"]
    assert up and all(key.startswith(f"{family.part}.") for key in up)
    zero = [key for key, b in up.items() if not b.any()]
    assert len(zero) <= 1 and all("add_q_proj" in key for key in zero)  # SD3's last block discards its text


def test_metrics_loss_is_fit_plus_weighted_prior(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss"] == pytest.approx(row["fit"] + 0.5 * row["prior"]) for row in rows)
    assert rows[0]["prior"] == 0 < rows[-1]["prior"]


def test_interrupted_run_resumes_bit_identical(config, run, tmp_path):
    def interrupt(phase, step=0, total=None, note=""):
        if phase == "training" and step == 5:
            raise InterruptedError

    stopped = change(config, out=tmp_path / "stopped", preview=False)
    with pytest.raises(InterruptedError):
        train(stopped, interrupt)
    assert train(stopped)["resumed_from"] == 4
    whole, resumed = (load_file(folder / "pytorch_lora_weights.safetensors") for folder in (run, stopped.out))
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[key], resumed[key]) for key in whole)
