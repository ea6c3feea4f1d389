"""StyleDrop, whole: two rounds, resuming, selections, the style folder, on a diffusion base and on Muse."""

import json
import shutil
import tomllib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from impasto.adapters.config import LoRA
from impasto.config import resolve
from impasto.errors import UserError
from impasto.generation import generate
from impasto.methods import styledrop
from impasto.methods.selection import CANDIDATES, SHEET, select
from impasto.methods.stages import Stages
from impasto.methods.styledrop import FIRST, OBJECTS, SECOND
from impasto.sampling.png import read_png_metadata
from impasto.styles.parts import read_parts
from impasto.training.train import dry_run, train

pytestmark = [
    pytest.mark.filterwarnings("ignore:after"),
    pytest.mark.filterwarnings("ignore:.*will be enlarged"),
    pytest.mark.filterwarnings("ignore:the caption 'a rocket' names no style"),
]
THINGS = ["cat", "star", "rabbit"]


def config_of(base, picture, out, **changes):
    keys = {"method.objects": THINGS, "method.images": 2, "lr": 1e-2, "steps": 3, "batch": 2, "accumulate": 1}
    keys |= {"preview": False, "tensorboard": False, "select": "random", "checkpoint_every": 1, "size": 16}
    files = {"image": [str(picture)], "caption": ["a rocket in pixel art style"], "out": str(out)}
    return resolve("styledrop", str(base), **keys | files | changes)


def tensors(folder):
    return load_file(folder / read_parts(folder)[0].file)


@pytest.fixture(scope="module", params=["tiny_sd15", "tiny_muse"])
def trained(request, picture, tmp_path_factory):
    base = request.getfixturevalue(request.param)
    config = config_of(base, picture, tmp_path_factory.mktemp("styledrop") / "a", preview=True)
    return config, train(config)


