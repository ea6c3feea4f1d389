"""Training, whole: prepare, train, save, go on, refuse, stop."""

import gc
import json
import math
import os
import shutil
import signal
import tomllib
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from impasto.bases import loader
from impasto.config import change, resolve
from impasto.data.draws import Draws
from impasto.data.pictures import Picture
from impasto.errors import UserError
from impasto.execution import apply as running
from impasto.execution import memory
from impasto.failures import interruptible
from impasto.generation import generate
from impasto.noise.laws import noise_law
from impasto.optim.config import OptimConfig
from impasto.sampling.sample import Sampling
from impasto.training import sheet as checkpoints
from impasto.training.checkpoints import saved_states, states
from impasto.training.run_folder import RunFolder, recipe_text
from impasto.training.train import dry_run, train
from impasto.training.trainable import TrainableParameters, learning_rate

CAPTION = "a rocket in pixel art style"
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture
def config(tiny_sd3, picture, tmp_path):
    """Six steps of two times three draws, a state every second step."""
    return resolve(
        "style-friendly",
        str(tiny_sd3),
        image=[str(picture)],
        caption=[CAPTION],
        out=str(tmp_path / "run"),
        rank=4,
        alpha=6.0,
        checkpoint_every=2,
        preview=False,
        tensorboard=False,
    )


def rows(config):
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


def weights(config):
    return load_file(config.out / WEIGHTS)


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class StopError(Exception):
    """Raised by a progress callback: the run is torn off in the middle."""


def stop_at(step):
    def progress(phase, done=0, total=None, note=""):
        if phase == "training" and done == step:
            raise StopError

    return progress


def test_a_run_leaves_a_whole_style_folder(config):
    more = {"preview": True, "preview_every": 3, "tensorboard": True, "preview_prompt": [CAPTION]}
    config = change(config, **more, components=Path(config.base))
    with pytest.warns(UserWarning, match="this base has its own, which are used"):
        result = train(config)
    assert result["steps"] == 6 and result["resumed_from"] == 0 and result["loss"] > 0
    names = {str(file.relative_to(config.out)) for file in config.out.rglob("*") if file.is_file()}
    names = {name for name in names if not name.startswith("tensorboard/")}
    assert names == {
        *(WEIGHTS, "recipe.toml", "metrics.jsonl", "README.md", "reference.png", "state/.lock"),
        *("previews/step-000003-0.png", "previews/step-000006-0.png"),
        *(f"previews/base/{i:04d}.png" for i in range(3)),  # the prompt, and the caption twice
        *(f"state/step-00000{step}.{kind}" for step in (4, 6) for kind in ("json", "safetensors")),
    }
    assert any((config.out / "tensorboard").iterdir())
    assert Image.open(config.out / "reference.png").size == (40, 40)
    card = (config.out / "README.md").read_text()
    for text in (
        "base_model:",
        "<Gallery />",
        "load_lora_weights",
        "log-SNR",
        CAPTION,
        f"--components {config.base}",
        "previews/step-000006-0.png",
    ):
        assert text in card


def test_metrics_have_a_row_per_step(config):
    train(config)
    assert [row["step"] for row in rows(config)] == [1, 2, 3, 4, 5, 6]
    for row in rows(config):
        assert row.keys() - {"unchanged"} == {"step", "loss", "lr", "grad_norm", "lam"}
        assert len(row["lam"]) == 6 and row["loss"] > 0 and row["grad_norm"] > 0 and row["lr"] == 1e-3
    assert [row["step"] for row in rows(config) if "unchanged" in row] == [6]
    assert max(rows(config)[-1]["unchanged"].values()) <= 0.5  # one of two blocks does not use its last text queries


def test_the_recipe_is_kept_resolved_and_is_a_recipe_itself(config):
    train(config)
    kept = tomllib.loads((config.out / "recipe.toml").read_text())
    assert kept["noise"]["mean"] == -6 and kept["optim"]["lr"] == 1e-3
    assert kept["data"]["caption"] == [CAPTION]
    about = kept["impasto"]
    assert about["base_sha256"] == loader.load(config.base).hash and len(about["references_sha256"][0]) == 64
    assert {"torch", "diffusers", "peft", "impasto"} <= about.keys()
    again = resolve(str(config.out / "recipe.toml"), config.base, out=str(config.out))
    assert change(again, recipe=config.recipe) == change(config, quantize="none", precision="fp32")  # what auto came to


