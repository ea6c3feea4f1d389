"""Generating: the same picture as plain diffusers, whatever the batch, with its settings in the file."""

import hashlib
import json
import math
import shutil
import warnings
import weakref
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image

from impasto.adapters.config import LoRA
from impasto.adapters.lora import add
from impasto.bases.loader import load
from impasto.config import resolve
from impasto.errors import UserError
from impasto.families.sd3 import SD3
from impasto.generation import generate, generate_folder
from impasto.guidance.config import PromptSwitch, StyleAligned
from impasto.sampling.config import GenerateConfig
from impasto.sampling.prompts import read_prompts
from impasto.sampling.sample import Sampling
from impasto.styles import save, weights
from impasto.styles.convert import export_style
from impasto.styles.weights import split_strength
from impasto.training.train import train


@pytest.fixture(scope="module")
def style(tiny_sd3, picture, tmp_path_factory):
    """A trained style, alpha other than the rank, its B then drawn large enough to be seen."""
    out = tmp_path_factory.mktemp("styles") / "ink"
    settings = {"rank": 4, "alpha": 6.0, "preview": False, "tensorboard": False, "steps": 2}
    train(
        resolve(
            "style-friendly", str(tiny_sd3), image=[str(picture)], caption=["in ink style"], out=str(out), **settings
        )
    )
    family = load(str(tiny_sd3), device="cpu")
    parameters = add(family, LoRA(rank=4, alpha=6.0, targets=("attention",)), 0)
    shared = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in parameters.items():
            if "lora_B" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=shared))
    save.save(family, out)
    return out


def pixels(image):
    return np.asarray(image).astype(int)


def plain(tiny_sd3, prompt, seed, style=None, strength=1.0):
    """Diffusers and nothing else."""
    pipe = StableDiffusion3Pipeline.from_pretrained(tiny_sd3)
    if style:
        pipe.load_lora_weights(style)
        pipe.set_adapters(pipe.get_active_adapters(), [strength])
    call = {"num_inference_steps": 4, "guidance_scale": 3.0, "max_sequence_length": 1}
    return pipe(prompt, generator=torch.Generator("cpu").manual_seed(seed), **call).images[0]


def test_without_a_style_it_is_the_pipeline(tiny_sd3):
    image, info = next(generate(str(tiny_sd3), ["a cat"], seed=3))
    assert (pixels(image) == pixels(plain(tiny_sd3, "a cat", 3))).all()
    assert info["styles"] == [] and info["seed"] == 3


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_style_gives_the_same_picture_in_plain_diffusers(tiny_sd3, style, strength):
    image, info = next(generate(str(tiny_sd3), ["a cat"], styles=[f"{style}:{strength}"], seed=5))
    assert (pixels(image) == pixels(plain(tiny_sd3, "a cat", 5, style, strength))).all()
    assert (pixels(image) != pixels(plain(tiny_sd3, "a cat", 5))).any()
    assert info["styles"] == [{"path": str(style), "strength": strength, "hash": weights.style_hash(style)}]


def test_pictures_do_not_depend_on_the_batch(tiny_sd3, style):
    prompts = ["a cat", "a rocket in ink style", "a star"]
    one, three, all_ = (
        list(generate(str(tiny_sd3), prompts, styles=[str(style)], count=2, sampling=Sampling(batch=batch)))
        for batch in (1, 3, 6)
    )
    for other in (three, all_):
        for (a, info_a), (b, info_b) in zip(one, other, strict=True):
            assert abs(pixels(a) - pixels(b)).max() <= 1 and info_a == info_b


def test_order_seeds_and_counts(tiny_sd3):
    infos = [info for _, info in generate(str(tiny_sd3), ["x", "y"], seed=10, count=2, sampling=Sampling(steps=1))]
    assert [(info["prompt"], info["seed"]) for info in infos] == [("x", 10), ("x", 11), ("y", 12), ("y", 13)]


