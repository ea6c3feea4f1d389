"""The paper's own wordings."""

from pathlib import Path
from typing import Any

import pytest

from impasto.errors import UserError
from impasto.sampling.config import GenerateConfig, parse_size, with_seed
from impasto.sampling.png import parameters
from impasto.sampling.prompts import lettering, multi_panel, read_pasted, read_prompts


def test_the_wordings_of_the_paper():
    assert multi_panel(["a red cartoon character", "a banana"]) == (
        "A humorous sequence featuring a red cartoon character and a banana in a multi-panel comic style"
    )
    assert multi_panel([" A banana "]) == "A banana in a multi-panel comic style"
    assert multi_panel(["a", "b", "c"], "ink") == "A humorous sequence featuring a, b and c in ink style"
    assert lettering("Hello", "neon") == "the words that says 'Hello' are written in English, in neon style"


def test_from_the_command_line():
    config = GenerateConfig(prompt=("a star",), panels=("a cat; a dog", "a moose"), letters=("Hi",), panel_style="ink")
    assert read_prompts(config) == [
        "a star",
        "A humorous sequence featuring a cat and a dog in ink style",
        "a moose in ink style",
        "the words that says 'Hi' are written in English, in ink style",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"panels": ("a cat;; a dog",)}, "no subject in 'a cat;; a dog'"),
        ({"panels": ("",)}, "no subject"),
        ({"letters": (" ",)}, "letters are empty"),
        ({"letters": ("x",), "panel_style": " "}, "panel-style is empty"),
        ({"prompt": ("a cat",), "panel_style": "ink"}, "panel-style is of --panels and --letters"),
    ],
    ids=str,
)
def test_bad_input(changes, message):
    with pytest.raises(UserError, match=message):
        read_prompts(GenerateConfig(**changes))


REPORTED = Path(__file__).parent / "data" / "reported" / "prompts"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "sample_prompts.txt",
            r"sample_prompts.txt', line 2: options in a prompt are not read \(--n --w --h --d --l --s\): give flags to "
            r"the command \(--n is --negative, --w is --size, .* --s is --steps\)",
        ),
        ("prompts.csv", "prompts.csv', line 1: a table is not read: write one a line as plain text"),
        ("prompts.json", "prompts.json', line 1: a table is not read"),
    ],
)
def test_prompt_files_of_other_tools_are_refused_with_the_line(name, message):
    with pytest.raises(UserError, match=message):
        read_prompts(GenerateConfig(prompts=REPORTED / name))


def test_prompt_file_comments_are_left_out(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("# prompt 1\na rocket -- at night\n\n  #x\na cat\n")
    assert read_prompts(GenerateConfig(prompts=file)) == ["a rocket -- at night", "a cat"]
    with pytest.raises(UserError, match=r"prompt 'a cat --ar 3:2': options .*\(--ar\).*--ar is --size"):
        read_prompts(GenerateConfig(prompt=("a cat --ar 3:2",)))


def test_syntax_of_other_tools_in_prompts_is_named_with_the_flag():
    prompts = ("<lora:neon:0.8> a (rocket:1.3)", "a {red|blue} cat", "[a cat:a dog:0.5]")
    with pytest.warns(UserWarning) as said:
        assert read_prompts(GenerateConfig(prompt=prompts)) == list(prompts)
    text = str(said[0].message)
    assert len(said) == 1 and "'<lora:neon:0.8>': load a style with --style" in text and "--switch-to" in text


INFO = {
    "prompt": "a cat, in neon style",
    "negative_prompt": "blurry, red",
    "seed": 5,
    "steps": 20,
    "guidance": 7.5,
    "width": 768,
    "height": 1152,
    "base": "mini-sd15",
    "base_hash": "0" * 64,
    "styles": [{"path": "runs/neon", "strength": 0.8}],
    "sampler": "dpm++-2m",
    "version": "0.1",
}


@pytest.mark.parametrize("way", ["prompt", "prompts"])
def test_parameters_of_impasto_can_be_pasted_back(tmp_path, way):
    text = parameters(INFO)
    file = tmp_path / "prompts.txt"
    file.write_text(f"{text}\n\n{parameters(INFO | {'seed': 6, 'prompt': 'a dog'})}\n")
    given: dict[str, Any] = {"prompt": (text,)} if way == "prompt" else {"prompts": file}
    with pytest.warns(
        UserWarning, match=r"--negative 'blurry, red' --sampler dpm\+\+-2m .*--size 768x1152 --base mini-sd15$"
    ):
        found = read_pasted(GenerateConfig(**given, style=("runs/neon",)))
    assert read_prompts(found) == [INFO["prompt"], "a dog"][: 1 + (way == "prompts")]
    assert found.style == ("runs/neon:0.8",) and parse_size(found.size) == (768, 1152) and read_pasted(found) is found
    own = (found.negative, found.seed, found.steps, found.guidance, found.base, found.sampler, found.style_guidance)
    assert own == ("blurry, red", 5, 20, 7.5, "mini-sd15", "dpm++-2m", 0.0)


def test_pasted_settings_yield_to_flags_and_name_what_is_missing():
    text = "a cat <lora:ink:1>\nNegative prompt: blurry,\nred\nSteps: 20, Sampler: UniPC, CFG scale: 7, Seed: 5"
    with pytest.warns(UserWarning) as said:
        found = read_pasted(GenerateConfig(prompt=(text,), steps=4))
    assert (found.prompt, found.negative, found.steps, found.seed) == (("a cat",), "blurry, red", 4, 5)
    assert "not used: Sampler UniPC, --steps 20, <lora:ink:1> (load it with --style)" in str(said[0].message)


def test_pasted_texts_with_other_settings_are_refused(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\nSteps: 20, Seed: 5\na dog\nSteps: 20, Seed: 7\n")
    with pytest.raises(UserError, match=r"line 3: its seed differs from that of prompts before"):
        read_pasted(GenerateConfig(prompts=file))


@pytest.mark.parametrize(("size", "found"), [(None, (None, None)), (512, (512, None)), ("768x1152", (768, 1152))])
def test_size_is_a_side_or_width_and_height(size, found):
    assert parse_size(size) == found
    with pytest.raises(UserError, match="size '768x' must be a side or width x height"):
        parse_size("768x")


def test_seed_minus_one_is_random():
    seeds = {with_seed(GenerateConfig(seed=-1)).seed for _ in range(3)}
    assert len(seeds) == 3 and min(seeds) >= 0 and with_seed(GenerateConfig(seed=3)).seed == 3