def test_run_leaves_a_style_folder_of_the_second_round(trained):
    config, result = trained
    selected = result["selected"]
    assert len(selected) == 3 and [(i - 1) // 2 for i in selected] == [0, 1, 2]
    recipe = tomllib.loads((config.out / SECOND / "recipe.toml").read_text())
    assert recipe["data"]["caption"] == [f"a {thing} in pixel art style" for thing in THINGS]
    assert [one.rpartition("/")[2] for one in recipe["data"]["image"]] == [f"{i:02d}.png" for i in selected]
    info = read_png_metadata(config.out / CANDIDATES / "03.png")
    assert info["prompt"] == "a star in pixel art style" and info["seed"] == 2
    assert info["style_semantics"]["lambda1"] == 2 and info["styles"][0]["strength"] == 1
    own, last, first = (tensors(folder) for folder in (config.out, config.out / SECOND, config.out / FIRST))
    assert all(torch.equal(own[name], last[name]) for name in last) and own.keys() == last.keys()
    assert any(first[name].shape != last[name].shape or (first[name] != last[name]).any() for name in last)
    assert (config.out / "previews/0.png").is_file() and (config.out / "reference.png").is_file()
    card = (config.out / "README.md").read_text()
    assert "lambda1 2, lambda2 0, lambda_base" in card
    assert json.loads((config.out / "style.json").read_text())["guidance"]["style-semantics"]["lambda1"] == 2


def test_adapter_follows_the_base_and_the_round(tiny_sd15, tiny_muse, picture, tmp_path):
    diffusion, muse = (config_of(base, picture, tmp_path / "x") for base in (tiny_sd15, tiny_muse))
    assert isinstance(diffusion.adapter, LoRA) and type(diffusion.noise).__name__ == "UniformNoise"
    assert (muse.adapter.dim, muse.adapter.shared) == (4, True) and type(muse.noise).__name__ == "CosineMaskNoise"
    second = styledrop.second_round(muse, [])
    assert (second.adapter.dim, second.adapter.shared) == (32, False)
    assert styledrop.second_round(diffusion, []).adapter == diffusion.adapter
    assert len(set(OBJECTS)) == 30


def test_same_command_runs_no_stage_again(trained, monkeypatch):
    config, result = trained
    before = {file: file.stat().st_mtime_ns for file in sorted(config.out.glob("**/*.safetensors"))}
    monkeypatch.setattr(styledrop, "open_session", None)
    monkeypatch.setattr(styledrop, "write_card", None)
    assert train(config)["selected"] == result["selected"]
    assert {file: file.stat().st_mtime_ns for file in before} == before


@pytest.mark.parametrize("stage", [FIRST, "save_png", "open_image", SECOND, "write_parts", "write_card"])
def test_killed_run_resumes_to_the_same_style(trained, stage, tmp_path, monkeypatch):
    """Torn off inside a stage, the same command ends with the files of a run that was not."""
    config = trained[0]
    again = config_of(config.base, config.data.image[0], tmp_path / "again", preview=True)

    class StopError(Exception):
        pass

    real = {name: getattr(styledrop, name) for name in ("fit", "save_png")}
    calls = []

    def stop_at(phase, step=0, total=None, note=""):
        if phase == "training" and step == 2:
            raise StopError

    def stop(*args, **kwargs):
        calls.append(args)
        if stage in (FIRST, SECOND):
            return real["fit"](args[0], stop_at if args[0].out.name == stage else args[1])
        if stage == "save_png" and len(calls) < 4:
            return real["save_png"](*args)
        raise StopError

    monkeypatch.setattr(styledrop, "fit" if stage in (FIRST, SECOND) else stage, stop)
    with pytest.raises(StopError):
        train(again)
    monkeypatch.undo()
    train(again)
    for name in (read_parts(config.out)[0].file, f"{CANDIDATES}/01.png", f"{CANDIDATES}/06.png", SHEET):
        assert (again.out / name).read_bytes() == (config.out / name).read_bytes(), name


def test_damaged_candidate_is_made_again(trained, tmp_path):
    config = trained[0]
    out = tmp_path / "copy"
    shutil.copytree(config.out, out)
    whole = (out / CANDIDATES / "02.png").read_bytes()
    (out / CANDIDATES / "02.png").write_bytes(whole[:-9])
    shutil.rmtree(out / SECOND)  # it names its images by their paths
    train(config_of(config.base, config.data.image[0], out, preview=True))
    assert (out / CANDIDATES / "02.png").read_bytes() == whole


def test_one_round_is_the_first_adapter_and_the_same_command_goes_on(tiny_sd15, picture, tmp_path):
    config = config_of(tiny_sd15, picture, tmp_path / "x", rounds=1, caption=["a rocket"])
    assert "selected" not in train(config) and not (config.out / CANDIDATES).exists()
    own, first = tensors(config.out), tensors(config.out / FIRST)
    assert all(torch.equal(own[name], first[name]) for name in first)
    with pytest.raises(UserError, match="has no style words"):
        train(config_of(tiny_sd15, picture, tmp_path / "x", caption=["a rocket"]))
    one = config_of(tiny_sd15, picture, tmp_path / "y", rounds=1)
    train(one)
    before = tensors(one.out)
    train(config_of(tiny_sd15, picture, tmp_path / "y", rounds=2))
    assert any((before[name] != tensor).any() for name, tensor in tensors(one.out).items())


def test_selection_by_a_person(tiny_sd15, picture, tmp_path):
    config = config_of(tiny_sd15, picture, tmp_path / "x", select="human")
    result = train(config)
    assert (config.out / SHEET).is_file() and "impasto select" in result["next"]
    assert not (config.out / SECOND).exists() and train(config)["next"] == result["next"]
    for numbers, message in (([7], "their numbers are 1 to 6"), ([], "0 candidates selected")):
        with pytest.raises(UserError, match=message):
            select(config.out, numbers)
    assert select(config.out, [5, 1])["selected"] == [5, 1] == train(config)["selected"]
    with pytest.raises(UserError, match="was trained on 5 1: remove"):
        select(config.out, [2])


def test_clip_selects_the_candidate_nearest_to_its_prompt(trained, tmp_path, monkeypatch):
    config = trained[0]
    scores = torch.tensor([0.1, 0.3, 0.5, 0.2, 0.4, 0.9])
    given = iter(scores.split(2))

    def encode(images, prompts, encoder):
        assert len(set(prompts)) == 1 and all(image.size == (16, 16) for image in images)
        own = next(given)
        return own[:, None], torch.ones(len(own), 1)

    monkeypatch.setattr(styledrop, "encode_pairs", encode)
    again = config_of(config.base, config.data.image[0], config.out, select="clip")
    shutil.copytree(config.out, tmp_path / "x")
    candidates = styledrop.list_candidates([(thing, f"a {thing}") for thing in THINGS for _ in range(2)])
    assert styledrop.select_candidates(Stages(tmp_path / "x"), again, candidates) == [2, 3, 6]
    kept = json.loads((tmp_path / "x/state/selection.json").read_text())
    assert kept["clip"] == pytest.approx(scores.tolist(), abs=1e-4)


def test_style_is_sampled_by_its_guidance(trained):
    config = trained[0]
    prompt = ["a cat in pixel art style"]
    (image, info), (again, _) = (next(generate(config.base, prompt, styles=[str(config.out)])) for _ in range(2))
    assert info["style_semantics"] == {
        "lambda1": 2,
        "lambda2": 0,
        "lambda_base": info["style_semantics"]["lambda_base"],
    } | {
        "n1": "",
        "n2": "",
    }
    assert np.array_equal(np.asarray(image), np.asarray(again))
    assert isinstance(Image.open(config.out / "previews/0.png"), Image.Image)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rounds": 3}, "rounds must be 1 or 2, not 3"),
        ({"method.images": 0}, "method.images must be above 0"),
        ({"method.lambda_a": -1.0}, "method.lambda_a must be"),
        ({"caption": ["a rocket"]}, "has no style words"),
        ({"adapter": "full"}, "trains the base's own weights"),
    ],
)
def test_bad_input_is_refused_in_one_line(tiny_sd15, picture, tmp_path, keys, message):
    with pytest.raises(UserError, match=message) as error:
        train(config_of(tiny_sd15, picture, tmp_path / "x", **keys))
    assert "\n" not in str(error.value) and not (tmp_path / "x" / FIRST).exists()


def test_dry_run_states_the_second_round(tiny_sd15, picture, tmp_path):
    plan = dry_run(config_of(tiny_sd15, picture, tmp_path / "x"))
    assert "2 candidates of each of 3 objects, selected by random" in plan["data"]["advice"][-1]
    assert not (tmp_path / "x").exists()