@pytest.mark.parametrize("batch", [1, 3])
def test_embeddings_of_earlier_batches_are_let_go(tiny_sd3, picture, monkeypatch, batch):
    """All that a batch asks for is encoded once: its prompts, the second ones, the negative, the reference's caption;
    and what is drawn does not depend on what is kept."""
    encode, asked, alive, most = SD3.encode_prompt, [], [], [0]

    def watched(self, prompts, *args, **more):
        asked.extend(prompts)
        cond = encode(self, prompts, *args, **more)
        alive[:] = [one for one in alive if one() is not None] + [weakref.ref(next(iter(cond.values())))]
        most[0] = max(most[0], len(alive))
        return cond

    monkeypatch.setattr(SD3, "encode_prompt", watched)
    prompts = [f"a {a} and {b}" for a in ("cat", "star", "rocket", "face") for b in ("cat", "cactus", "rabbit")]
    sampling = Sampling(steps=2, batch=batch, negative="a drawing")
    more = {
        "guidances": [PromptSwitch("{prompt} in ink style", -math.inf), StyleAligned(picture, "a star in ink")],
    }
    drawn = [image.tobytes() for image, _ in generate(str(tiny_sd3), prompts, count=2, sampling=sampling, **more)]
    second = [f"{prompt} in ink style" for prompt in prompts]
    assert sorted(asked) == sorted([*prompts, *second, "a drawing", "a star in ink"])
    assert most[0] <= 2 * batch + 3
    monkeypatch.setattr("impasto.sampling.sample.lru_cache", lambda size: lru_cache(None))
    kept = [image.tobytes() for image, _ in generate(str(tiny_sd3), prompts, count=2, sampling=sampling, **more)]
    assert drawn == kept and len(set(drawn)) == 24


def test_sampling_is_used(tiny_sd3):
    first = pixels(next(generate(str(tiny_sd3), ["a cat"]))[0])
    for sampling in (Sampling(steps=2), Sampling(guidance=1.0), Sampling(negative="a rocket"), Sampling(size=32)):
        image, info = next(generate(str(tiny_sd3), ["a cat"], sampling=sampling))
        assert image.size != (16, 16) or (pixels(image) != first).any()
        assert info["width"] == (sampling.size or 16)


@pytest.fixture
def config(tiny_sd3, style, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat in ink style\n\n  a star, größer \n")
    return GenerateConfig(
        base=str(tiny_sd3), style=(f"{style}:0.8",), prompt=("a rocket",), prompts=prompts, seed=7, out=tmp_path / "out"
    )


def test_a_folder_of_pictures_that_say_how_they_were_made(config, style):
    result = generate_folder(config)
    assert result["images"] == ["0000.png", "0001.png", "0002.png"]
    assert sorted(file.name for file in config.out.iterdir()) == result["images"]
    told = [json.loads(Image.open(config.out / name).text["impasto"]) for name in result["images"]]
    assert [info["prompt"] for info in told] == ["a rocket", "a cat in ink style", "a star, größer"]
    assert told[1].keys() == {
        *("prompt", "negative_prompt", "seed", "steps", "guidance", "width", "height", "base", "base_hash", "styles"),
        "version",
        "style_guidance",
    }
    assert told[1]["seed"] == 8 and told[1]["base_hash"] == load(config.base).hash
    assert told[1]["styles"][0]["strength"] == 0.8 and told[1]["styles"][0]["hash"] == weights.style_hash(style)
    human = Image.open(config.out / "0001.png").text["parameters"]
    assert human.startswith("a cat in ink style <lora:ink:0.8>\nSteps: 4, CFG scale: 3, Seed: 8, Size: 16x16")


def test_generate_goes_on_behind_the_images_that_are_there(config):
    config = replace(config, style=(), prompts=None, count=2, steps=1)
    assert generate_folder(config)["images"] == ["0000.png", "0001.png"]
    (config.out / "scores.json").write_text('{"images_scored": 2}')
    Image.new("RGB", (9, 9)).save(config.out / "0007.png")
    before = {file.name: file.read_bytes() for file in config.out.iterdir()}
    result = generate_folder(config)
    assert result["images"] == ["0008.png", "0009.png"] and "removed" not in result
    assert before.items() <= {file.name: file.read_bytes() for file in config.out.iterdir()}.items()


def test_what_an_earlier_longer_command_left_is_removed(config):
    """Its pictures and their scores; not what it did not write, whatever its name."""
    config = replace(config, style=(), prompts=None, count=3, steps=1, replace=True)
    assert "removed" not in generate_folder(config)
    for name in ("0007.png", "7.png", "photo.png"):
        Image.new("RGB", (9, 9)).save(config.out / name)
    (config.out / "scores.json").write_text('{"images_scored": 3}')
    (config.out / "scores-of-mine.json").write_text('{"images_scored": 3}')
    assert generate_folder(replace(config, count=1))["removed"] == ["0001.png", "0002.png", "scores.json"]
    left = {"0000.png", "0007.png", "7.png", "photo.png", "scores-of-mine.json"}
    assert {file.name for file in config.out.iterdir()} == left
    (config.out / "scores.json").write_text('{"mine": 3}')
    assert "removed" not in generate_folder(replace(config, count=1))


def test_a_picture_of_one_s_own_is_not_written_over(config):
    config.out.mkdir()
    Image.new("RGB", (9, 9), "red").save(config.out / "0001.png")
    with pytest.raises(UserError, match=r"0001\.png' is a picture that impasto did not draw: use another --out"):
        generate_folder(replace(config, replace=True))
    assert [file.name for file in config.out.iterdir()] == ["0001.png"]
    assert Image.open(config.out / "0001.png").size == (9, 9)


def test_an_interrupted_command_leaves_no_mixture(config):
    config = replace(config, style=(), prompts=None, count=3, steps=1, replace=True)
    generate_folder(config)
    (config.out / "scores.json").write_text('{"images_scored": 3}')

    def stop(phase, done=0, total=None, note=""):
        if done == 2:  # the first image is written
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_folder(replace(config, prompt=("a dog",), batch=1), stop)
    assert [file.name for file in config.out.iterdir()] == ["0000.png"]
    with pytest.raises(UserError):
        generate_folder(replace(config, guidance=math.nan))
    assert [file.name for file in config.out.iterdir()] == ["0000.png"], "bad input loses nothing"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": math.nan}, "guidance must be a finite number from 0 on, not nan"),
        ({"guidance": -7.0}, "guidance must be a finite number from 0 on, not -7"),
        ({"style_guidance": math.inf}, "style-guidance must be a finite number from 0 on, not inf"),
        ({"seed": -2}, "seed must be from 0 to"),
        ({"seed": 10**20}, "seed must be from 0 to"),
        ({"size": 0}, "size must be at least 1"),
        ({"size": 17}, "size must be a multiple of 8"),
        ({"size": "16x17"}, "height must be a multiple of 8"),
        ({"size": "16x"}, "size '16x' must be a side or width x height"),
        ({"size": 4096}, r"size must be at most \d+ for this base \(its position table\), not 4096"),
    ],
)
def test_numbers_that_cannot_be(config, changes, message):
    with pytest.raises(UserError, match=message):
        generate_folder(replace(config, **changes))


