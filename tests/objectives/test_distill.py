"""Distillation: the value by hand, what a student learns, and teachers that do not fit."""

import json
import shutil
import tomllib

import pytest
import torch
from safetensors.torch import load_file

from impasto.bases.loader import load
from impasto.cli.train import distill
from impasto.config import resolve
from impasto.data.batch import Batch
from impasto.errors import UserError
from impasto.objectives.base import build_objective
from impasto.objectives.config import Distill
from impasto.objectives.distill import feature_blocks, recorded
from impasto.training.teacher_samples import write_samples
from impasto.training.train import dry_run, train

CAPTION = "a rocket in ink style"


def config_of(base, picture, out, **keys):
    given = {"image": [str(picture)], "caption": [CAPTION], "preview": False, "tensorboard": False}
    keys = {"size": 16, "batch": 2, "steps": 2, "lr": 1e-3} | given | keys
    return resolve("distill", str(base), out=out, **keys)


@pytest.fixture(scope="module")
def teacher(tiny_sd15, picture, tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher") / "run"
    given = {"image": [str(picture)], "caption": [CAPTION], "preview": False, "tensorboard": False}
    train(resolve("uniform", str(tiny_sd15), out=out, adapter="full", size=16, batch=2, steps=3, lr=0.02, **given))
    return out


def batch_of(family, n=2):
    cond = {name: rows.repeat(n, 1, 1) for name, rows in family.encode_prompt([CAPTION]).items()}
    x, eps = torch.randn(2, n, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    return Batch(x, eps, cond), torch.linspace(-2, 2, n)


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_distill_loss_is_the_weighted_sum_of_both_terms(tiny_sd15, teacher):
    family, tuned = (load(str(base), device="cpu", precision="fp32") for base in (tiny_sd15, teacher))
    objective = build_objective(Distill(teacher=str(teacher), out_weight=0.5, feature_weight=2.0), family)
    batch, lam = batch_of(family)
    parts = objective(family, batch, lam, [])
    z_t, features = family.schedule.add_noise(batch.x, batch.eps, lam), ({}, {})
    with recorded(family.denoiser, features[0]), recorded(tuned.denoiser, features[1]):
        out = (family.predict(z_t, lam, batch.cond) - tuned.predict(z_t, lam, batch.cond)).square().mean()
    assert set(features[0]) == set(feature_blocks(family.denoiser)) and "mid_block" in features[0]
    feature = sum((features[0][name] - features[1][name]).square().mean() for name in features[0])
    assert out > 0 and feature > 0
    assert torch.allclose(parts["out"], out) and torch.allclose(parts["feature"], feature)
    assert torch.allclose(parts["loss"], 0.5 * out + 2 * feature)


def test_distill_from_the_base_itself_is_zero(tiny_sd15):
    family = load(str(tiny_sd15), device="cpu", precision="fp32")
    parts = build_objective(Distill(teacher=str(tiny_sd15)), family)(family, *batch_of(family), [])
    assert parts["loss"] == 0


@pytest.mark.parametrize("adapter", ["lora", "styleinject", "full"])
def test_distill_brings_the_student_nearer_to_its_teacher(tiny_sd15, teacher, picture, tmp_path, adapter):
    keys = (
        {"adapter": adapter, "adapter.targets": ["attention", "convolution"]}
        if adapter != "full"
        else {"adapter": adapter}
    )
    lr = 3e-3 if adapter == "full" else 2e-2
    config = config_of(tiny_sd15, picture, tmp_path, **keys, steps=60, lr=lr, **{"objective.teacher": str(teacher)})
    train(config)
    out = [row["out"] for row in rows(config.out)]
    assert sum(out[-10:]) < sum(out[:10]) / 2 and "feature" in rows(config.out)[0]


@pytest.mark.filterwarnings("ignore")  # advice on the captions
def test_distill_unshared_conditions_the_teacher_on_its_own_captions(tiny_sd15, teacher, picture, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture.read_bytes())
    line = {"file_name": "a.png", "text": "eine Rakete, Tusche", "teacher_text": CAPTION}
    (folder / "metadata.jsonl").write_text(json.dumps(line))
    found = {}
    for name, keys in {"own": {}, "same": {"objective.shared": True, "objective.feature_weight": 0.0}}.items():
        keys = {"objective.shared": False, "objective.teacher": str(teacher)} | keys
        config = config_of(tiny_sd15, folder, tmp_path / name, **keys, caption=[], image=[str(folder)], steps=1)
        train(config)
        found[name] = rows(config.out)[0]
    assert found["own"]["out"] != found["same"]["out"] and "feature" not in found["own"]


def test_distill_resumed_run_equals_uninterrupted_run(tiny_sd15, teacher, picture, tmp_path):
    keys = {"objective.teacher": str(teacher), "steps": 3, "checkpoint_every": 1}
    whole, resumed = (config_of(tiny_sd15, picture, tmp_path / name, **keys) for name in ("whole", "resumed"))
    train(whole)

    def stop(phase, step=0, total=None, note=""):
        if phase == "training" and step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(resumed, stop)
    assert train(resumed)["resumed_from"] > 0
    files = [load_file(config.out / "styleinject.safetensors") for config in (whole, resumed)]
    assert all(torch.equal(tensor, files[1][name]) for name, tensor in files[0].items())


def changed(base, out, file, **values):
    """A copy of a base with other values in one configuration."""
    shutil.copytree(base, out)
    content = json.loads((out / file).read_text())
    (out / file).write_text(json.dumps(content | values))
    return out


@pytest.mark.parametrize(
    "file, values, named",
    [
        ("vae/config.json", {"scaling_factor": 0.5}, "scaling_factor"),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "prediction"),
        ("scheduler/scheduler_config.json", {"beta_end": 0.02}, "schedule"),
        ("unet/config.json", {"layers_per_block": 3}, "layers_per_block"),
    ],
)
def test_distill_teacher_that_does_not_fit_is_refused_by_name(tiny_sd15, picture, tmp_path, file, values, named):
    other = changed(tiny_sd15, tmp_path / "other", file, **values)
    config = config_of(tiny_sd15, picture, tmp_path / "x", **{"objective.teacher": str(other)})
    with pytest.raises(UserError, match=named):
        dry_run(config)


def test_distill_teacher_of_another_family_is_refused(tiny_sd15, tiny_sd3, picture, tmp_path):
    config = config_of(tiny_sd15, picture, tmp_path / "x", **{"objective.teacher": str(tiny_sd3)})
    with pytest.raises(UserError, match="architecture"):
        dry_run(config)


def test_write_samples_resumes_and_gives_the_images_of_the_teacher(teacher, tmp_path):
    prompts = [("a cat", None), ("ein Hund", "a dog")]
    write_samples(str(teacher), prompts, 3, tmp_path / "a", seed=5, device="cpu")
    write_samples(str(teacher), prompts, 3, tmp_path / "b", seed=5, device="cpu")
    (tmp_path / "b" / "00002.png").unlink()
    write_samples(str(teacher), prompts, 3, tmp_path / "b", seed=5, device="cpu")
    for i in range(3):
        assert (tmp_path / "a" / f"{i:05d}.png").read_bytes() == (tmp_path / "b" / f"{i:05d}.png").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "a" / "metadata.jsonl").read_text().splitlines()]
    assert lines[1] == {"file_name": "00001.png", "text": "ein Hund", "teacher_text": "a dog"}
    with pytest.raises(UserError, match="another teacher or other prompts"):
        write_samples(str(teacher), prompts[:1], 3, tmp_path / "a", seed=5, device="cpu")


@pytest.mark.filterwarnings("ignore")
def test_distill_command_makes_a_lora_of_a_styleinject_style(tiny_sd15, picture, tmp_path):
    given = {"image": [str(picture)], "caption": [CAPTION], "preview": False, "tensorboard": False}
    style, out = tmp_path / "style", tmp_path / "lora"
    train(resolve("styleinject", str(tiny_sd15), out=style, size=16, batch=2, steps=4, lr=0.1, **given))
    flags = f"--teacher {style} --base {tiny_sd15} --adapter lora --samples 2 --caption {CAPTION.replace(' ', '_')}"
    flags += f" --out {out} --steps 30 --lr 1e-2 --batch 2 --size 16 --no-preview --no-tensorboard"
    distill(flags.split())
    losses = [row["out"] for row in rows(out)]
    assert losses[0] > 0 and sum(losses[-5:]) < sum(losses[:5])
    recipe = tomllib.loads((out / "recipe.toml").read_text())
    assert recipe["objective"]["teacher"] == str(tiny_sd15) and len(list((out / "samples").glob("*.png"))) == 2
    assert (out / "pytorch_lora_weights.safetensors").is_file()
    with pytest.raises(UserError, match="exclude each other"):
        distill([*flags.split(), "--image", str(picture)])
