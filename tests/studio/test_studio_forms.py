"""The form of a run: its fields, and the command line that it becomes."""

import json

import gradio as gr
import pytest

from impasto.cli.settings import parse_config
from impasto.config import flatten, recipes, resolve
from impasto.errors import UserError
from impasto.studio import forms
from impasto.studio.app import check_access
from impasto.studio.train_tab import field_box


def command(recipe, base, changed, selected=()):
    args = forms.train_args(recipe, base, dict(selected), changed, ["references/a.png"], ["-cat, ink"], "styles/a")
    assert args[0] == "train"
    return parse_config(args[1:], "train")[0]


@pytest.mark.parametrize(
    ("recipe", "selected", "changed"),
    [
        ("style-friendly-128px", {}, {"optim.steps": 7, "optim.lr": 2e-5, "noise.mean": -3.5, "adapter.rank": 4}),
        ("style-friendly", {"adapter": "styleinject"}, {"adapter.n": 4, "adapter.sta": False, "data.flip": True}),
        (
            "dco",
            {"noise": "uniform"},
            {"noise.shift": 2.0, "adapter.targets": ("to_q", "to_v"), "log.preview_every": 3},
        ),
        ("style-friendly", {}, {"log.preview_prompt": ("a cat", "-a dog"), "prior.weight": 1.0, "data.trigger": "-w"}),
        (
            "style-friendly",
            {},
            {"evaluate.every": 5, "evaluate.margin": 0.2, "evaluate.patience": 2, "evaluate.advice": False}
            | {"evaluate.prompt": ("a cat", "-a dog"), "evaluate.clip": forms.CLIPS[0]},
        ),
        ("instastyle", {}, {"method.select": "human", "method.objects": ("cat", "dog", "cup", "car", "pot")}),
    ],
)
def test_train_args_are_read_as_the_same_settings(recipe, selected, changed):
    axes = {f"{axis}.name": name for axis, name in selected.items()}
    own = {"image": ["references/a.png"], "caption": ["-cat, ink"], "out": "styles/a"}
    wanted = resolve(recipe, "mini-sd3", **axes, **changed, **own)
    assert flatten(command(recipe, "mini-sd3", changed, selected)) == flatten(wanted)


@pytest.mark.parametrize("recipe", list(recipes()))
def test_form_fields_unchanged_give_no_flags(recipe):
    main, more = forms.form_fields(forms.config_of(recipe, "mini-sd3"))
    fields = [*main, *more]
    as_shown = ["" if one.optional and one.value is None else one.value for one in fields]
    assert forms.changes(fields, as_shown) == {}
    assert all(one.help for one in fields if not one.path.startswith("prior")), [one.path for one in fields]


def test_form_fields_of_a_recipe_have_boxes():
    """Empty optional texts and numbers too, as those of [sampling]."""
    own = {"sampling.negative": "", "sampling.strength": 0.7}
    main, more = forms.form_fields(forms.config_of("style-friendly", "mini-sd3", **own))
    written = {"style-friendly optim.steps": 77}
    with gr.Blocks():
        state = gr.State({})
        boxes = {one.path: field_box(one, "style-friendly", 10, state, written) for one in (*main, *more)}
    shown = {path: box.value for path, box in boxes.items()}
    assert shown["sampling.strength"] == "0.7" and shown["sampling.guidance"] == shown["sampling.negative"] == ""
    assert shown["optim.steps"] == 77


def test_form_fields_are_those_of_the_chosen_axes():
    def paths(**selected):
        return {one.path for part in forms.form_fields(forms.config_of("dco", "mini-sd3", selected)) for one in part}

    assert {"objective.beta", "adapter.rank"} <= paths() and "adapter.n" not in paths()
    assert {"adapter.n", "objective.weighting"} <= paths(adapter="styleinject", objective="denoise")
    assert "objective.beta" not in paths(objective="denoise")
    assert not {"data.image", "data.concept_file", "log.push_to_hub", "prior.image"} & paths()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optim.steps", None, "steps is empty"),
        ("optim.steps", 2.5, "whole number"),
        ("adapter.alpha", "wide", "must be a number"),
        ("data.mask", "/etc/passwd", "must be one of"),
        ("evaluate.clip", "/etc", "must be one of"),
    ],
)
def test_read_value_bad_input_is_refused(path, value, message):
    main, more = forms.form_fields(forms.config_of("style-friendly", "mini-sd3"))
    field = next(one for one in (*main, *more) if one.path == path)
    with pytest.raises(UserError, match=message):
        forms.read_value(field, value)


def test_caption_of_a_file_name_and_its_advice():
    caption = forms.caption_of("Flying_rocket-02.png")
    assert caption == "flying rocket in ... style" and "Replace the dots" in forms.caption_advice(caption)
    assert "names no style" in forms.caption_advice("a cat") and "is empty" in forms.caption_advice(" ")
    assert forms.caption_advice("a cat in pixel art style") == ""


def test_png_settings_find_the_styles_of_the_workspace():
    meta = {"prompt": "a cat", "seed": 3, "base": "mini-sd3", "guidance": 2.0, "negative_prompt": "",
            "styles": [{"path": "/elsewhere/ink", "strength": 0.5}, {"path": "gone", "strength": 1.0}],
            "style_semantics": {"lambda1": 3.0, "lambda2": 2.0, "lambda_base": 0.0}}  # fmt: skip
    found = forms.png_settings(meta, ["styles/ink", "styles/other"])
    assert found["styles"] == [("styles/ink", 0.5)] and found["missing"] == 1
    assert (found["prompt"], found["seed"], found["guidance"], found["lambda1"]) == ("a cat", 3, 2.0, 3.0)
    assert forms.png_settings({"prompt": None}, []) == {}


@pytest.mark.parametrize(
    ("host", "auth", "share"), [("0.0.0.0", None, False), ("127.0.0.1", None, True), ("::", None, False)]
)
def test_check_access_open_host_without_auth_is_refused(host, auth, share):
    with pytest.raises(UserError, match="--auth USER:PASSWORD"):
        check_access(host, auth, share)


def test_command_open_host_without_auth_is_refused_before_anything_starts(tmp_path):
    from impasto.cli.studio import studio

    with pytest.raises(UserError, match=r"--host 0\.0\.0\.0 opens the studio"):
        studio(["--host", "0.0.0.0", "--workspace", str(tmp_path / "w")])
    assert not (tmp_path / "w").exists()


def test_check_access_with_auth_is_a_login():
    assert check_access("0.0.0.0", "me:a:b", True) == ("me", "a:b")
    assert check_access("127.0.0.1", None, False) is None
    for bad in ("me", "me:", ":x"):
        with pytest.raises(UserError, match="USER:PASSWORD"):
            check_access("127.0.0.1", bad, False)


def test_candidates_of_styledrop_have_their_files_and_may_be_few(tmp_path):
    from impasto.studio.choose_tabs import candidates

    recipe = 'base = "mini-sd3"\nrecipe = "styledrop"\n[method]\nname = "styledrop"\nselect = "human"\n'
    (tmp_path / "recipe.toml").write_text(recipe)
    (tmp_path / "state").mkdir()
    (tmp_path / "state/candidates.json").write_text(json.dumps({"objects": ["cat"] * 60 + ["dog"] * 60, "files": {}}))
    found, least, before = candidates(tmp_path)
    assert (found[0].file, found[119].file) == ("candidates/001.png", "candidates/120.png")
    assert (found[60].thing, least, before) == ("dog", 1, [])