@pytest.mark.parametrize("strength", ["nan", "inf", "-inf"])
def test_a_strength_is_finite(config, style, strength):
    with pytest.raises(UserError, match="the strength must be a finite number"):
        generate_folder(replace(config, style=(f"{style}:{strength}",)))


def test_what_is_not_finite_is_told(config, style):
    with pytest.warns(UserWarning, match=r"the image of seed \d+ has values that are not finite"):
        generate_folder(replace(config, style=(f"{style}:1e30",)))
    assert not pixels(Image.open(config.out / "0000.png")).any()


def test_a_unet_has_no_more_steps_than_its_schedule(tiny_sd15):
    with pytest.raises(UserError, match="steps must be at most 999 for this base, not 1000"):
        next(generate(str(tiny_sd15), ["a cat"], sampling=Sampling(steps=1000)))


def test_a_negative_prompt_that_is_not_used_is_told(tiny_sd3):
    with pytest.warns(UserWarning, match="without guidance above 1 a negative prompt is not used"):
        next(generate(str(tiny_sd3), ["a cat"], sampling=Sampling(negative="a dog", guidance=1.0)))


def test_a_prompts_file_as_windows_writes_it(config, tmp_path):
    (tmp_path / "bom.txt").write_bytes("\ufeffa cat\r\na star\r\n".encode())
    assert read_prompts(replace(config, prompt=(), prompts=tmp_path / "bom.txt")) == ["a cat", "a star"]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"])
def test_only_a_line_feed_ends_a_prompt(config, tmp_path, mark):
    (tmp_path / "marks.txt").write_bytes(f"a cat{mark}on a mat\r\na star".encode())
    prompts = read_prompts(replace(config, prompt=(), prompts=tmp_path / "marks.txt"))
    assert prompts == [f"a cat{mark}on a mat", "a star"]


def test_a_picture_can_be_made_again_from_what_it_says(config):
    generate_folder(config)
    path = config.out / "0002.png"
    info = json.loads(Image.open(path).text["impasto"])
    styles = [f"{style['path']}:{style['strength']}" for style in info["styles"]]
    sampling = Sampling(info["steps"], info["guidance"], info["negative_prompt"], info["width"])
    again, _ = next(generate(info["base"], [info["prompt"]], styles=styles, seed=info["seed"], sampling=sampling))
    assert abs(pixels(again) - pixels(Image.open(path))).max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": (), "prompts": None}, "no prompt"),
        ({"prompt": ("a cat", " ")}, "no prompt"),
        ({"style": ("nowhere",)}, "no such file or folder"),
        ({"style": ("nowhere:0.5",)}, "no such file or folder"),
        ({"style": ("STYLE:much",)}, "after the colon comes a number"),
        ({"size": 17}, "multiple of 8"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"count": 0}, "count must be at least 1"),
        ({"base": "mini-sd2"}, "did you mean 'mini-sd3'"),
    ],
    ids=str,
)
def test_bad_input(config, style, changes, message):
    changes = {k: tuple(x.replace("STYLE", str(style)) for x in v) if k == "style" else v for k, v in changes.items()}
    with pytest.raises(UserError, match=message):
        generate_folder(replace(config, **changes))
    assert not list(config.out.glob("*")) if config.out.exists() else True


