"""The method finestyle as a user runs it: concepts, pairs, training, guidance, resuming, what is refused."""

import json
import tomllib

import numpy as np
import pytest
from PIL import Image, ImageDraw

from impasto.cli.console import show_sheet
from impasto.config import change, recipes, resolve
from impasto.data.concepts import read_concepts
from impasto.errors import UserError
from impasto.generation import generate
from impasto.sampling.png import read_png_metadata
from impasto.sampling.sample import Sampling
from impasto.styles.parts import read_style_json
from impasto.training.checkpoints import states
from impasto.training.guidance_sheet import guidance_sheet
from impasto.training.train import dry_run, train

CAPTION = "a rocket and a star in ink style"
BOXES = "4,6,24,30; 40,30,60,58"
pytestmark = pytest.mark.filterwarnings("ignore:crops of concepts are scaled up", "ignore:after")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    image = Image.new("RGB", (64, 64), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((4, 6, 23, 29), fill="red")
    draw.ellipse((40, 30, 59, 57), fill="navy")
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    image.save(path)
    return path


def config_of(base, scene, out, recipe="finestyle", **keys):
    rank = {} if "adapter" in keys else {"rank": 2}
    own = {"image": (scene,), "caption": (CAPTION,), "out": out, "size": 16, "batch": 2, "accumulate": 1, "steps": 3}
    return resolve(recipe, str(base), **own | {"tensorboard": False, "preview": False} | rank | keys)


@pytest.mark.filterwarnings("ignore:no region shows")  # a random base
@pytest.mark.parametrize("kind", ["sd15", "sd3"])
def test_finestyle_finds_trains_and_states_its_guidance(kind, request, scene, tmp_path):
    base = request.getfixturevalue(f"tiny_{kind}")
    config = config_of(base, scene, tmp_path / "run", finder="error", preview=True)
    result = train(config)
    found = read_concepts(config.out / "concepts.json")
    assert result["concepts"] == ["rocket", "star"] and found.finder == "error" and found.base == str(base)
    assert Image.open(config.out / "concepts.png").size[0] >= 640
    stated = read_style_json(config.out)
    assert stated["guidance"]["style-semantics"] == {
        "lambda1": 3, "lambda2": 2, "lambda_base": 3, "n1": "", "n2": "ink style"
    }  # fmt: skip
    recipe = tomllib.loads((config.out / "recipe.toml").read_text())
    assert recipe["method"]["name"] == "finestyle" and "concept_file" not in recipe["data"]
    assert recipe["impasto"]["captions"] == [CAPTION, "rocket in ink style", "star in ink style"]
    previews = sorted((config.out / "previews").glob("*.png"))
    _, info = next(generate(str(base), [CAPTION], styles=[str(config.out)], sampling=Sampling(steps=4)))
    assert info["style_semantics"]["lambda1"] == 3 and info["styles"][0]["strength"] == 1
    assert [read_png_metadata(file)["style_semantics"] for file in previews] == [info["style_semantics"]] * 4
    card = (config.out / "README.md").read_text()
    assert "lambda1 3, lambda2 2, lambda_base 3" in card and "--lambda1 0 --lambda2 2 --lambda-base 0" in card
    assert train(config)["resumed_from"] == 3


def test_previews_are_the_images_of_generate(tiny_sd3, scene, tmp_path):
    config = config_of(tiny_sd3, scene, tmp_path / "run", boxes=BOXES, preview=True, preview_prompt=[CAPTION], lr=0.05)
    train(config)
    image, _ = next(generate(str(tiny_sd3), [CAPTION], styles=[str(config.out)], sampling=Sampling(size=16)))
    preview = Image.open(config.out / "previews/step-000003-0.png")
    assert np.abs(np.asarray(image).astype(int) - np.asarray(preview)).max() <= 1


def test_finestyle_kv_is_saved_as_its_own_part(tiny_sd15, scene, tmp_path):
    config = resolve(
        "finestyle-kv", str(tiny_sd15), image=(scene,), caption=(CAPTION,), out=tmp_path / "run", size=16, steps=2,
        batch=2, boxes=BOXES, tensorboard=False, preview=False,
    )  # fmt: skip
    train(config)
    stated = read_style_json(config.out)
    assert stated["parts"] == [{"kind": "kv-bottleneck", "file": "kv-bottleneck.safetensors"}]
    assert stated["guidance"]["style-semantics"]["n2"] == "" and stated["sampling"]["strength"] == 1
    _, info = next(generate(str(tiny_sd15), ["a star"], styles=[str(config.out)], sampling=Sampling(steps=2)))
    assert info["style_semantics"]["lambda2"] == 3


class KilledError(Exception):
    pass


def kill(*args, **kwargs):
    raise KilledError


@pytest.mark.parametrize("at", ["write_concepts", "overlay", "write_defaults", "fit"])
def test_killed_before_training_the_same_command_goes_on(at, tiny_sd15, scene, tmp_path, monkeypatch):
    import impasto.methods.finestyle as method

    config = config_of(tiny_sd15, scene, tmp_path / "run", boxes=BOXES)
    with monkeypatch.context() as patch:
        patch.setattr(method, at, kill)
        with pytest.raises(KilledError):
            train(config)
    train(config)
    whole = config_of(tiny_sd15, scene, tmp_path / "whole", boxes=BOXES)
    train(whole)
    names = ("concepts.json", "concepts.png", "style.json", "pytorch_lora_weights.safetensors", "reference.png")
    for name in names:
        assert (config.out / name).read_bytes() == (whole.out / name).read_bytes(), name


def test_killed_while_training_it_resumes_to_the_same_adapter(tiny_sd3, scene, tmp_path):
    config = config_of(tiny_sd3, scene, tmp_path / "run", boxes=BOXES, steps=4, checkpoint_every=2)

    def stop(phase, step=0, total=None, note=""):
        if phase == "training" and step == 3:
            raise KilledError

    with pytest.raises(KilledError):
        train(config, stop)
    assert [file.stem for file in states(config.out / "state")] == ["step-000002"]
    assert train(config)["resumed_from"] == 2
    whole = change(config, out=tmp_path / "whole")
    train(whole)
    weights = "pytorch_lora_weights.safetensors"
    assert (config.out / weights).read_bytes() == (whole.out / weights).read_bytes()


def test_an_edited_file_is_used_as_it_is_until_it_was_trained_on(tiny_sd15, scene, tmp_path):
    config = config_of(tiny_sd15, scene, tmp_path / "run")
    train(config_of(tiny_sd15, scene, tmp_path / "first", boxes=BOXES))
    content = json.loads((tmp_path / "first/concepts.json").read_text())
    content["concepts"][0]["box"] = [0, 0, 30, 34]
    config.out.mkdir()
    (config.out / "concepts.json").write_text(json.dumps(content))
    assert dry_run(config)["data"]["concepts"][0]["region"][:2] == [0, 0]
    edited = (config.out / "concepts.json").read_bytes()
    train(config)
    assert (config.out / "concepts.json").read_bytes() == edited
    content["concepts"][0]["box"] = [0, 0, 20, 20]
    (config.out / "concepts.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"holds a run with other settings .data_sha256"):
        train(config)
    given = config_of(tiny_sd15, scene, tmp_path / "given", concept_file=config.out / "concepts.json")
    train(given)
    assert read_concepts(given.out / "concepts.json").concepts[0].box == (0, 0, 20, 20)


def test_dry_run_lists_pairs_and_writes_nothing(tiny_sd15, scene, tmp_path):
    result = dry_run(config_of(tiny_sd15, scene, tmp_path / "run", boxes=BOXES))
    assert [one["concept"] for one in result["data"]["concepts"]] == ["rocket", "star"]
    assert result["guidance"]["style-semantics"]["n2"] == "ink style" and "concept_file" not in result["settings"]
    result = dry_run(config_of(tiny_sd15, scene, tmp_path / "run", finder="error"))
    assert "2 concepts (rocket, star) become training pairs" in result["data"]["advice"][-1]
    assert not (tmp_path / "run").exists()


def test_one_thing_is_trained_with_a_warning(tiny_sd15, scene, tmp_path):
    config = config_of(tiny_sd15, scene, tmp_path / "run", caption=("a rocket in ink style",))
    with pytest.warns(UserWarning, match="'rocket' is the only thing: the whole image is used, nothing is scaled"):
        assert train(config)["concepts"] == ["rocket"]
    assert read_style_json(config.out)["sampling"]["strength"] == 0.75  # at 1 the weights break what is not scaled


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"caption": ("ink style",)}, "names no style|no concept"),
        ({"boxes": "4,6,24,30"}, "1 boxes for 2 things"),
        ({"boxes": "4,6,24,30; 40,30,90,58"}, "outside the image of 64 x 64"),
        ({"boxes": "4,6,24,30; 4,6,24,30"}, "have the same region"),
        ({"boxes": "4,6,24,30; 4,6,4,30"}, "is empty"),
        ({"boxes": "4,6,24,30; 0,0,64,64"}, "is the whole image"),
        ({"boxes": "4,6,24"}, "left,top,right,bottom"),
        ({"boxes": BOXES, "finder": "error"}, "leave one of them out"),
        ({"finder": "eror"}, "one of boxes, error, attention"),
        ({"concepts": "rocket;;star"}, "an empty concept"),
        ({"adapter": "full"}, "lambda1 0 --method.lambda-base 0"),
        ({"method.lambda1": -1.0}, "method.lambda1 must be at least 0"),
        ({"method.lambda2": float("nan")}, "method.lambda2 must be"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(keys, says, tiny_sd15, scene, tmp_path):
    with pytest.raises(UserError, match=says):
        train(config_of(tiny_sd15, scene, tmp_path / "run", **keys))
    assert not (tmp_path / "run").exists()


def test_several_images_and_other_flags_than_the_file_are_refused(tiny_sd15, scene, picture, tmp_path):
    config = config_of(tiny_sd15, scene, tmp_path / "run", boxes=BOXES)
    with pytest.raises(UserError, match="of one image, and 2 are given"):
        train(change(config, image=(scene, picture)))
    train(config)
    for keys in ({"boxes": "4,6,24,31; 40,30,60,58"}, {"caption": ("a rocket, a star in ink style",)}):
        with pytest.raises(UserError, match=r"has other (boxes|caption .*) than this command"):
            train(change(config, **keys))
    other = config_of(tiny_sd15, picture, tmp_path / "other", concept_file=config.out / "concepts.json")
    with pytest.raises(UserError, match="of another image"):
        train(other)


def test_guidance_sheet_has_a_row_and_a_column_per_weight(tiny_sd3, scene, tmp_path, capsys):
    config = config_of(tiny_sd3, scene, tmp_path / "run", boxes=BOXES, lr=0.05)
    train(config)
    about = guidance_sheet(config.out, ["a star in ink style"], (0.0, 3.0), (0.0, 2.0, 5.0), steps=2)
    show_sheet(about)
    assert "guidance.png" in capsys.readouterr().out
    stated = json.loads((config.out / "guidance.json").read_text())
    assert (
        stated["rows"] == ["lambda1 0", "lambda1 3"] and stated["lambda2"] == [0, 2, 5] and stated["lambda_base"] == 3
    )
    assert about["n2"] == "ink style" and read_png_metadata(config.out / "guidance.png")["seed"] == 0
    first = (config.out / "guidance.png").read_bytes()
    guidance_sheet(config.out, ["a star in ink style"], (0.0, 3.0), (0.0, 2.0, 5.0), steps=2, lambda_base=0.0)
    assert (config.out / "guidance.png").read_bytes() != first
    with pytest.raises(UserError, match="lambda1 must be a finite number from 0 on"):
        guidance_sheet(config.out, lambda1=(-1.0,))


def test_recipes_of_finestyle_are_on_every_base_s_list():
    assert {"finestyle", "finestyle-kv"} <= recipes().keys()
    assert resolve("finestyle", "mini-sd15").noise.mean == resolve("finestyle", "mini-sd3").noise.mean == -1.84
    small, other = (resolve("finestyle", base).data.concept_jitter for base in ("mini-sd15", "nobody/base"))
    assert small == 0 < other
    assert resolve("finestyle-kv", "mini-sd15").optim.lr == 4 * resolve("finestyle", "mini-sd15").optim.lr
