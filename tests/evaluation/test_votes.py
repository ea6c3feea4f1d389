"""Votes: blind, randomised, for several raters at once, with the summary's counts and intervals."""

import csv
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from impasto.errors import UserError
from impasto.evaluation import votes
from impasto.evaluation.spread import wilson

COLOURS = {"ours": "red", "theirs": "blue"}


@pytest.fixture
def folder(tmp_path):
    """A vote set of two methods, 12 prompts; the pixel's colour tells the method."""
    for method, colour in COLOURS.items():
        (tmp_path / method).mkdir()
        for i in range(12):
            info = PngImagePlugin.PngInfo()
            info.add_text("impasto", json.dumps({"prompt": f"prompt {i}", "styles": [{"path": method}]}))
            size = (32, 32 + i)
            Image.new("RGB", size, colour).save(tmp_path / method / f"{i:04d}.png", pnginfo=info)
    Image.new("RGB", (20, 30), "green").save(tmp_path / "reference.png")
    methods = {name: tmp_path / name for name in COLOURS}
    found = votes.create_votes(tmp_path / "votes", methods, tmp_path / "reference.png")
    assert found["pairs"] == {"ours vs theirs": 12}
    return tmp_path / "votes"


def method_of(path) -> str:
    red, _, blue = Image.open(path).getpixel((0, 0))
    return "ours" if red > blue else "theirs"


def vote(folder, rater, answer) -> int:
    """Answer all pairs of a rater; answer(method on the left, question) -> choice. Returns the number of pairs."""
    seen = 0
    while (pair := votes.next_pair(folder, rater)) is not None:
        seen += 1
        for question in pair.questions:
            votes.record(folder, pair.id, rater, question, answer(method_of(pair.left), question))
    return seen


def prefers_ours(left, question):
    return "tie" if question == "text" else "left" if left == "ours" else "right"


def test_pairs_are_blind_and_randomised(folder):
    orders, sides = {}, []
    for rater in ("anna", "ben"):
        orders[rater] = []
        while (pair := votes.next_pair(folder, rater)) is not None:
            orders[rater].append(pair.prompt)
            sides.append(method_of(pair.left))
            assert "impasto" not in Image.open(pair.left).info and "ours" not in pair.left.name
            assert pair.reference is not None and Image.open(pair.reference).size == (20, 30)
            for question in pair.questions:
                votes.record(folder, pair.id, rater, question, "tie")
    assert sorted(orders["anna"]) == sorted(orders["ben"]) and orders["anna"] != orders["ben"]
    assert 3 < sides.count("ours") < 21


def test_summary_counts_methods_not_sides(folder):
    assert vote(folder, "anna", prefers_ours) == 12
    found = votes.summary(folder)
    assert (found["raters"], found["votes"], found["pairs"]) == (1, 24, 12)
    rows = {row["question"]: row for row in found["comparisons"]}
    assert rows["style"]["method"] == "ours" and rows["style"]["win"]["share"] == 1
    assert rows["style"]["win"]["interval"] == pytest.approx(wilson(12, 12)) and rows["text"]["tie"]["share"] == 1
    vote(folder, "ben", lambda left, question: "left" if left == "theirs" else "right")
    rows = {row["question"]: row for row in votes.summary(folder)["comparisons"]}
    assert rows["style"]["win"]["share"] == rows["style"]["lose"]["share"] == 0.5
    assert rows["style"]["win"]["interval"] == pytest.approx(wilson(6, 12)), "two raters of a pair count as one"


def test_pairs_with_fewest_votes_come_first(folder):
    pair = votes.next_pair(folder, "anna")
    assert pair is not None
    votes.record(folder, pair.id, "anna", "style", "tie")
    again = votes.next_pair(folder, "anna")
    assert again is not None and (again.id, again.questions) == (pair.id, ("text",)), "a pair is finished first"
    seen = []
    while (other := votes.next_pair(folder, "ben")) is not None:
        seen.append(other.id)
        for question in other.questions:
            votes.record(folder, other.id, "ben", question, "tie")
    assert seen[-1] == pair.id


def test_concurrent_raters_lose_no_vote(folder):
    with ThreadPoolExecutor(6) as pool:
        seen = list(pool.map(lambda rater: vote(folder, f"rater {rater}", prefers_ours), range(6)))
    assert seen == [12] * 6 and votes.summary(folder)["votes"] == 6 * 24


def test_record_replaces_an_answer_and_refuses_unknown_values(folder):
    pair = votes.next_pair(folder, "anna")
    assert pair is not None
    for choice in ("left", "tie"):
        votes.record(folder, pair.id, "anna", "style", choice)
    assert [row["winner"] for row in votes.export_rows(folder)] == ["tie"]
    for values, message in (
        ((pair.id, "anna", "style", "both"), "unknown choice 'both'"),
        ((pair.id, "anna", "styl", "tie"), "did you mean 'style'"),
        ((999, "anna", "style", "tie"), "no pair 999"),
        ((pair.id, " ", "style", "tie"), "needs a name"),
    ):
        with pytest.raises(UserError, match=message):
            votes.record(folder, *values)


def test_create_again_adds_only_new_pairs(folder):
    root = folder.parent
    methods = {name: root / name for name in COLOURS}
    assert votes.create_votes(folder, methods, root / "reference.png")["pairs"] == {"ours vs theirs": 0}
    found = votes.create_votes(folder, methods, root / "reference.png", group="second", count=5)
    assert found["pairs"] == {"ours vs theirs": 5}


def test_create_without_common_prompts_raises(tmp_path):
    for name in COLOURS:
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / name / "0.png")
        (tmp_path / name / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": name}))
    with pytest.raises(UserError, match="ours and theirs have no prompt in common"):
        votes.create_votes(tmp_path / "votes", {name: tmp_path / name for name in COLOURS})
    (tmp_path / "ours" / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match=r"name no prompts: write a metadata\.jsonl"):
        votes.create_votes(tmp_path / "votes", {name: tmp_path / name for name in COLOURS})


def test_export_writes_a_row_per_vote(folder):
    vote(folder, "anna", prefers_ours)
    found = votes.export(folder)
    rows = list(csv.DictReader(Path(found["path"]).read_text(encoding="utf-8").splitlines()))
    assert found["votes"] == len(rows) == 24
    assert {row["winner"] for row in rows if row["question"] == "style"} == {"ours"}
    assert {row["left"] for row in rows} == {"ours", "theirs"}


def test_other_schema_version_or_no_vote_set_raises(folder, tmp_path):
    with pytest.raises(UserError, match="no vote set"):
        votes.summary(tmp_path / "none")
    with sqlite3.connect(folder / votes.FILE) as base:
        base.execute("PRAGMA user_version = 9")
    with pytest.raises(UserError, match="schema version 9"):
        votes.summary(folder)