def test_bad_files(config, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        generate_folder(replace(config, prompts=tmp_path / "nowhere.txt"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        generate_folder(replace(config, out=tmp_path / "file"))
    with pytest.raises(UserError, match="is a file, or lies in one"):
        generate_folder(replace(config, out=tmp_path / "file" / "deeper"))


def test_a_colon_in_the_path_is_no_strength(style, tmp_path):
    odd = tmp_path / "a:0.5"
    odd.mkdir()
    (odd / weights.WEIGHTS).write_bytes((style / weights.WEIGHTS).read_bytes())
    assert split_strength(str(odd)) == (odd, None)
    assert split_strength(f"{odd}:0.25") == (odd, 0.25)
    assert split_strength(f"{style}:-0.5") == (style, -0.5)


def test_a_style_of_a_quantised_base_is_told(tiny_sd3, style, tmp_path):
    """It was trained on other weights than it is drawn on; from a folder, and from a file that was exported from it."""
    ink = tmp_path / "ink"
    shutil.copytree(style, ink)
    recipe = (ink / "recipe.toml").read_text()
    assert 'quantize = "none"' in recipe
    draw = partial(generate, str(tiny_sd3), ["a cat in ink style"], device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        draw(styles=[str(ink)])
    (ink / "recipe.toml").write_text(recipe.replace('quantize = "none"', 'quantize = "nf4"'))
    file = export_style(ink, "diffusers", tmp_path / "ink.safetensors")["out"]
    for path in (ink, file):
        with pytest.warns(UserWarning, match=r"was trained on the base in nf4 and is drawn here on the base in fp32"):
            draw(styles=[f"{path}:0.8"])
    (ink / "recipe.toml").write_text("rank = ")
    with pytest.raises(UserError, match=r"recipe\.toml is damaged"):
        draw(styles=[str(ink)])


def test_aligned_to_a_picture(config, picture, style):
    """With a style as well; the PNG says to what, and with what settings."""
    aligned = StyleAligned(picture, "a star in ink style", shift=0.5)
    generate_folder(replace(config, prompt=("a rocket",), prompts=None, guidances=(aligned,)))
    png = Image.open(config.out / "0000.png")
    told = json.loads(png.text["impasto"])
    assert told["aligned"] == {
        "method": "style-aligned",
        "reference": str(picture),
        "hash": hashlib.sha256(picture.read_bytes()).hexdigest(),
        "caption": "a star in ink style",
        "share": True,
        "adain": ["queries", "keys"],
        "scale": 1.0,
        "shift": 0.5,
    }
    assert told["styles"][0]["path"] == str(style) and "StyleAligned to: " in png.text["parameters"]
    alone, _ = next(generate(config.base, ["a rocket"], styles=config.style, seed=config.seed))
    assert (pixels(alone) != pixels(png)).any()


def test_a_reference_in_the_folder_stays(config):
    """The first picture, which would be written over, and the last of an earlier command, which would be removed."""
    generate_folder(config)
    before = {file.name: file.read_bytes() for file in config.out.iterdir()}
    for name in (min(before), max(before)):
        aligned = StyleAligned(config.out / name, "a star")
        with pytest.raises(UserError, match="lies in --out, and would be removed"):
            generate_folder(replace(config, prompts=None, prompt=("a cat",), guidances=(aligned,), replace=True))
    assert {file.name: file.read_bytes() for file in config.out.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "PICTURE"}, "no caption"),
        ({"image": "nowhere.png", "caption": "a star"}, "does not exist"),
        ({"caption": "a star"}, "go with aligned-to"),
        ({"shift": 0.0}, "go with aligned-to"),
        ({"image": "PICTURE", "caption": "a star", "adain": ("key",)}, "did you mean 'keys'"),
        ({"image": "PICTURE", "caption": "a star", "scale": -1.0}, "above 0"),
        ({"image": "PICTURE", "caption": "a star", "size": 17}, "multiple of 8"),
    ],
    ids=str,
)
def test_bad_references(config, picture, changes, message):
    changes = {key: Path(value) if key == "image" else value for key, value in changes.items()}
    changes |= {"image": picture} if changes.get("image") == Path("PICTURE") else {}
    size = {"size": changes.pop("size")} if "size" in changes else {}
    with pytest.raises(UserError, match=message):
        generate_folder(replace(config, guidances=(StyleAligned(**changes),), **size))
    assert not list(config.out.glob("*"))
