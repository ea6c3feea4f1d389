"""`impasto weights convert`: pickles of tensors to safetensors, and nothing else."""

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from impasto.errors import UserError
from impasto.interop.pickles import convert


def test_convert_checkpoint_writes_its_state_dict(tmp_path):
    weight = torch.arange(6.0).view(2, 3)
    state = {"module.a": weight, "module.tied": weight, "module.view": weight[:, 1:]}
    content = {"model_state_dict": state, "epoch": 3, "best": np.float64(0.5), "optimizer": {"lr": 1.0}}
    torch.save(content, tmp_path / "published.pth")
    found = convert(tmp_path / "published.pth")
    tensors = load_file(tmp_path / "published.safetensors")
    assert set(tensors) == {"a", "tied", "view"} and torch.equal(tensors["view"], weight[:, 1:])
    assert found["tensors"] == 3 and set(found["left_out"]) == {"epoch", "best", "optimizer"}
    with pytest.raises(UserError, match="exists and stays"):
        convert(tmp_path / "published.pth")


class Harmful:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_convert_runs_no_code_of_a_pickle(tmp_path):
    proof = tmp_path / "proof"
    torch.save({"a": torch.zeros(1), "b": Harmful(f"touch {proof}")}, tmp_path / "harmful.pt")
    with pytest.raises(UserError, match=r"harmful\.pt' cannot be converted: it calls posix\.system") as error:
        convert(tmp_path / "harmful.pt", tmp_path / "out.safetensors")
    assert not proof.exists() and list(tmp_path.glob("*out*")) == [] and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.pt", None, "does not exist"),
        ("text.pt", b"hello", "cannot be converted"),
        ("list.pt", [1, 2], "holds a list, not named tensors"),
        ("numbers.pt", {"a": 1}, "no tensors by name: its keys are a"),
        ("a.safetensors", b"", "safetensors already"),
    ],
)
def test_convert_of_something_else_says_why(tmp_path, name, content, message):
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(UserError, match=message):
        convert(file)


def test_convert_of_plain_pickle_raises(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="cannot be converted"):
        convert(tmp_path / "a.pkl")
