"""`noise calibrate`: images equal `generate --switch-at`, resuming, errors. The fake judge scores where an image lies
between the one without the style's words and the one with them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeEncoder
from tiny import sd3_folder

from impasto.artworld import load_meta
from impasto.bases import loader
from impasto.calibration import calibrate as module
from impasto.calibration.calibrate import EncoderMeasure, art_world_prompts, calibrate, choose_levels, text_prompts
from impasto.errors import UserError
from impasto.generation import generate
from impasto.guidance.config import PromptSwitch
from impasto.progress import ignore
from impasto.sampling.sample import Sampling

pytestmark = pytest.mark.filterwarnings("ignore:the prompt is too long")  # the tiny tokeniser spells most words
SAMPLING = Sampling(steps=6, batch=4)
PROMPTS = 6  # fewer than train styles, so that each has a style of its own


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny SD3 marked as embedded."""
    return sd3_folder(tmp_path_factory.mktemp("tiny") / "sd3", card={"embedded": True})


def pixels(image):
    return torch.from_numpy(np.asarray(image).astype(np.float32)).flatten() / 255


class InterpolationJudges:
    """Column s: position of the image between those of style s without (0) and with (1) its words."""

    card = {}  # noqa: RUF012

    def __init__(self, base):
        self.items = list(art_world_prompts(PROMPTS, 0))  # of the seeds 0 to 5, as generate's pictures are
        ends = [[getattr(item, which) for item in self.items] for which in ("plain", "styled")]
        drawn = [[pixels(image) for image, _ in generate(str(base), some, sampling=SAMPLING)] for some in ends]
        self.ends = list(zip(*drawn, strict=True))

    def place(self, image, i):
        without, with_ = self.ends[i]
        return float((pixels(image) - without) @ (with_ - without) / (with_ - without).square().sum())

    def style(self, images):
        table = torch.zeros(len(images), 19)
        for i, item in enumerate(self.items):
            table[:, item.style] = torch.tensor([self.place(image, i) for image in images])
        return table


@pytest.fixture(scope="module")
def judges(base):
    return InterpolationJudges(base)


@pytest.fixture
def run(base, judges, tmp_path, monkeypatch):
    """`calibrate` with a small setting and its own cache."""
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    given = {"prompts": PROMPTS, "levels": 3, "sampling": SAMPLING, "judges": judges}
    return lambda **changes: calibrate(str(base), tmp_path / "out", **(given | changes))


def test_calibrate_matches_generate_with_switch(run, base, judges, tmp_path):
    ticks = []
    result = run(progress=lambda phase, done, total: ticks.append((done, total)))
    assert ticks[-1] == (PROMPTS * 8, PROMPTS * 8) and result["pictures"] == PROMPTS * 8
    assert result["score"] == {"everywhere": pytest.approx(1, abs=1e-3), "nowhere": pytest.approx(0, abs=1e-3)}
    row = result["levels"][1]
    for key, first, second in (("kept_until", "styled", "plain"), ("kept_since", "plain", "styled")):
        pairs = {getattr(item, first): getattr(item, second) for item in judges.items}

        class OfPairs(PromptSwitch):
            def second(self, prompt, pairs=pairs):
                return pairs[prompt]

        switch = OfPairs("of each", row["log_snr"] - 1e-3)
        drawn = list(generate(str(base), list(pairs), sampling=SAMPLING, guidances=[switch]))
        assert drawn[0][1]["switch_share"] == pytest.approx(row["share_of_steps"], abs=1e-3)
        assert row[key] == pytest.approx(np.mean([judges.place(drawn[i][0], i) for i in range(PROMPTS)]), abs=0.01)
    saved = json.loads((tmp_path / "out" / "calibration.json").read_text(), parse_constant=pytest.fail)
    assert saved == result and len(saved["base_hash"]) == 64
    assert saved["published"]["style-friendly"]["matched_mean"] == round(-6 + math.log(128**2 / 4**2), 2)
    assert (tmp_path / "out" / "calibration.svg").read_text().startswith("<svg xmlns=")


