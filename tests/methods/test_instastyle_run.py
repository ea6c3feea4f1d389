"""InstaStyle, whole: stages, resuming, selection by a person, the style folder, mixing two styles."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from impasto.bases import loader
from impasto.cli.train import run_training
from impasto.config import resolve
from impasto.errors import UserError
from impasto.generation import Mixing, generate, mixing_sheets, open_session, timestep_sheet
from impasto.inversion import noise_file
from impasto.inversion.snr import correlation
from impasto.methods import instastyle
from impasto.methods.instastyle import CANDIDATES, REFINEMENT
from impasto.methods.selection import select
from impasto.methods.style_mix import mix_config, mix_styles
from impasto.sampling.config import GenerateConfig
from impasto.sampling.png import read_png_metadata
from impasto.sampling.sample import Sampling
from impasto.styles.convert import export_style, merge_styles, resize_style
from impasto.styles.load import load_style
from impasto.styles.parts import read_parts
from impasto.styles.start import build_start
from impasto.styles.weights import style_hash
from impasto.training.train import dry_run, train

OBJECTS = ["cat", "star", "rabbit"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:the reconstruction is"),
    pytest.mark.filterwarnings("ignore:.*will be enlarged"),
]


def config_of(base, picture, out, **changes):
    keys = {"method.objects": OBJECTS, "method.steps": 4, "method.n": 2, "method.fixed_point": 1, "lr": 1e-2}
    keys |= {"steps": 3, "rank": 2, "preview": False, "tensorboard": False, "select": "random", "checkpoint_every": 1}
    files = {"image": [str(picture)], "caption": ["a rocket in pixel art style"], "out": str(out)}
    return resolve("instastyle", str(base), **keys | files | changes)


def pixels(images):
    return np.stack([np.asarray(image).astype(int) for image in images])


@pytest.fixture(scope="module")
def trained(tiny_sd15, picture, tmp_path_factory):
    config = config_of(tiny_sd15, picture, tmp_path_factory.mktemp("instastyle") / "a", preview=True)
    return config, train(config)


@pytest.fixture(scope="module")
def second(tiny_sd15, picture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("second")
    Image.open(picture).rotate(90).save(folder / "other.png")
    config = config_of(tiny_sd15, folder / "other.png", folder / "b", caption=["a star, neon"], seed=1)
    train(config)
    return config


@pytest.fixture(scope="module")
def mixed(trained, second, tmp_path_factory):
    out = tmp_path_factory.mktemp("mixed") / "ab"
    with pytest.warns(UserWarning, match="reconstruction"):
        mix_styles([trained[0].out, second.out], out, steps=2, preview=False)
    return out


def draw(base, style, prompts=("a cat in <style1> style",), seed=0, batch=None, **more):
    sampling = more.pop("sampling", None) or Sampling(batch=batch)
    return [
        image
        for image, _ in generate(
            str(base), list(prompts), styles=[str(style)], seed=seed, sampling=sampling, device="cpu", **more
        )
    ]


def test_run_leaves_a_style_folder(trained):
    config, result = trained
    assert [part.kind for part in read_parts(config.out)] == ["lora", "token", "noise"]
    own = json.loads((config.out / "style.json").read_text())["sampling"]
    assert (own["sampler"], own["steps"], own["guidance"]) == ("ddim", 4, 2.5)
    prompts = [read_png_metadata(config.out / CANDIDATES / f"{i:02d}.png")["prompt"] for i in (1, 2, 3)]
    assert prompts == [f"a {thing} in pixel art style" for thing in OBJECTS]
    assert sorted(result["selected"]) == sorted(set(result["selected"])) and len(result["selected"]) == 2
    assert (config.out / "previews/0.png").is_file() and "**call" in (config.out / "README.md").read_text()
    flat = (config.out / REFINEMENT / "recipe.toml").read_text()
    assert "in <style1> style" in flat and f"{CANDIDATES}/0" in flat
    noise = noise_file.read(config.out / noise_file.NOISE)
    assert noise.info.caption == "a rocket in <style1> style" and noise.info.steps == 4
    first = noise_file.read(config.out / CANDIDATES / noise_file.NOISE)
    assert first.info.caption == config.data.caption[0] and (first.noise != noise.noise).any()
    hashed = style_hash(config.out)
    noise_file.write(config.out / noise_file.NOISE, first)
    assert style_hash(config.out) != hashed
    noise_file.write(config.out / noise_file.NOISE, noise)
    assert style_hash(config.out) == hashed


@pytest.mark.parametrize("base", ["tiny_sd3", "tiny_flux"])
def test_run_on_a_rectified_flow(base, request, picture, tmp_path):
    base = request.getfixturevalue(base)
    config = config_of(base, picture, tmp_path / "x", **{"method.until": 700.0})
    train(config)
    assert "sampler" not in json.loads((config.out / "style.json").read_text())["sampling"]
    assert noise_file.read(config.out / noise_file.NOISE).log_snr[-1] < -0.5  # t up to 600 of 1000
    images = draw(base, config.out, noise_random=0.0)
    name = json.loads((Path(base) / "model_index.json").read_text())["_class_name"]
    pipe = getattr(diffusers, name).from_pretrained(base)
    call = load_style(pipe, config.out)
    token, words = "a cat in <style1> <style1>_1 style", "a cat in pixel art style"  # CLIP and T5 read their own
    prompts = {"prompt": token, "prompt_2": token, "prompt_3": words} if base.name == "sd3" else {}
    prompts = prompts or {"prompt": "a cat in <style1> style", "prompt_2": words}
    lengths = {"max_sequence_length": next(iter(loader.load(str(base), device="cpu").text_lengths))}
    assert abs(pixels(pipe(**prompts, **lengths, **call).images) - pixels(images)).max() <= 1
    assert np.isfinite(pixels(images)).all()
    assert (pixels(images) != pixels(draw(base, config.out, ["a star in <style1> style"], noise_random=0.0))).any()


def test_same_command_runs_no_stage_again(trained, monkeypatch):
    config, result = trained
    before = {file: file.stat().st_mtime_ns for file in sorted(config.out.glob("**/*.safetensors"))}
    monkeypatch.setattr(instastyle, "invert_with", None)
    monkeypatch.setattr(instastyle, "generate_candidates", None)
    assert train(config)["selected"] == result["selected"]
    assert {file: file.stat().st_mtime_ns for file in before} == before


@pytest.mark.parametrize("stage", ["save_image", "save_png", "open_image", "fit", "write_parts", "write_card"])
def test_killed_run_resumes_to_the_same_style(trained, stage, tmp_path, monkeypatch):
    """Torn off inside a stage, the same command ends with the files of a run that was not."""
    config = trained[0]
    again = config_of(config.base, config.data.image[0], tmp_path / "again")
    real = getattr(instastyle, stage)

    class StopError(Exception):
        pass

    def stop(*args, **kwargs):
        if stage == "fit":
            real(args[0], stop_at)
        raise StopError

    def stop_at(phase, step=0, total=None, note=""):
        if phase == "training" and step == 2:
            raise StopError

    monkeypatch.setattr(instastyle, stage, stop)
    with pytest.raises(StopError):
        train(again)
    monkeypatch.undo()
    train(again)
    names = ["pytorch_lora_weights.safetensors", "learned_embeds.safetensors", "noise.safetensors"]
    for name in [*names, f"{CANDIDATES}/01.png"]:
        assert (again.out / name).read_bytes() == (config.out / name).read_bytes(), name


def test_changed_settings_are_refused(trained):
    config = trained[0]
    with pytest.raises(UserError, match="other settings"):
        train(config_of(config.base, config.data.image[0], config.out, preview=True, **{"method.guidance": 3.0}))


def test_damaged_candidate_is_made_again(trained, tmp_path):
    config = trained[0]
    out = tmp_path / "copy"
    shutil.copytree(config.out, out)
    whole = (out / CANDIDATES / "02.png").read_bytes()
    (out / CANDIDATES / "02.png").write_bytes(whole[:-9])
    train(config_of(config.base, config.data.image[0], out, preview=True))
    assert (out / CANDIDATES / "02.png").read_bytes() == whole


def test_selection_by_a_person(tiny_sd15, picture, tmp_path):
    config = config_of(tiny_sd15, picture, tmp_path / "x", select="human")
    result = train(config)
    assert (config.out / CANDIDATES / "sheet.png").is_file() and "impasto select" in result["next"]
    assert run_training(config, False)["next"] == result["next"] and not (config.out / REFINEMENT).exists()
    for numbers, message in (
        ([1, 4], "no candidate 4: their numbers are 1 to 3"),
        ([1, 1], "candidate 1 is selected twice"),
        ([2], "1 candidates selected, and the run asks for 2"),
    ):
        with pytest.raises(UserError, match=message):
            select(config.out, numbers)
    assert select(config.out, [3, 1])["selected"] == [3, 1]
    assert train(config)["selected"] == [3, 1]
    with pytest.raises(UserError, match="was trained on 3 1"):
        select(config.out, [1, 2])
    with pytest.raises(UserError, match="no style folder"):
        select(tmp_path, [1])


def test_generation_starts_from_the_kept_noise(trained):
    """The same as plain diffusers with `load_style`; whatever the seed without a random share."""
    config = trained[0]
    ours = draw(config.base, config.out, noise_random=0.0)
    name = json.loads((Path(config.base) / "model_index.json").read_text())["_class_name"]
    pipe = getattr(diffusers, name).from_pretrained(config.base)
    call = load_style(pipe, config.out)
    assert type(pipe.scheduler).__name__ == "DDIMScheduler" and call["latents"].shape == (1, 4, 4, 4)
    theirs = pipe("a cat in <style1> style", **call).images
    assert abs(pixels(theirs) - pixels(ours)).max() <= 1
    assert (pixels(draw(config.base, config.out, seed=7, noise_random=0.0)) == pixels(ours)).all()


def test_random_share_is_of_the_seed_whatever_the_batch(trained):
    config = trained[0]
    prompts = ["a cat in <style1> style"] * 3
    one, many = (draw(config.base, config.out, prompts, seed=5, batch=n, noise_random=0.5) for n in (1, 3))
    assert abs(pixels(one) - pixels(many)).max() <= 1
    assert (pixels(one)[0] != pixels(one)[1]).any()
    assert (pixels(draw(config.base, config.out, seed=6, noise_random=0.5)) == pixels(one)[1:2]).all()


def test_strength_scales_the_lora_only(trained):
    config = trained[0]
    base = draw(config.base, f"{config.out}:0", noise_random=0.0)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(config.base)
    call = load_style(pipe, config.out, 0.0)
    pipe.unload_lora_weights()
    assert abs(pixels(pipe("a cat in <style1> style", **call).images) - pixels(base)).max() <= 1


def test_other_steps_invert_the_reference_again(trained, tmp_path):
    config = trained[0]
    session = open_session(config.base, styles=[str(config.out)], device="cpu")

    def start(steps):
        sampling = replace(session.sampling, steps=steps)
        return build_start(config.out, session.noises, session.family, session.encode, sampling, random=0.0)(0)

    kept = session.noises[0].noise
    assert torch.equal(start(4), kept)
    again = {steps: start(steps) for steps in (5, 100)}
    assert all(0.8 < correlation(z, kept) < 0.9999 for z in again.values())
    image, info = next(session.sample([("a cat in <style1> style", 0)]))
    other = draw(config.base, config.out, sampling=Sampling(steps=5))
    assert info["steps"] == 4 and (pixels(other) != pixels([image])).any()
    shutil.copytree(config.out, tmp_path / "x")
    (tmp_path / "x" / "reference.png").unlink()
    with pytest.raises(UserError, match="to invert again at"):
        draw(config.base, tmp_path / "x", sampling=Sampling(steps=5))


def test_until_starts_sampling_at_a_level(tiny_sd15, picture, tmp_path):
    config = config_of(tiny_sd15, picture, tmp_path / "x", **{"method.until": 600.0})
    train(config)
    assert json.loads((config.out / "style.json").read_text())["sampling"]["until"] == 600
    noise = noise_file.read(config.out / noise_file.NOISE)
    assert len(noise.log_snr) == 4  # t = 0, 1, 251, 501; 751 is above
    assert len(noise_file.read(config.out / CANDIDATES / noise_file.NOISE).log_snr) == 4
    image, info = next(
        generate(str(tiny_sd15), ["a cat in <style1> style"], styles=[str(config.out)], device="cpu", noise_random=0.0)
    )
    assert info["until"] == 600 and info["steps"] == 4
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_sd15)
    theirs = pipe("a cat in <style1> style", **load_style(pipe, config.out)).images
    assert abs(pixels(theirs) - pixels([image])).max() <= 1
    other = draw(tiny_sd15, config.out, sampling=Sampling(until=300.0), noise_random=0.0)
    assert (pixels(other) != pixels([image])).any()
    with pytest.raises(UserError, match="until is for a style that keeps inversion noise"):
        next(generate(str(tiny_sd15), ["a cat"], sampling=Sampling(until=300.0), device="cpu"))
    with pytest.raises(UserError, match="timestep above 0 and up to"):
        draw(tiny_sd15, config.out, sampling=Sampling(until=1200.0))


def test_sweep_sheet_has_a_row_per_timestep(trained, tmp_path):
    prompts = ("a cat in <style1> style", "a star in <style1> style")
    config = GenerateConfig(
        base=trained[0].base, style=(str(trained[0].out),), prompt=prompts, out=tmp_path, device="cpu", steps=50
    )
    assert timestep_sheet(config)["sheets"] == ["sweep.png"]
    assert Image.open(tmp_path / "sweep.png").height > 7 * 112
    with pytest.raises(UserError, match="noise of one reference"):
        timestep_sheet(replace(config, style=()))


def test_mixed_style_has_a_token_and_a_noise_for_each(mixed, trained, second):
    assert [part.kind for part in read_parts(mixed)] == ["lora", "token", "token", "noise", "noise"]
    recipe = (mixed / REFINEMENT / "recipe.toml").read_text()
    assert "a cat in <style1> style" in recipe or "a star in <style1> style" in recipe
    assert ", <style2>" in recipe and 'words = ["pixel art", "neon"]' in recipe


def test_alpha_and_beta_at_their_ends_are_the_single_styles(mixed, trained):
    base = trained[0].base
    session = open_session(base, styles=[str(mixed)], device="cpu")
    first, other = ("a cat in <style1> style", 0), ("a cat in <style2> style", 0)

    def at(job, alpha, beta):
        return pixels([next(session.sample([job], Mixing(0.0, (alpha,), (beta,))))[0]])

    assert (at(first, 0.0, 0.0) == at(other, 0.0, 0.0)).all()  # either token names the style's place
    assert (at(first, 0.0, 0.0) != at(first, 1.0, 0.0)).any()
    assert (at(first, 0.0, 0.0) != at(first, 0.0, 1.0)).any()
    both = next(session.sample([first], Mixing(0.0, (0.5,), (0.5,))))[1]
    assert both["prompt_weights"] == [0.5, 0.5] and both["noise_weights"] == [0.5, 0.5]
    assert both["prompts"] == [first[0], other[0]]


def test_mixing_sheets(mixed, trained, tmp_path):
    config = GenerateConfig(
        base=trained[0].base, style=(str(mixed),), prompt=("a cat in <style1> style",), out=tmp_path, device="cpu"
    )
    assert mixing_sheets(config, grid=True, line=True)["sheets"] == ["grid.png", "line.png"]
    with pytest.raises(UserError, match="are for a style of two"):
        mixing_sheets(
            GenerateConfig(base=trained[0].base, style=(str(trained[0].out),), prompt=("a",), out=tmp_path), True, False
        )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"alpha": (1.5,)}, "alpha must be from 0 to 1, not 1.5"),
        ({"beta": (-0.1,)}, "beta must be from 0 to 1"),
        ({"alpha": (0.2, 0.2)}, "add up to 1"),
        ({"noise_random": 2.0}, "noise-random must be from 0 to 1"),
    ],
)
def test_shares_out_of_range_raise(mixed, trained, more, message):
    with pytest.raises(UserError, match=message):
        draw(trained[0].base, mixed, **more)


def test_mixing_flags_of_other_styles_raise(trained):
    config = trained[0]
    with pytest.raises(UserError, match="alpha is for a style of several"):
        draw(config.base, config.out, alpha=(0.5,))
    with pytest.raises(UserError, match="for a style that keeps inversion noise"):
        next(generate(config.base, ["a cat"], noise_random=0.1, device="cpu"))
    with pytest.raises(UserError, match="impasto mix"):
        next(generate(config.base, ["a cat"], styles=[str(config.out)] * 2, device="cpu"))


def test_noise_that_does_not_fit_raises(trained, tiny_sd15, tmp_path):
    config = trained[0]
    shutil.copytree(config.out, tmp_path / "x")
    shutil.copytree(tiny_sd15, tmp_path / "base")
    weights = load_file(tmp_path / "base/unet/diffusion_pytorch_model.safetensors")
    weights["conv_out.bias"] += 1
    save_file(weights, tmp_path / "base/unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match="inversion noise is of another base"):
        draw(tmp_path / "base", tmp_path / "x")
    file = tmp_path / "x" / noise_file.NOISE
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        draw(config.base, tmp_path / "x")


def test_candidates_draw_a_share_of_the_noise_anew(tiny_sd15, picture, tmp_path):
    keys = {"select": "human", "method.objects": ["cat", "cat"]}
    one, other = (config_of(tiny_sd15, picture, tmp_path / f"{p}", **keys, **{"method.random": p}) for p in (0.0, 0.5))
    images = {}
    for config in (one, other):
        train(config)
        images[config.out] = [np.asarray(Image.open(config.out / CANDIDATES / f"0{i}.png")) for i in (1, 2)]
    assert (images[one.out][0] == images[one.out][1]).all() and (images[other.out][0] != images[other.out][1]).any()


def test_what_cannot_be_mixed_raises(trained, tiny_sd3, picture, tmp_path):
    first = trained[0].out
    with pytest.raises(UserError, match="two styles or more"):
        mix_config([first], tmp_path / "ab")
    other = config_of(tiny_sd3, picture, tmp_path / "sd3", select="human")
    train(other)
    with pytest.raises(UserError, match="two bases cannot be mixed"):
        mix_config([first, other.out], tmp_path / "ab")
    waiting = config_of(trained[0].base, picture, tmp_path / "waiting", select="human")
    train(waiting)
    with pytest.raises(UserError, match="no selected candidates"):
        mix_config([first, waiting.out], tmp_path / "ab")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"caption": ["a rocket"]}, "has no style words"),
        ({"caption": ["a", "b"]}, "one --image with one --caption"),
        ({"text": "frozen"}, "trains one token"),
        ({"method.n": 4}, "4 of 3 objects"),
        ({"style_words": "oil"}, "do not follow an object"),
        ({"method.steps": 2000}, "steps must be at most 999 for this base, not 2000"),
        ({"method.until": 0.5}, r"until timestep 0.5 has no step: the first of the grid goes to 1; take"),
        ({"method.until": 5000.0}, "until must be a timestep above 0 and up to 999"),
    ],
)
def test_bad_settings_raise(tiny_sd15, picture, tmp_path, keys, message):
    with pytest.raises(UserError, match=message):
        train(config_of(tiny_sd15, picture, tmp_path / "x", **keys))


def test_dry_run_describes_the_refinement(tiny_sd15, picture, tmp_path):
    plan = dry_run(config_of(tiny_sd15, picture, tmp_path / "x"))
    assert plan["draws"] == 6 and plan["settings"]["text.words"] == ["pixel art"]
    assert not (tmp_path / "x").exists()


def test_export_writes_lora_and_token(trained, tmp_path):
    out = trained[0].out
    result = export_style(out, "kohya", tmp_path / "x.safetensors")
    assert result["embeddings"] == [str(tmp_path / "x-learned_embeds.safetensors")] and "stays" in result["notes"][0]
    assert (tmp_path / "x-learned_embeds.safetensors").read_bytes() == (out / "learned_embeds.safetensors").read_bytes()
    for refused in (lambda: resize_style(out, 1, tmp_path / "r"), lambda: merge_styles([str(out)] * 2, tmp_path / "m")):
        with pytest.raises(UserError, match=r"noise and token, which (resize|merge) would lose"):
            refused()