def test_a_recipe_without_an_end_is_toml(config):
    config = change(config, clip=math.inf, noise="truncated-normal", noise_low=-math.inf, noise_high=0.0)
    kept = tomllib.loads(recipe_text(config, {"processes": 1}))
    assert kept["optim"]["clip"] == math.inf and kept["noise"]["low"] == -math.inf
    assert kept["impasto"] == {"processes": 1}


def test_the_adapter_learns(config):
    """On one picture at one middle level, plain fitting: the loss falls clearly."""
    law = {"noise": "logit-normal", "noise_mean": 0.0, "noise_std": 1e-6}
    config = change(config, **law, steps=60, lr=3e-2, rank=16, alpha=None)
    train(config)
    losses = [row["loss"] for row in rows(config)]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_run_that_was_torn_off_goes_on_bit_for_bit(config, tmp_path, step):
    """At step 1 there is no state yet, at 2 one is written next, at 5 one step is lost and done again."""
    whole = change(config, out=tmp_path / "whole", ema=0.9)
    train(whole)
    torn = change(config, ema=0.9)
    with pytest.raises(StopError):
        train(torn, stop_at(step))
    assert not (torn.out / WEIGHTS).exists()
    with (torn.out / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 99, "lo')  # a row that a dying machine left half written
    result = train(torn)
    assert result["resumed_from"] == {1: 0, 2: 0, 5: 4}[step]
    assert same(weights(whole), weights(torn))
    assert (whole.out / "metrics.jsonl").read_bytes() == (torn.out / "metrics.jsonl").read_bytes()


def test_a_damaged_state_falls_back_to_the_one_before(config, tmp_path):
    whole = change(config, out=tmp_path / "whole")
    train(whole)
    with pytest.raises(StopError):
        train(config, stop_at(5))
    state = config.out / "state" / "step-000004.safetensors"
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(data)
    assert train(config)["resumed_from"] == 2
    assert same(weights(whole), weights(config))


def test_a_finished_run_is_left_alone(config):
    train(config)
    before = {file: file.stat().st_mtime_ns for file in config.out.glob("pytorch*")}
    result = train(config, stop_at(1))
    assert result["resumed_from"] == 6
    assert before == {file: file.stat().st_mtime_ns for file in config.out.glob("pytorch*")}


@pytest.mark.parametrize("stop", [None, 5])
def test_more_steps_on_a_run_go_on_bit_for_bit(config, tmp_path, stop):
    """Of a constant rate also on a run that was stopped."""
    whole = change(config, out=tmp_path / "whole", steps=9, ema=0.9)
    train(whole)
    first = change(config, ema=0.9)
    if stop:
        with pytest.raises(StopError):
            train(first, stop_at(stop))
    else:
        train(first)
    assert train(change(first, steps=9))["resumed_from"] == (4 if stop else 6)
    assert same(weights(whole), weights(first))
    assert [row | {"unchanged": 0} for row in rows(whole)] == [row | {"unchanged": 0} for row in rows(first)]
    assert tomllib.loads((first.out / "recipe.toml").read_text())["optim"]["steps"] == 9
    with pytest.raises(UserError, match=r"other settings \(steps: 9 -> 6\)"):
        train(first)


def test_more_steps_with_a_falling_rate_start_it_again(config):
    """Also after an interruption of the added steps; not before the first ones are done."""
    config = change(config, schedule="cosine", warmup=2)
    with pytest.raises(StopError):
        train(config, stop_at(5))
    with pytest.raises(UserError, match=r"steps: 6 -> 12, for which the cosine schedule has to reach step 6 first"):
        train(change(config, steps=12))
    train(config)
    more = change(config, steps=12)
    with (
        pytest.warns(UserWarning, match=r"goes on from step 6: its learning rate starts again at 0.001"),
        pytest.raises(StopError),
    ):
        train(more, stop_at(9))
    assert train(more)["resumed_from"] == 8
    rates = [row["lr"] for row in rows(config)]
    assert rates == [learning_rate(more.optim, step, (6,)) for step in range(1, 13)]
    falls = [(1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)]
    assert rates[6:] == pytest.approx([1e-3 * fall for fall in falls])
    assert rates[:6] == [learning_rate(config.optim, step) for step in range(1, 7)]
    assert train(change(config, steps=12))["resumed_from"] == 12


def test_more_steps_without_a_checkpoint_are_refused(config):
    train(config)
    shutil.rmtree(config.out / "state")
    with pytest.raises(UserError, match=r"other settings \(steps: 6 -> 9\)"):
        train(change(config, steps=9))


def test_the_batch_may_be_split_otherwise(config, tmp_path):
    """3 x 2 or 6 x 1 draws are the same draws: the same run up to rounding."""
    other = change(config, out=tmp_path / "other", batch=6, accumulate=1)
    train(config), train(other)
    for one, two in zip(rows(config), rows(other), strict=True):
        assert one["lam"] == two["lam"] and one["loss"] == pytest.approx(two["loss"], rel=1e-5)
    assert all(torch.allclose(weights(config)[n], weights(other)[n], atol=1e-5) for n in weights(config))


def test_a_changed_recipe_is_refused_and_the_difference_shown(config, tmp_path):
    with pytest.raises(StopError):
        train(config, stop_at(3))
    with pytest.raises(UserError, match=r"rank: 4 -> 8.*use another --out"):
        train(change(config, rank=8))
    with pytest.raises(UserError, match=r"noise_std: 2.0 -> 3.0"):
        train(change(config, noise_std=3.0))
    with pytest.raises(UserError, match=r"precision: fp32 -> bf16"):  # as auto on another device would have it
        train(change(config, precision="bf16"))
    Image.new("RGB", (40, 40), "red").save(tmp_path / "other.png")
    with pytest.raises(UserError, match="references_sha256"):
        train(change(config, image=(tmp_path / "other.png",)))
    recipe = config.out / "recipe.toml"
    recipe.write_text(
        recipe.read_text().replace('precision = "fp32"', 'precision = "auto"')
    )  # as older versions kept it
    assert train(change(config, checkpoint_every=1, keep=3))["steps"] == 6  # what changes nothing is free
    assert 'precision = "fp32"' in recipe.read_text()


def test_what_is_not_the_run_s_own_is_not_overwritten(config, tmp_path):
    out, pictures = config.out, tmp_path / "pictures"
    for name in (WEIGHTS, "README.md", "reference.png", "recipe.toml", "metrics.jsonl"):
        out.mkdir(), (out / name).write_text("mine = 1")
        with pytest.raises(UserError, match=f"holds {name}, but no run: it would be overwritten"):
            train(config)
        assert [file.read_text() for file in out.iterdir()] == ["mine = 1"]
        shutil.rmtree(out)
    (out / "previews").mkdir(parents=True), pictures.mkdir()
    (out / "recipe.toml").write_text("[impasto]")
    for image in (out / "reference-1.png", out / "previews" / "step-000006-0.png"):
        Image.new("RGB", (40, 40)).save(image)
        with pytest.raises(UserError, match=r"is what a run in --out .* writes"):
            train(change(config, image=(image,)))
    for inside in (pictures, pictures / "run"):
        with pytest.raises(UserError, match=r"lies in --image .*: its previews would be trained on"):
            train(change(config, image=(pictures,), out=inside))
    assert not list(pictures.iterdir())


def test_a_run_that_never_came_to_a_state_binds_nobody(config):
    with pytest.raises(UserError, match="to_qq"):
        train(change(config, targets=("to_qq",)))
    assert train(config)["steps"] == 6


def test_another_base_in_the_same_folder_is_refused(config, tmp_path):
    from tiny import sd3_folder

    with pytest.raises(StopError):
        train(config, stop_at(3))
    with pytest.raises(UserError, match="base_sha256"):
        train(change(config, base=str(sd3_folder(tmp_path / "other", seed=1))))


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_state(config, monkeypatch):
    rates = {1: 1e-4, 2: 1e17, 3: 1e-4}
    monkeypatch.setattr("impasto.training.trainable.learning_rate", lambda config, step, earlier: rates[step])
    config = change(config, checkpoint_every=1)
    with pytest.raises(
        UserError, match=r"loss is NaN or infinite at step 3.*checkpoint of step 1 is kept.*--lr"
    ) as error:
        train(config)
    assert "\n" not in str(error.value)
    assert [row["step"] for row in rows(config)] == [1, 2]
    assert [file.name for file in sorted((config.out / "state").glob("step-*"))] == [
        "step-000001.json",
        "step-000001.safetensors",
    ]
    assert not (config.out / WEIGHTS).exists()


def test_an_adapter_that_is_no_number_is_never_saved(config):
    """Its loss, and its gradient, were numbers."""
    with pytest.raises(UserError, match=r"the adapter is NaN or infinite at step 1 .*there is no checkpoint yet"):
        train(change(config, lr=1e30, steps=1))
    assert not list((config.out / "state").glob("step-*")) and not (config.out / WEIGHTS).exists()


def test_lost_rows_are_told_and_cost_no_state(config):
    train(config)
    before = weights(config)
    (config.out / WEIGHTS).unlink()
    (config.out / "metrics.jsonl").write_text("")
    with pytest.warns(UserWarning, match=r"has lost rows of its metrics\.jsonl"):
        told = train(config)
    assert same(weights(config), before) and told["loss"] is None and told["steps"] == 6
    assert b"\0" not in (config.out / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("complete", [True, False])
def test_half_a_row_spoils_no_other(config, complete):
    train(config)
    before, metrics = weights(config), config.out / "metrics.jsonl"
    first = metrics.read_bytes().splitlines(keepends=True)
    if not complete:  # it goes on from step 4
        (config.out / WEIGHTS).unlink()
        for file in (config.out / "state").glob("step-000006*"):
            file.unlink()
    metrics.write_bytes(b"".join(first[:3]) + first[3][:-10])
    with pytest.warns(UserWarning, match="has lost rows"):
        train(config)
    kept = [0, 1, 2] if complete else [0, 1, 2, 4, 5]
    assert metrics.read_bytes() == b"".join(first[i] for i in kept) and same(weights(config), before)


def test_what_a_killed_process_left_of_a_state_goes(config):
    left = config.out / "state" / ".step-000002.safetensors.8e2lgvik.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half of it")
    train(config)
    assert not left.exists() and len(list(left.parent.glob("step-*.safetensors"))) > 0


@pytest.mark.parametrize("content", ["{}", "[]", '{"step": 6}', '{"step": 6, "sha256": "x"}'])
def test_a_state_that_says_nothing_falls_back(config, content):
    train(config)
    before = weights(config)
    (config.out / WEIGHTS).unlink()
    (config.out / "state" / "step-000006.json").write_text(content)
    assert train(config)["resumed_from"] == 4 and same(weights(config), before)


def test_states_none_of_which_is_good_are_told(config):
    train(config)
    for file in (config.out / "state").glob("*.safetensors"):
        file.write_bytes(b"half")
    (config.out / WEIGHTS).unlink()
    with pytest.warns(UserWarning, match=r"state' is damaged \(step-000004, step-000006\): starting afresh"):
        assert train(config)["resumed_from"] == 0
    assert [row["step"] for row in rows(config)] == [1, 2, 3, 4, 5, 6]


def test_states_are_in_the_order_of_their_steps(config):
    steps = (999_900, 999_950, 1_000_000)
    run = RunFolder(config, {"processes": 1})
    run.resume()
    for step in steps:
        run.save(step, {"adapter/a": torch.full((1,), float(step))})
    assert [file.stem for file in states(run.state)] == ["step-999950", "step-1000000"]  # two are kept
    assert run.resume() == (1_000_000, {"adapter/a": torch.full((1,), 1e6)})
    assert list(saved_states(run.state)) == [999_950, 1_000_000]
    run.drop(1_000_000)
    assert run.resume()[0] == 999_950
    run.close()


def test_a_run_that_fails_as_it_opens_leaves_no_lock(config, monkeypatch):
    def fail(*args):
        raise OSError("no board")

    with monkeypatch.context() as torn:
        torn.setattr(RunFolder, "new_board", fail)
        with pytest.raises(OSError, match="no board") as error:
            train(change(config, tensorboard=True))
        assert error.tb is not None  # its frames hold the folder: nothing else lets go of the lock
        assert train(config)["steps"] == 6
    shutil.rmtree(config.out)
    with monkeypatch.context() as torn:
        torn.setattr("impasto.training.run_folder.atomic", fail)
        with pytest.raises(OSError, match="no board") as error:
            RunFolder(config, {})
    RunFolder(config, {}).close()


def test_no_decoded_picture_is_kept(config, monkeypatch):
    """They are read again for their copies in the style folder; one that has gone by then costs no adapter."""
    decoded, real = [], Picture.load

    def load(self):
        decoded.append(weakref.ref(reference := real(self)))
        return reference

    def look(phase, step=0, total=None, note=""):
        if phase != "training":
            return
        gc.collect()
        assert decoded and not any(one() for one in decoded)
        if step == 6:
            picture.unlink()

    monkeypatch.setattr(Picture, "load", load)
    picture = config.out.with_name("own.png")
    Image.effect_noise((40, 40), 60).convert("RGB").save(picture)  # in no cache
    config = change(config, image=(picture,))
    with pytest.warns(UserWarning, match=r"no copy of a reference in the style folder: image .* does not exist"):
        train(config, look)
    assert (config.out / WEIGHTS).is_file() and not (config.out / "reference.png").exists()


def test_two_processes_do_not_train_in_one_folder(config):
    def again(phase, step=0, total=None, note=""):
        if phase == "training" and step == 3:
            with pytest.raises(UserError, match="another process trains in"):
                train(config)

    assert train(config, again)["resumed_from"] == 0 and len(rows(config)) == 6


def test_a_caption_of_odd_characters_is_kept(config):
    config = change(config, caption=("a rocket\x7f in \u2028 pixel \u0085art style",), steps=1)
    train(config)
    assert train(config)["resumed_from"] == 1
    kept = tomllib.loads((config.out / "recipe.toml").read_text(encoding="utf-8"))
    assert tuple(kept["data"]["caption"]) == config.data.caption


def test_a_name_that_cannot_be_written_is_refused(config, picture, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(picture, odd)
    with pytest.raises(UserError, match="is not UTF-8: rename it"):
        train(change(config, image=(odd,)))
    assert not config.out.exists()


def test_the_memory_that_is_free_does_not_change_a_run(config, monkeypatch):
    """What `quantize` came to is the run's, also where more or less is free when it goes on."""
    seen = []
    choose = memory.choose_execution
    monkeypatch.setattr(
        memory,
        "choose_execution",
        lambda config, *more: seen.append(config.execution.quantize) or choose(config, *more),
    )
    with pytest.raises(StopError):
        train(config, stop_at(3))
    assert train(config)["resumed_from"] == 2 and seen == ["auto", "none"]
    assert dry_run(config)["settings"]["quantize"] == "none" and seen[2] == "none"


def test_a_dry_run_refuses_what_the_run_would(config, tmp_path):
    (tmp_path / "file").write_text("")
    train(config)
    for changes, message in (
        ({"size": 17}, "size must be a multiple of"),
        ({"targets": ("to_qq",)}, "matches no layer"),
        ({"out": tmp_path / "file"}, "is a file, or lies in one"),
        ({"prior_weight": 1.0}, r"prior\.weight needs captions"),
        ({"optimizer": "adamv"}, "unknown optimizer"),
        ({"weighting": "min-snr"}, "rectified flow"),
        ({"noise_mean": -60.0}, "lie below log-SNR"),
        ({"attention": "foo"}, "--attention foo has no effect on SD3"),
        ({"lr": 5.0}, r"other settings \(lr: "),
    ):
        with pytest.raises(UserError, match=message):
            dry_run(change(config, **changes))
        fresh = change(config, **({"out": tmp_path / "fresh"} | changes))
        if "lr" not in changes:
            with pytest.raises(UserError, match=message):
                train(fresh)
            assert not fresh.out.is_dir(), "nothing is left of a run that cannot be"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "muon", "targets": ("convolution",)}, "muon steps matrices only"),
        ({"optimizer": "prodigy", "lr": 1.0, "text_encoder_lora": True, "text_encoder_lr": 0.1}, "one rate for all"),
        ({"optimizer": "adamw8bit"}, "adamw8bit needs bitsandbytes"),
        ({"optimizer": "prodigy"}, "prodigy needs prodigyopt"),
        ({"prior_weight": 1.0}, r"prior\.weight needs captions"),
        ({"prior_weight": 1.0, "prior_prompt": ["a cat, [trigger]"]}, "say what stands for it with --trigger"),
        ({"preview_prompt": ["a cat, [trigger]"]}, "say what stands for it with --trigger"),
        ({"targets": ()}, "no targets"),
        ({"weighting": "nonsense"}, "unknown weighting 'nonsense'"),
        ({"attention": "foo"}, "--attention foo has no effect on UNet2DConditionModel"),
        ({"offload": "on", "device": "cpu"}, "lies in main memory already"),
        ({"quantize": "nf4"}, "--quantize nf4 needs bitsandbytes"),
        ({"noise": "uniform", "noise_shift": 3.0}, "noise.shift of the uniform law is for rectified flows"),
        ({"noise_mean": -60.0}, "lie below log-SNR"),
        ({"caption": ["a cat \ud800 in ink style"]}, r"caption: 'a cat \? in ink style' is not UTF-8.*write it again"),
        ({"out": "/proc/impasto/run"}, "cannot be written"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_loaded(
    tiny_sdxl, picture, tmp_path, monkeypatch, changes, message
):
    import importlib

    def missing(name, package=None):
        if name in ("bitsandbytes", "prodigyopt"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, package)

    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", missing)
    about = {"image": [str(picture)], "caption": [CAPTION], "out": str(tmp_path / "run")}
    config = resolve("style-friendly", str(tiny_sdxl), **about | changes)
    with pytest.raises(UserError, match=message):
        dry_run(config)
    monkeypatch.setattr("impasto.bases.loader.load", None)
    with pytest.raises(UserError, match=message):
        train(config)
    assert not (tmp_path / "run").exists()


def test_previews_that_do_not_fit_cost_no_adapter(config, monkeypatch):
    def full(self, step, progress):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("impasto.training.previews.Previews.generate", full)
    with pytest.warns(UserWarning, match="no previews of step 6: they need more memory"):
        train(change(config, preview=True))
    assert weights(config)


def test_a_run_whose_previews_were_cut_off_is_completed_by_the_same_command(config, monkeypatch):
    def cut_off(self, step, progress):
        raise StopError

    config = change(config, preview=True)
    with monkeypatch.context() as patch:
        patch.setattr("impasto.training.previews.Previews.generate", cut_off)
        with pytest.raises(StopError):
            train(config)
    before = weights(config)
    assert not (config.out / "README.md").exists()
    assert train(config)["resumed_from"] == 6 and same(before, weights(config))
    assert "previews/step-000006-0.png" in (config.out / "README.md").read_text()


def test_the_prior_is_drawn_when_the_base_lies_where_it_is_trained(config, monkeypatch):
    """After it was quantised or offloaded, and when the text encoders are gone: only then there is room."""
    from impasto.training import prior

    order = []
    place, draw = running.load_denoiser, prior.PriorSampler.draw
    monkeypatch.setattr("impasto.training.fit.load_denoiser", lambda *a, **k: order.append("placed") or place(*a, **k))

    def drawn(self, prompt, seed):
        order.append("drawn")
        assert "encoders" not in vars(self.family) and "vae" not in vars(self.family)
        return draw(self, prompt, seed)

    monkeypatch.setattr(prior.PriorSampler, "draw", drawn)
    train(change(config, prior_weight=0.5, prior_prompt=("a blue teapot", "a green star"), seed=11, steps=1))
    assert order == ["placed", "drawn", "drawn"]


def test_the_average_is_saved_when_it_is_asked_for(config, tmp_path):
    averaged = change(config, out=tmp_path / "ema", ema=0.99)
    train(config), train(averaged)
    assert rows(config) == rows(averaged)
    last = load_file(config.out / "state" / "step-000006.safetensors")
    kept = load_file(averaged.out / "state" / "step-000006.safetensors")
    assert all(torch.equal(kept[name], last[name]) for name in last)  # the run itself is the same
    key = "transformer_blocks.0.attn.to_q.lora_B"
    assert torch.equal(weights(averaged)[f"transformer.{key}.weight"], kept[f"average/{key}.default.weight"])
    small = weights(averaged)[f"transformer.{key}.weight"].norm(), weights(config)[f"transformer.{key}.weight"].norm()
    assert 0 < small[0] < small[1]


def test_the_average_by_hand():
    p = torch.nn.Parameter(torch.zeros(1))
    moving = TrainableParameters(OptimConfig(ema=0.9, lr=1.0, clip=0.0), {"p": p}, 0, {})
    expected = 0.0
    for step in (1, 2, 3):
        p.grad = torch.ones(1)
        moving.step(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * p.item()
    assert p.item() == pytest.approx(-3, abs=1e-3)  # Adam's first steps are the learning rate
    assert moving.average[0].item() == pytest.approx(expected, rel=1e-5)
    with moving.averaged():
        assert p.item() == pytest.approx(expected, rel=1e-5)
    assert p.item() == pytest.approx(-3, abs=1e-3)


def test_learning_rates():
    config = OptimConfig(lr=1.0, steps=10, warmup=2)
    assert [learning_rate(config, step) for step in (1, 2, 3, 10)] == [0.5, 1.0, 1.0, 1.0]
    linear = replace(config, schedule="linear")
    assert [learning_rate(linear, step) for step in (2, 3, 7, 10)] == pytest.approx([1, 1, 0.5, 0.125])
    cosine = replace(config, schedule="cosine", warmup=0)
    assert [learning_rate(cosine, step) for step in (1, 6)] == pytest.approx([1, 0.5])
    assert learning_rate(cosine, 10) < 0.03


def test_gradients_are_clipped():
    p = torch.nn.Parameter(torch.zeros(2))
    moving = TrainableParameters(OptimConfig(clip=1.0), {"p": p}, 0, {})
    p.grad = torch.tensor([3.0, 4.0])
    assert moving.step(1)["grad_norm"] == pytest.approx(5)
    assert moving.optimizer.state[p]["exp_avg"].tolist() == pytest.approx([0.06, 0.08])  # .1 x (3, 4) / 5


def test_text_lengths_are_drawn_as_the_card_says(config):
    from impasto.data.prepare import Prepared

    draws = Draws(config, noise_law(config), Prepared(torch.zeros(1, 1), {}, {1: 0.75, 5: 0.25}))
    lengths = [draws.length(step) for step in range(2000)]
    assert lengths == [draws.length(step) for step in range(2000)]
    assert lengths.count(5) / 2000 == pytest.approx(0.25, abs=0.03) and set(lengths) == {1, 5}


def test_every_reference_is_drawn_with_its_own_caption(config):
    from impasto.data.prepare import Prepared

    x = torch.arange(3.0).view(3, 1, 1, 1)
    prepared = Prepared(x, {1: {"text": torch.arange(3.0)}}, {1: 1.0})
    draws = Draws(change(config, batch=50), noise_law(config), prepared)
    batch, lam, own = draws(1, 0)
    assert torch.equal(batch.x.flatten(), batch.cond["text"]) and set(batch.cond["text"].tolist()) == {0, 1, 2}
    assert lam.shape == (50,) and batch.eps.shape == (50, 1, 1, 1) and len(own) == 50


def test_several_references(config, tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "b.png")
    config = change(
        config, image=(*config.data.image, tmp_path / "b.png"), caption=(CAPTION, "a cat in pixel art style")
    )
    train(config)
    assert (config.out / "reference.png").is_file()
    assert Image.open(config.out / "reference-1.png").getpixel((0, 0)) == (255, 0, 0)


def test_bfloat16(config):
    """Under a bfloat16 base the adapter stays float32, and moves where bfloat16 would round its steps away."""
    config = change(config, precision="bf16", lr=1e-5)
    train(config)
    assert {tensor.dtype for tensor in weights(config).values()} == {torch.float32}
    shares = rows(config)[-1]["unchanged"]
    assert shares["to_q.lora_A"] < 0.05 and shares["to_q.lora_B"] < 0.05 and shares["to_out.0.lora_A"] < 0.05


def test_previews_and_sheets_round_as_generate_does(config, monkeypatch):
    """diffusers loads a style in the base's precision, training keeps it in float32."""
    config = change(config, precision="bf16", lr=0.02, preview=True, preview_prompt=[CAPTION], checkpoint_every=6)
    train(config)
    preview = Image.open(config.out / "previews" / "step-000006-0.png")
    sampling = Sampling(size=config.data.size)
    own = {"sampling": sampling, "device": "cpu", "precision": "bf16"}
    ((drawn, _),) = generate(config.base, [CAPTION], styles=[str(config.out)], seed=config.seed, **own)
    assert drawn.tobytes() == preview.tobytes()
    cells = {}
    monkeypatch.setattr(checkpoints, "sheet", lambda rows, *a, **k: cells.update(rows) or Image.new("RGB", (9, 9)))
    checkpoints.checkpoint_sheet(config.out, [CAPTION], (1.0,), precision="bf16", device="cpu")
    assert cells["step 6"][0].tobytes() == drawn.tobytes()


def test_sigterm_finishes_the_step_and_saves(config):
    def terminate(phase, step=0, total=None, note=""):
        if phase == "training" and step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt, match="stopped after step 3"):
        train(config, terminate)
    assert train(config)["resumed_from"] == 3


def test_a_second_ctrl_c_stops_at_once():
    before = signal.getsignal(signal.SIGINT)  # a shell's background job ignores it
    with interruptible() as caught:
        os.kill(os.getpid(), signal.SIGINT)
        assert caught == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