def test_calibrate_interrupted_resumes(run, tmp_path, monkeypatch):
    draw, calls = module.sample, []

    def interrupted(*args, **keywords):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return draw(*args, **keywords)

    monkeypatch.setattr(module, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt, match="the same command resumes"):
        run()
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    whole = run()
    assert len(calls) == 1 + 2 * 8  # two batches of 8 variants, and the one that was lost
    again = run()
    assert len(calls) == 17 and {**again, "seconds": 0} == {**whole, "seconds": 0}
    assert len(run(levels=9)["levels"]) == 4
    assert len(calls) == 17 + 4  # one level more, two batches, both ways


class RecordingMeasure:
    """A measure whose features are the results of `fake_sample`."""

    name = "text"

    def __init__(self):
        self.calls = 0

    def features(self, images, items):
        self.calls += 1
        return list(images)

    def scores(self, variant, rows, items):
        raise NotImplementedError


def fake_sample(_, __, jobs, ___, sampling, ____, guidances):
    """Instead of `sample`: first prompt, second prompt and seed of every image."""
    assert len(jobs) <= sampling.batch
    for prompt, seed in jobs:
        yield [prompt, guidances[0].second(prompt) if guidances else None, seed], {}


def make_sampler(batch):
    found = module.VariantSampler.__new__(module.VariantSampler)
    found.family = found.pipe = found.encode = None
    found.sampling, found.measure, found.log_snr = Sampling(batch=batch), RecordingMeasure(), [-9.0, -5.0, -3.0, 0.0]
    return found


def test_sample_all_with_repeated_subject_uses_both_styles(tmp_path, monkeypatch):
    """Batch 16 of the default prompts has 12 subjects, four of them twice. Invalid cached features are not used."""
    monkeypatch.setattr(module, "sample", fake_sample)
    items, sampler = list(text_prompts(16, 0, None, None)), make_sampler(16)
    assert len({item.plain for item in items}) == 12
    rows = sampler.sample_all(items, [2], tmp_path, math.inf, 4, ignore)
    assert rows["everywhere"] == [[item.styled, None, item.seed] for item in items]
    assert rows["nowhere"] == [[item.plain, None, item.seed] for item in items]
    assert rows["until-2"] == [[item.styled, item.plain, item.seed] for item in items]
    assert rows["since-2"] == [[item.plain, item.styled, item.seed] for item in items]
    assert sampler.measure.calls == 4 and sampler.sample_all(items, [2], tmp_path, math.inf, 4, ignore) == rows
    assert sampler.measure.calls == 4
    files = sorted(tmp_path.iterdir())
    for file in files:  # as written by older versions: without "parts", wrong for repeated subjects
        saved = json.loads(file.read_text())
        features = [["wrong"]] * 16 if "since" in file.name else saved["features"]
        file.write_text(json.dumps({"asks": saved["asks"], "features": features}))
    assert sampler.sample_all(items, [2], tmp_path, math.inf, 4, ignore) == rows
    assert len(files) == 4 and sampler.measure.calls == 5  # only "since" is generated again


class Clock:
    """Instead of `time`: every image takes two seconds."""

    def __init__(self, monkeypatch):
        self.now, sampled = 0.0, module.sample
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.now)

        def slow(family, pipe, jobs, *rest):
            self.now += 2 * len(jobs)
            return sampled(family, pipe, jobs, *rest)

        monkeypatch.setattr(module, "sample", slow)


@pytest.mark.filterwarnings("ignore:for the time limit")
@pytest.mark.parametrize(
    ("seconds", "prompts", "levels"),
    [(200, PROMPTS, 3), (90, 5, 3), (75, 4, 3)],  # 8 s to measure, then 16 s per prompt
)
def test_calibrate_minutes_is_a_limit(run, monkeypatch, seconds, prompts, levels):
    clock = Clock(monkeypatch)
    result = run(minutes=seconds / 60)
    assert (result["prompts"], len(result["levels"])) == (prompts, levels)
    assert 0.6 * seconds <= clock.now <= seconds or prompts == PROMPTS


