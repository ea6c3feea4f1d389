"""checks.py on a machine without a GPU: what it asks for exists, what it tells is what came of it."""

import argparse
import json
import sys
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image

from impasto.config import GenerateConfig, TrainConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "gpu"))
import checks


def write(folder: Path, losses: list[float]) -> None:
    folder.mkdir(parents=True)
    rows = [{"step": i, "loss": x} for i, x in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_losses_and_pictures_are_compared(tmp_path):
    write(tmp_path / "a", [1.0, 2.0])
    write(tmp_path / "b", [1.0, 2.5])
    a, b = checks.losses(tmp_path / "a"), checks.losses(tmp_path / "b")
    assert checks.away(a, a) == 0 and checks.away(a, b) == pytest.approx(0.2)
    assert checks.away(a, b[:1]) is None and checks.away([], []) is None and checks.losses(tmp_path / "c") == []
    for name, grey in (("x", 10), ("y", 13)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4), (grey,) * 3).save(tmp_path / name / "0000.png")
    assert checks.difference(tmp_path / "x", tmp_path / "y") == 3
    assert checks.difference(tmp_path / "x", tmp_path / "z") is None


def test_every_flag_is_one_of_impasto(tmp_path, monkeypatch):
    asked: list[tuple[str, ...]] = []

    def record(name: str, *args: str, **_: object) -> checks.Row:
        asked.append(args)
        return {"check": name, "rc": 0, "said": ""}

    monkeypatch.setattr(checks, "impasto", record)
    monkeypatch.setattr(checks, "spread_ways", lambda base, style: {"check": base, "rc": 0, "said": ""})
    monkeypatch.setattr(checks, "free_memory", lambda gb: nullcontext(24.0))
    rows: list[checks.Row] = []
    o = argparse.Namespace(work=tmp_path, bases=["mini-sd3"], jobs=2, folder=tmp_path / "flux", size=64, steps=2)
    checks.mini(o, rows.append)
    o.what, o.seconds, o.limit = ["auto", "offload-24", "generate-part"], 100.0, 50.0
    checks.flux(o, rows.append)
    assert len(rows) == len(asked) + 1 == 14 + 5 + 1 + 3
    known = {"train": {f.name for f in fields(TrainConfig)}, "generate": {f.name for f in fields(GenerateConfig)}}
    known["generate"] |= {"style", "prompt"}
    for verb, *flags in asked:
        names = {flag[2:].removeprefix("no-").replace("-", "_") for flag in flags if flag.startswith("--")}
        assert names and names <= known[verb], names - known[verb]


def test_a_command_is_told_with_its_exit_code(tmp_path, capsys):
    row = checks.impasto("bad", "train", "--base", "nothing", "--out", str(tmp_path / "run"))
    assert row["rc"] == 2 and "unknown base" in row["said"] and "bad rc 2" in capsys.readouterr().out
