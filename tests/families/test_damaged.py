"""A base with damaged configurations: one line that names the file, wherever it is read first."""

import shutil
from typing import Any

import pytest

from impasto.bases import loader
from impasto.errors import UserError
from impasto.execution import memory


def damaged(base, tmp_path, name, text) -> Any:
    """A copy of a base in which one file says something else."""
    copy = shutil.copytree(base, tmp_path / "copy")
    (copy / name).write_text(text)
    return loader.load(str(copy), device="cpu")


def configs(base):
    """Those that make a base's pictures, by name."""
    return [file.relative_to(base).as_posix() for file in sorted(base.glob("*/*config.json"))]


@pytest.mark.parametrize("text", ['{"a": ', "[]", '"a"', "[" * 100_000])
def test_no_object_has_no_hash(tiny_sd3, tmp_path, text):
    for name in configs(tiny_sd3):
        with pytest.raises(UserError, match=rf"is damaged: '.*{name}' cannot be read; fetch it again"):
            _ = damaged(tiny_sd3, tmp_path, name, text).hash
        shutil.rmtree(tmp_path / "copy")


@pytest.mark.parametrize(
    ("name", "key", "asked"),
    [
        ("scheduler/scheduler_config.json", "_class_name", lambda family: family.schedule),
        ("scheduler/scheduler_config.json", "_class_name", lambda family: family.sampling_levels(2, (4, 4))),
        ("vae/config.json", "block_out_channels", lambda family: family.unit),
        ("unet/config.json", "_class_name", memory.skeleton),
        ("vae/config.json", "_class_name", lambda family: memory.config_of(family, "vae")),
        ("text_encoder/config.json", "max_position_embeddings", lambda family: family.text_lengths),
        ("tokenizer/tokenizer_config.json", "model_max_length", lambda family: family.encoders),
    ],
)
def test_a_key_that_is_lacking_is_named(tiny_sd15, tmp_path, name, key, asked):
    """In the outline of `--dry-run` as well, but for the tokeniser, which it does not read."""
    family = damaged(tiny_sd15, tmp_path, name, "{}")
    with pytest.raises(UserError, match=rf"copy' is damaged: {name} lacks '{key}'; fetch it again"):
        asked(family)
    if not name.startswith("tokenizer"):
        with pytest.raises(UserError, match=rf"{name} lacks '{key}'"):
            asked(loader.outline(str(tmp_path / "copy")))


@pytest.mark.parametrize("name", ["tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json"])
def test_a_tokeniser_of_another_type(tiny_sd15, tmp_path, name):
    with pytest.raises(UserError, match="cannot be loaded: a file is missing, damaged"):
        _ = damaged(tiny_sd15, tmp_path, name, "[]").encoders


def test_configurations_of_the_planner_that_cannot_be_read(tiny_sd3, tmp_path):
    with pytest.raises(UserError, match=r"is damaged: transformer/config\.json cannot be read"):
        memory.skeleton(damaged(tiny_sd3, tmp_path, "transformer/config.json", "{"))