@pytest.mark.filterwarnings("ignore:for the time limit")
def test_calibrate_minutes_reduces_levels_and_names_the_least(run, monkeypatch):
    clock = Clock(monkeypatch)
    result = run(minutes=75 / 60, levels=4)
    assert (result["prompts"], len(result["levels"])) == (4, 3) and clock.now <= 75
    with pytest.raises(UserError, match=r"an image takes 2 s here, and 4 prompts at 3 levels would take \d+ s more"):
        run(minutes=20 / 60)
    with pytest.raises(UserError, match="minutes must be a number above 0"):
        run(minutes=0)


def test_calibrate_dry_run_reads_no_weights_and_writes_nothing(base, tmp_path, monkeypatch, capsys):
    from impasto.cli import main as cli

    monkeypatch.setattr(module.loader, "load", None)
    monkeypatch.setattr(module.Judges, "load", None)
    out = tmp_path / "out"
    flags = ["--base", str(base), "--out", str(out), "--prompts", "6", "--levels", "3", "--steps", "6", "--dry-run"]
    result = cli.run(["noise", "calibrate", *flags], False)
    assert result["pictures"] == 6 * 8 and len(result["levels"]) == 3 and not out.exists()
    assert "48 images: 2 + 2 x 3 per prompt" in capsys.readouterr().out


def test_art_world_prompts_exclude_evaluation():
    split, items = load_meta()["split"], list(art_world_prompts(48, 5))
    labels = {load_meta()["concepts"][c]["label"] for c in split["evaluation_concepts"] + split["reference_concepts"]}
    assert {item.style for item in items} == set(split["train_styles"])
    assert not {item.plain for item in items} & labels and len({item.plain for item in items}) == 48
    assert items[:12] == list(art_world_prompts(12, 5)) and [item.seed for item in items[:3]] == [5, 6, 7]
    assert items[0].styled == f"{items[0].plain}, {items[0].words}"


def test_text_prompts_cover_pairs_and_read_files(tmp_path):
    items = list(text_prompts(96, 0, None, None))
    assert len({item.styled for item in items}) == 96  # 8 styles x 12 subjects, each pair once
    (tmp_path / "styles.txt").write_text("ink\n\nneon \n", encoding="utf-8")
    first = next(text_prompts(1, 0, tmp_path / "styles.txt", None))
    assert first.styled == "a fox in ink style" and first.plain == "a fox" and first.words == "ink style"
    (tmp_path / "styles.txt").write_text("ink\n", encoding="utf-8")
    with pytest.raises(UserError, match="fewer than two styles"):
        list(text_prompts(1, 0, tmp_path / "styles.txt", None))
    with pytest.raises(UserError, match="cannot be read"):
        list(text_prompts(1, 0, None, tmp_path / "nowhere"))


def test_encoder_measure_scores():
    items = list(text_prompts(4, 0, None, None))
    items = [items[0], items[1], *[type(a)("other", a.styled, a.style, a.words, a.seed) for a in items[:2]]]
    rows = {"everywhere": [[1.0, 0, 0], [0, 1.0, 0], [0.6, 0.8, 0], [0, 0, 1.0]], "nowhere": [[0, 1.0, 0]] * 4}
    by_pictures = EncoderMeasure(FakeEncoder(), "pictures")
    assert by_pictures.scores("everywhere", rows, items) == pytest.approx([0.6, 0, 0.6, 0])
    assert by_pictures.scores("nowhere", rows, items) == pytest.approx([0.8, 0, 0, 1])
    assert EncoderMeasure(FakeEncoder(), "text").scores("nowhere", rows, items) == pytest.approx([3**-0.5] * 4)
    with pytest.raises(UserError, match="every style needs two subjects"):
        by_pictures.scores("nowhere", rows, items[:2])


