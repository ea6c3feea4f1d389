"""Bases with damaged configurations raise a UserError that names the file."""

import shutil
from typing import Any

import pytest

from impasto.bases import loader
from impasto.errors import UserError
from impasto.execution import memory


def damaged(base, tmp_path, name, text) -> Any:
    """A family of a copy of a base, with one file replaced by `text`."""
    copy = shutil.copytree(base, tmp_path / "copy")
    (copy / name).write_text(text)
    return loader.load(str(copy), device="cpu")


def configs(base):
    """Relative paths of a base's configurations."""
    return [file.relative_to(base).as_posix() for file in sorted(base.glob("*/*config.json"))]


@pytest.mark.parametrize("text", ['{"a": ', "[]", '"a"', "[" * 100_000])
def test_hash_of_invalid_json_raises(tiny_sd3, tmp_path, text):
    for name in configs(tiny_sd3):
        with pytest.raises(UserError, match=rf"is damaged: '.*{name}' cannot be read; fetch it again"):
            _ = damaged(tiny_sd3, tmp_path, name, text).hash
        shutil.rmtree(tmp_path / "copy")


@pytest.mark.parametrize(
    ("name", "key", "access"),
    [
        ("scheduler/scheduler_config.json", "_class_name", lambda family: family.schedule),
        ("scheduler/scheduler_config.json", "_class_name", lambda family: family.sampling_levels(2, (4, 4))),
        ("vae/config.json", "block_out_channels", lambda family: family.unit),
        ("unet/config.json", "_class_name", memory.meta_model),
        ("vae/config.json", "_class_name", lambda family: memory.config_of(family, "vae")),
        ("text_encoder/config.json", "max_position_embeddings", lambda family: family.text_lengths),
        ("tokenizer/tokenizer_config.json", "model_max_length", lambda family: family.encoders),
    ],
)
def test_config_with_missing_key_raises_naming_it(tiny_sd15, tmp_path, name, key, access):
    """Also with `load_config_only`, which does not read the tokeniser."""
    family = damaged(tiny_sd15, tmp_path, name, "{}")
    with pytest.raises(UserError, match=rf"copy' is damaged: {name} lacks '{key}'; fetch it again"):
        access(family)
    if not name.startswith("tokenizer"):
        with pytest.raises(UserError, match=rf"{name} lacks '{key}'"):
            access(loader.load_config_only(str(tmp_path / "copy")))


@pytest.mark.parametrize("name", ["tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json"])
def test_encoders_with_invalid_tokenizer_raise(tiny_sd15, tmp_path, name):
    with pytest.raises(UserError, match="cannot be loaded: a file is missing, damaged"):
        _ = damaged(tiny_sd15, tmp_path, name, "[]").encoders


def test_skeleton_with_unreadable_config_raises(tiny_sd3, tmp_path):
    with pytest.raises(UserError, match=r"is damaged: transformer/config\.json cannot be read"):
        memory.meta_model(damaged(tiny_sd3, tmp_path, "transformer/config.json", "{"))
