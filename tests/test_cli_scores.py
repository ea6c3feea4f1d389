"""`impasto weights`, `prompts` and `votes` as commands: one JSON object, exit code 2 for bad input."""

import json
import sys

import pytest
import torch
from PIL import Image

from impasto.cli.main import main


def run(monkeypatch, capsys, *args) -> tuple[int, dict, str]:
    """(exit code, JSON result, stderr)."""
    monkeypatch.setattr(sys, "argv", ["impasto", *map(str, args), "--json"])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), json.loads(out.splitlines()[-1]), err


def test_prompts_list_and_show(monkeypatch, capsys):
    code, found, _ = run(monkeypatch, capsys, "prompts", "list")
    assert code == 0 and found["sets"]["styledrop-references"]["prompts"] == 18
    code, found, _ = run(monkeypatch, capsys, "prompts", "show", "style-friendly-subjects", "--style", "neon style")
    assert code == 0 and found["prompts"][0] == "An Opera house in Sydney in neon style"
    code, found, err = run(monkeypatch, capsys, "prompts", "show", "styledrop")
    assert code == 2 and "did you mean 'styledrop-" in found["error"] and len(err.splitlines()) == 1


def test_weights_convert_and_list(monkeypatch, capsys, tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pth")
    code, found, _ = run(monkeypatch, capsys, "weights", "convert", tmp_path / "a.pth")
    assert code == 0 and found["tensors"] == 1 and (tmp_path / "a.safetensors").is_file()
    code, found, _ = run(monkeypatch, capsys, "weights", "convert", tmp_path / "none.pth")
    assert code == 2 and "does not exist" in found["error"]
    code, found, _ = run(monkeypatch, capsys, "weights", "list")
    assert found["encoders"]["small-clip"]["source"] == "packaged" and "convert" in found["encoders"]["csd"]["needs"]


def test_votes_create_summary_export(monkeypatch, capsys, tmp_path):
    for name, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16), colour).save(tmp_path / name / "0.png")
        (tmp_path / name / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a cat"}\n')
    methods = [f"{name}={tmp_path / name}" for name in ("a", "b")]
    code, found, _ = run(monkeypatch, capsys, "votes", "create", tmp_path / "votes", "--methods", *methods)
    assert code == 0 and found["pairs"] == {"a vs b": 1}
    code, found, _ = run(monkeypatch, capsys, "votes", "summary", tmp_path / "votes")
    assert (found["pairs"], found["votes"], found["comparisons"]) == (1, 0, [])
    code, found, _ = run(monkeypatch, capsys, "votes", "export", tmp_path / "votes")
    assert code == 0 and (tmp_path / "votes" / "votes.csv").read_text().startswith("pair,group,prompt")
    code, found, _ = run(monkeypatch, capsys, "votes", "create", tmp_path / "v", "--methods", "a", "b=none")
    assert code == 2 and "give NAME=FOLDER" in found["error"]