def test_choose_levels_spacing_and_errors():
    grid = [-math.inf, -6.0, -5.0, -4.0, -3.0, -2.0, 0.0, 3.0, 8.0]
    assert choose_levels(grid, 100) == [1, 2, 3, 4, 5, 6, 7]
    assert choose_levels(grid, 4) == [1, 4, 6, 7]
    assert choose_levels(grid, 3, -5.0, -3.0) == [2, 3, 4]
    assert choose_levels([-5.0, -4.0, -4.0, -3.0, -1.0], 9) == [1, 3, 4]
    for low, high, message in (
        (-20, 0, "are not possible"),
        (-5, 9, "are not possible"),
        (0, -2, "are not possible"),
        (-6, -5, "only 2"),
    ):
        with pytest.raises(UserError, match=f"{message}.*go from -6.00 to 8.00"):
            choose_levels(grid, 5, low, high)
    with pytest.raises(UserError, match="give more --steps"):
        choose_levels([-math.inf], 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": "quik"}, "did you mean 'quick'"),
        ({"levels": 2}, "at least 3"),
        ({"prompts": 3}, "at least 4"),
        ({"low": -50.0}, "are not possible: the levels of this base with 6 steps go from"),
        ({"by": "judge"}, "did you mean 'judges'"),
        ({"by": "text"}, "no encoder is given; give --clip"),
        ({"styles": Path("x")}, "leave out --styles"),
        ({"components": Path("nowhere")}, "is not a folder: name a diffusers folder"),
        ({"clip": "/nowhere/clip"}, "no encoder at /nowhere/clip"),
        ({"clip": "/nowhere/clip", "by": "judges"}, "the judges score without an encoder: leave out --clip"),
        ({"seed": -1}, "seed must be from 0"),
        ({"seed": 2**64}, "seed must be from 0"),
        ({"minutes": math.nan}, "minutes must be a number above 0, not nan"),
        ({"sampling": Sampling(steps=6, size=100)}, "resolution must be a multiple of"),
    ],
    ids=str,
)
def test_calibrate_with_bad_input_raises(run, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(**changes)
    assert not (tmp_path / "out" / "calibration.json").exists()


def test_calibrate_without_measure_raises(tiny_sd3, tmp_path):
    with pytest.raises(UserError, match="judges score the styles of embedded bases only; give --clip"):
        calibrate(str(tiny_sd3), tmp_path / "out")
    with pytest.raises(UserError, match="unknown base"):
        calibrate("mini-sd4", tmp_path / "out")


def test_calibrate_without_difference_raises(tiny_sd3, tmp_path):
    """Scored by images of the same style, since this encoder has no text tower."""
    blind = FakeEncoder()
    object.__setattr__(blind, "images", lambda images: torch.ones(len(images), 3) / 3**0.5)
    object.__setattr__(blind, "texts", lambda texts: None)
    settings = {"prompts": 16, "levels": 3, "sampling": Sampling(steps=6, batch=16), "encoder": blind}
    with pytest.raises(UserError, match=r"score is 1\.000, without 1\.000 over 16 prompts: no significant difference"):
        calibrate(str(tiny_sd3), tmp_path / "out", **settings)
    assert not list((tmp_path / "out").glob("*"))
    with pytest.raises(UserError, match="has no text tower"):
        calibrate(str(tiny_sd3), tmp_path / "out", by="text", **settings)


def test_calibrate_cache_depends_on_encoder_weights(tiny_sd3, tmp_path, monkeypatch):
    """Also with the same name (a folder whose weights have changed)."""
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "measure_emergence", lambda *args: 1 / 0)
    seen = []
    for value in (1.0, 1.0, 2.0):
        encoder = FakeEncoder()
        object.__setattr__(encoder, "model", torch.nn.Linear(1, 1))
        torch.nn.init.constant_(encoder.model.weight, value)
        torch.nn.init.zeros_(encoder.model.bias)
        images = encoder.images
        object.__setattr__(encoder, "images", lambda those, own=images: seen.append(len(those)) or own(those))
        settings = {"prompts": 4, "levels": 3, "sampling": Sampling(steps=6, batch=4), "encoder": encoder}
        with pytest.raises(ZeroDivisionError):
            calibrate(str(tiny_sd3), tmp_path / "out", **settings)
        seen.append(0)
    first = seen.index(0)
    assert sum(seen[:first]) > 0 and seen[first : first + 2] == [0, 0]  # the second time all features are cached
    assert seen[first + 2 :] == seen[: first + 1]


