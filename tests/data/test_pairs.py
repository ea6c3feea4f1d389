"""Captions of a distillation's teacher: from metadata.jsonl or a pairs file, encoded by the teacher, drawn together."""

import json

import pytest
import torch
from PIL import Image
from tiny import sd15_folder

from impasto.bases.loader import load
from impasto.config import make_config
from impasto.data import items
from impasto.data.draws import Draws, split_batch
from impasto.data.prepare import prepare_items
from impasto.errors import UserError
from impasto.noise.laws import build_law

CAPTIONS = [f"a {thing} in ink style" for thing in ("rocket", "cat", "star")]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "style"
    folder.mkdir()
    for i, caption in enumerate(CAPTIONS):
        Image.new("RGB", (16, 16), (80 * i, 9, 9)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption)
    return folder


def read(folder, **changes):
    config = make_config(image=(folder,), size=16, **changes)
    return items.read(config.data, config.base, {"bucket_step": 8})


def write(file, rows):
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def pairs_file(folder, rows):
    return write(folder.parent / "pairs.jsonl", rows)


def row(text, teacher_text):
    return {"text": text, "teacher_text": teacher_text}


def test_metadata_teacher_text_becomes_teacher_caption_and_changes_fingerprint(folder):
    plain = read(folder)
    write(folder / "metadata.jsonl", [{"file_name": "1.png", **row(CAPTIONS[1], "ein  Kater, [trigger]")}])
    found = read(folder, trigger="ink")
    assert [one.teacher_caption for one in found] == [None, "ein Kater, ink", None]
    assert [one.caption for one in found] == CAPTIONS
    assert found[0].fingerprint() == plain[0].fingerprint() and len(plain[0].fingerprint()) == 5
    assert found[1].fingerprint() == [*plain[1].fingerprint(), "ein Kater, ink"]


def test_metadata_empty_teacher_text_is_refused_with_its_line(folder):
    write(folder / "metadata.jsonl", [{"file_name": "1.png", **row(CAPTIONS[1], " ")}])
    with pytest.raises(UserError, match=r"metadata.jsonl', line 1: 'teacher_text' is missing or empty"):
        read(folder)


def test_pairs_map_captions_as_written_with_prefix_and_trigger(folder):
    (folder / "0.txt").write_text("a rocket in [trigger] style")
    write(folder / "metadata.jsonl", [{"file_name": "2.png", **row(CAPTIONS[2], "own")}])
    rows = [row("a  rocket in [trigger] style", "Rakete"), "", row(CAPTIONS[1], "Kater"), row("other", "andere")]
    found = read(folder, pairs=pairs_file(folder, rows), trigger="ink", caption_prefix="photo,")
    assert [one.teacher_caption for one in found] == ["Rakete", "Kater", "own"]
    assert found[0].caption == "photo, a rocket in ink style"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(CAPTIONS[1], "x")], r"lacks 2 of 3 captions, first 'a rocket in ink style': add a line"),
        ([row("a", "x"), {"text": "a cat"}], r"pairs.jsonl', line 2: 'teacher_text' is missing or empty"),
        ([row("a", "x"), "", {"teacher_text": "a cat"}], r"line 3: 'text' is missing or empty"),
        (["{"], r"line 1: no valid JSON"),
        (["[]"], r'line 1: not an object like {"text": "...", "teacher_text": "..."}'),
        ([row("a", "x"), row("a", "y")], r"line 2: 'a' has another teacher_text in an earlier line"),
    ],
)
def test_pairs_file_that_is_wrong_is_refused(folder, rows, message):
    with pytest.raises(UserError, match=message):
        read(folder, pairs=pairs_file(folder, rows))


def test_pairs_file_that_is_absent_is_refused(folder):
    with pytest.raises(UserError, match=r"none.jsonl' is not a file"):
        read(folder, pairs=folder / "none.jsonl")


@pytest.fixture
def families(tiny_sd3, tmp_path):
    return load(str(tiny_sd3), device="cpu"), load(str(sd15_folder(tmp_path / "teacher", seed=3)), device="cpu")


def test_teacher_encodes_its_captions_and_draws_keep_pairs_together(folder, families):
    family, teacher = families
    rows = [row(CAPTIONS[0], "a rabbit"), row(CAPTIONS[1], "a face"), row(CAPTIONS[2], "a rabbit")]
    found = read(folder, pairs=pairs_file(folder, rows))
    done = []
    prepared = prepare_items(family, found, True, lambda *at: done.append(at), teacher=teacher)
    assert (
        "encoders" not in vars(teacher)
        and done[-1] == ("encoding the teacher's captions", 3, 3)
        and len(done) == 3 + 4 + 3
    )
    length = next(iter(teacher.text_lengths))
    expected = {c: teacher.encode_prompt([c], length)["text"][0] for c in ("a rabbit", "a face", "")}
    assert [pair.teacher_caption for pair in prepared.pairs] == [0, 1, 0] and prepared.teacher_empty == 2
    assert len(prepared.teacher_conds["text"]) == 3
    draws = Draws(make_config(batch=12, caption_dropout=0.4), build_law("uniform"), prepared)
    batch, lam, own = draws(1, 0)
    teacher_of = {pair["text"]: pair["teacher_text"] for pair in rows} | {"": ""}
    assert set(batch.prompts) == {*CAPTIONS, ""}
    for prompt, text in zip(batch.prompts, batch.teacher_cond["text"], strict=True):
        assert torch.equal(text, expected[teacher_of[prompt]])
    parts = [part.teacher_cond["text"] for _, (part, _, _) in split_batch((batch, lam, own), 5)]
    assert [len(part) for part in parts] == [5, 5, 2] and torch.equal(torch.cat(parts), batch.teacher_cond["text"])
    meta = prepared.to("meta")
    assert {rows.device.type for rows in meta.teacher_conds["text"]} == {"meta"}


def test_teacher_without_captions_of_its_own_is_given_the_captions(folder, families):
    family, teacher = families
    prepared = prepare_items(family, read(folder), teacher=teacher)
    assert prepared.teacher_empty is None
    assert torch.equal(prepared.teacher_conds["text"][2], teacher.encode_prompt([CAPTIONS[2]])["text"][0])
    plain = prepare_items(family, read(folder))
    assert plain.teacher_conds is None
    assert Draws(make_config(batch=2), build_law("uniform"), plain)(1, 0)[0].teacher_cond is None