def test_calibrate_of_noise_prediction_passes_lowest_level(tiny_sd3, tiny_sd15, tmp_path, monkeypatch):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    ends = []
    monkeypatch.setattr(module, "measure_emergence", lambda scores, rule, lowest: ends.append(lowest) or 1 / 0)
    for base in (tiny_sd3, tiny_sd15):
        settings = {"prompts": 4, "levels": 3, "sampling": Sampling(steps=12, batch=4), "encoder": FakeEncoder()}
        with pytest.raises(ZeroDivisionError):
            calibrate(str(base), tmp_path / "out", **settings)
    assert ends == [None, pytest.approx(loader.load(str(tiny_sd15)).schedule.range[0])]


@pytest.mark.filterwarnings("ignore:for the time limit")
def test_calibrate_by_pictures_needs_two_subjects(tiny_sd3, tmp_path, monkeypatch):
    """Too few prompts raise at once; --minutes uses the minimum."""
    settings = {"by": "pictures", "encoder": FakeEncoder(), "sampling": Sampling(steps=6, batch=4), "levels": 3}
    with pytest.raises(UserError, match=r"needs two subjects: at least 16 --prompts, or fewer styles"):
        calibrate(str(tiny_sd3), tmp_path / "out", prompts=15, **settings)
    (tmp_path / "styles.txt").write_text("\n".join("abcdefg"))
    ticks = []
    settings |= {"styles": tmp_path / "styles.txt", "progress": lambda phase, done, total: ticks.append((done, total))}
    with pytest.raises(UserError, match="over 14 prompts: no significant difference"):
        Clock(monkeypatch)
        calibrate(str(tiny_sd3), tmp_path / "out", size="quick", minutes=255 / 60, prompts=40, **settings)
    assert ticks[-1] == (14 * 8, 14 * 8)


def test_calibrate_command_writes_proposal(base, judges, tmp_path, monkeypatch, capsys):
    from impasto.cli import main as cli

    monkeypatch.setattr(module.Judges, "load", lambda: judges)
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="--components 'nowhere' is not a folder"):
        cli.run(["noise", "calibrate", "--components", "nowhere", "--out", str(tmp_path / "out")], True)
    flags = ["--prompts", str(PROMPTS), "--levels", "3", "--steps", "6", "--low", "-6", "--offset", "-1.5"]
    with pytest.raises(UserError, match=r"from -6 to 4 are not possible: .* go from -4\.9"):
        cli.run(["noise", "calibrate", "--base", str(base), "--out", str(tmp_path / "out"), *flags], True)
    result = cli.run(
        ["noise", "calibrate", "--base", str(base), "--out", str(tmp_path / "out"), *flags[:6], *flags[8:]], True
    )
    err = capsys.readouterr().err
    law = result["proposal"]
    half = result["points"]["50%"]["log_snr"]
    assert law["noise_mean"] == pytest.approx(half - 1.5, abs=0.01) and law["rule"]["offset"] == -1.5
    assert (
        f"--noise.mean {law['noise_mean']} --noise.std {law['noise_std']}" in err and "fitted on two small bases" in err
    )
    with pytest.raises(UserError, match="did you mean 'calibrate'"):
        cli.run(["noise", "calibrat"], True)
