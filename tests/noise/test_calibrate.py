"""`noise calibrate`: its pictures are those of `generate --switch-at`, it goes on where it stopped, it says what it
needs. The judge is one with known answers: where a picture lies between the one without style and the one with it."""

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
from impasto.calibration.calibrate import ByEncoder, art_world_asks, calibrate, choose_levels, text_asks
from impasto.errors import UserError
from impasto.generate import generate
from impasto.guidance.prompt_switch import PromptSwitch
from impasto.sampling.sample import Sampling

pytestmark = pytest.mark.filterwarnings("ignore:the prompt is too long")  # the tiny tokeniser spells most words
SAMPLING = Sampling(steps=6, batch=4)
PROMPTS = 6  # fewer than train styles, so that each has a style of its own


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny SD3 that says of itself that it knows the art world's styles."""
    return sd3_folder(tmp_path_factory.mktemp("tiny") / "sd3", card={"embedded": True})


def pixels(image):
    return torch.from_numpy(np.asarray(image).astype(np.float32)).flatten() / 255


class Between:
    """Column s: where the picture lies between those of style s without and with its words, 0 to 1."""

    card = {}  # noqa: RUF012

    def __init__(self, base):
        self.asks = list(art_world_asks(PROMPTS, 0))  # of the seeds 0 to 5, as generate's pictures are
        ends = [[getattr(ask, which) for ask in self.asks] for which in ("plain", "styled")]
        drawn = [[pixels(image) for image, _ in generate(str(base), some, sampling=SAMPLING)] for some in ends]
        self.ends = list(zip(*drawn, strict=True))

    def place(self, image, i):
        without, with_ = self.ends[i]
        return float((pixels(image) - without) @ (with_ - without) / (with_ - without).square().sum())

    def style(self, images):
        table = torch.zeros(len(images), 19)
        for i, ask in enumerate(self.asks):
            table[:, ask.style] = torch.tensor([self.place(image, i) for image in images])
        return table


@pytest.fixture(scope="module")
def judges(base):
    return Between(base)


@pytest.fixture
def run(base, judges, tmp_path, monkeypatch):
    """calibrate with an own cache, small."""
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    given = {"prompts": PROMPTS, "levels": 3, "sampling": SAMPLING, "judges": judges}
    return lambda **changes: calibrate(str(base), tmp_path / "out", **(given | changes))


def test_the_curve_is_that_of_generates_pictures(run, base, judges, tmp_path):
    ticks = []
    result = run(progress=lambda done, total: ticks.append((done, total)))
    assert ticks[-1] == (PROMPTS * 8, PROMPTS * 8) and result["pictures"] == PROMPTS * 8
    assert result["score"] == {"everywhere": pytest.approx(1, abs=1e-3), "nowhere": pytest.approx(0, abs=1e-3)}
    row = result["levels"][1]
    for key, first, second in (("kept_until", "styled", "plain"), ("kept_since", "plain", "styled")):
        pairs = {getattr(ask, first): getattr(ask, second) for ask in judges.asks}
        switch = PromptSwitch(pairs, row["log_snr"] - 1e-3)
        drawn = list(generate(str(base), list(pairs), sampling=SAMPLING, switch=switch))
        assert drawn[0][1]["switch_share"] == pytest.approx(row["share_of_steps"], abs=1e-3)
        assert row[key] == pytest.approx(np.mean([judges.place(drawn[i][0], i) for i in range(PROMPTS)]), abs=0.01)
    told = json.loads((tmp_path / "out" / "calibration.json").read_text(), parse_constant=pytest.fail)
    assert told == result and len(told["base_hash"]) == 64
    assert told["published"]["style-friendly"]["matched_mean"] == round(-6 + math.log(128**2 / 4**2), 2)
    assert (tmp_path / "out" / "calibration.svg").read_text().startswith("<svg xmlns=")


def test_it_goes_on_where_it_stopped(run, tmp_path, monkeypatch):
    draw, calls = module.sample, []

    def interrupted(*args, **keywords):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return draw(*args, **keywords)

    monkeypatch.setattr(module, "sample", interrupted)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        run()
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    whole = run()
    assert len(calls) == 1 + 2 * 8  # two batches of 8 variants, and the one that was lost
    again = run()
    assert len(calls) == 17 and {**again, "seconds": 0} == {**whole, "seconds": 0}
    assert len(run(levels=9)["levels"]) == 4
    assert len(calls) == 17 + 4  # one level more, two batches, both ways


class SeesPrompts:
    """A measure whose features are the pictures that `draws` was asked for."""

    name = "text"

    def __init__(self):
        self.calls = 0

    def features(self, images, asks):
        self.calls += 1
        return list(images)

    def scores(self, variant, rows, asks):
        raise NotImplementedError


def draws(_, __, jobs, ___, sampling, ____, switch=None):
    """Instead of `sample`: for every picture its first and its second prompt and its seed."""
    assert len(jobs) <= sampling.batch
    for prompt, seed in jobs:
        yield [prompt, switch and switch.second(prompt), seed], {}


def drawing(batch):
    found = module.Drawing.__new__(module.Drawing)
    found.family = found.pipe = found.encode = None
    found.sampling, found.measure, found.log_snr = Sampling(batch=batch), SeesPrompts(), [-9.0, -5.0, -3.0, 0.0]
    return found


def test_a_subject_that_comes_twice_in_a_batch_has_both_of_its_styles(tmp_path, monkeypatch):
    """Batch 16 of the default prompts: 12 subjects, four come twice. Wrong features in the cache are not used."""
    monkeypatch.setattr(module, "sample", draws)
    asks, draw = list(text_asks(16, 0, None, None)), drawing(16)
    assert len({ask.plain for ask in asks}) == 12
    rows = draw.all(asks, [2], tmp_path, None, 4, None)
    assert rows["everywhere"] == [[ask.styled, None, ask.seed] for ask in asks]
    assert rows["nowhere"] == [[ask.plain, None, ask.seed] for ask in asks]
    assert rows["until-2"] == [[ask.styled, ask.plain, ask.seed] for ask in asks]
    assert rows["since-2"] == [[ask.plain, ask.styled, ask.seed] for ask in asks]
    assert draw.measure.calls == 4 and draw.all(asks, [2], tmp_path, None, 4, None) == rows
    assert draw.measure.calls == 4
    files = sorted(tmp_path.iterdir())
    for file in files:  # as they were written before: without "parts", and wrong where a subject came twice
        told = json.loads(file.read_text())
        features = [["wrong"]] * 16 if "since" in file.name else told["features"]
        file.write_text(json.dumps({"asks": told["asks"], "features": features}))
    assert draw.all(asks, [2], tmp_path, None, 4, None) == rows
    assert len(files) == 4 and draw.measure.calls == 5  # "since" alone is drawn again


def test_minutes(run):
    assert run(minutes=0.0)["prompts"] == 4  # one batch


def test_nothing_of_the_evaluation_is_looked_at():
    split, asks = load_meta()["split"], list(art_world_asks(48, 5))
    labels = {load_meta()["concepts"][c]["label"] for c in split["evaluation_concepts"] + split["reference_concepts"]}
    assert {ask.style for ask in asks} == set(split["train_styles"])
    assert not {ask.plain for ask in asks} & labels and len({ask.plain for ask in asks}) == 48
    assert asks[:12] == list(art_world_asks(12, 5)) and [ask.seed for ask in asks[:3]] == [5, 6, 7]
    assert asks[0].styled == f"{asks[0].plain}, {asks[0].words}"


def test_prompts_for_other_bases(tmp_path):
    asks = list(text_asks(96, 0, None, None))
    assert len({ask.styled for ask in asks}) == 96  # 8 styles x 12 subjects, each pair once
    (tmp_path / "styles.txt").write_text("ink\n\nneon \n", encoding="utf-8")
    first = next(text_asks(1, 0, tmp_path / "styles.txt", None))
    assert first.styled == "a fox in ink style" and first.plain == "a fox" and first.words == "ink style"
    (tmp_path / "styles.txt").write_text("ink\n", encoding="utf-8")
    with pytest.raises(UserError, match="fewer than two styles"):
        list(text_asks(1, 0, tmp_path / "styles.txt", None))
    with pytest.raises(UserError, match="cannot be read"):
        list(text_asks(1, 0, None, tmp_path / "nowhere"))


def test_scores_of_an_encoder():
    asks = list(text_asks(4, 0, None, None))
    asks = [asks[0], asks[1], *[type(a)("other", a.styled, a.style, a.words, a.seed) for a in asks[:2]]]
    rows = {"everywhere": [[1.0, 0, 0], [0, 1.0, 0], [0.6, 0.8, 0], [0, 0, 1.0]], "nowhere": [[0, 1.0, 0]] * 4}
    by_pictures = ByEncoder(FakeEncoder(), "pictures")
    assert by_pictures.scores("everywhere", rows, asks) == pytest.approx([0.6, 0, 0.6, 0])
    assert by_pictures.scores("nowhere", rows, asks) == pytest.approx([0.8, 0, 0, 1])
    assert ByEncoder(FakeEncoder(), "text").scores("nowhere", rows, asks) == pytest.approx([3**-0.5] * 4)
    with pytest.raises(UserError, match="every style needs two subjects"):
        by_pictures.scores("nowhere", rows, asks[:2])


def test_levels():
    grid = [-math.inf, -6.0, -5.0, -4.0, -3.0, -2.0, 0.0, 3.0, 8.0]
    assert choose_levels(grid, 100) == [1, 2, 3, 4, 5, 6, 7]
    assert choose_levels(grid, 4) == [1, 4, 6, 7]
    assert choose_levels(grid, 3, -5.0, -3.0) == [2, 3, 4]
    assert choose_levels([-5.0, -4.0, -4.0, -3.0, -1.0], 9) == [1, 3, 4]
    for low, high, message in ((-20, 0, "cannot be"), (-5, 9, "cannot be"), (0, -2, "cannot be"), (-6, -5, "only 2")):
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
        ({"low": -50.0}, "cannot be: the levels of this base with 6 steps go from"),
        ({"by": "judge"}, "did you mean 'judges'"),
        ({"by": "text"}, "no encoder is given; give --clip"),
        ({"styles": Path("x")}, "leave out --styles"),
        ({"components": Path("nowhere")}, "is no folder: name a diffusers folder"),
        ({"clip": "/nowhere/clip"}, "no encoder at /nowhere/clip"),
        ({"clip": "/nowhere/clip", "by": "judges"}, "the judges score without an encoder: leave out --clip"),
        ({"seed": -1}, "seed must be from 0"),
        ({"seed": 2**64}, "seed must be from 0"),
        ({"minutes": math.nan}, "minutes must be a number from 0 on, not nan"),
        ({"sampling": Sampling(steps=6, size=100)}, "resolution must be a multiple of"),
    ],
    ids=str,
)
def test_bad_input(run, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(**changes)
    assert not (tmp_path / "out" / "calibration.json").exists()


def test_bases_that_nobody_can_judge(tiny_sd3, tmp_path):
    with pytest.raises(UserError, match="judges know the styles of the embedded bases alone; give --clip"):
        calibrate(str(tiny_sd3), tmp_path / "out")
    with pytest.raises(UserError, match="unknown base"):
        calibrate("mini-sd4", tmp_path / "out")


def test_an_encoder_that_sees_no_difference(tiny_sd3, tmp_path):
    """Another base, by the pictures of the same style, as this encoder reads no text."""
    blind = FakeEncoder()
    object.__setattr__(blind, "images", lambda images: torch.ones(len(images), 3) / 3**0.5)
    object.__setattr__(blind, "texts", lambda texts: None)
    settings = {"prompts": 16, "levels": 3, "sampling": Sampling(steps=6, batch=16), "encoder": blind}
    with pytest.raises(UserError, match=r"score is 1\.000, without 1\.000 over 16 prompts: no sure difference"):
        calibrate(str(tiny_sd3), tmp_path / "out", **settings)
    assert not list((tmp_path / "out").glob("*"))
    with pytest.raises(UserError, match="reads no text"):
        calibrate(str(tiny_sd3), tmp_path / "out", by="text", **settings)


def test_what_another_encoder_saw_does_not_count(tiny_sd3, tmp_path, monkeypatch):
    """Also where it has the same name: a folder whose weights have changed."""
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "emergence", lambda *args: 1 / 0)
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
    assert sum(seen[:first]) > 0 and seen[first : first + 2] == [0, 0]  # the second time nothing is looked at
    assert seen[first + 2 :] == seen[: first + 1]


def test_a_base_that_predicts_the_noise_gets_a_law_of_its_own(tiny_sd3, tiny_sd15, tmp_path, monkeypatch):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    told = []
    monkeypatch.setattr(module, "emergence", lambda scores, rule, lowest: told.append(lowest) or 1 / 0)
    for base in (tiny_sd3, tiny_sd15):
        settings = {"prompts": 4, "levels": 3, "sampling": Sampling(steps=12, batch=4), "encoder": FakeEncoder()}
        with pytest.raises(ZeroDivisionError):
            calibrate(str(base), tmp_path / "out", **settings)
    assert told == [None, pytest.approx(loader.load(str(tiny_sd15)).schedule.range[0])]


def test_pictures_need_two_subjects_of_each_style(tiny_sd3, tmp_path):
    """Nothing is drawn for too few; a preset takes as many as it needs, and --minutes does not stop before them."""
    settings = {"by": "pictures", "encoder": FakeEncoder(), "sampling": Sampling(steps=6, batch=4), "levels": 3}
    with pytest.raises(UserError, match=r"needs two subjects: at least 16 --prompts, or fewer styles"):
        calibrate(str(tiny_sd3), tmp_path / "out", prompts=15, **settings)
    (tmp_path / "styles.txt").write_text("\n".join("abcdefg"))
    ticks = []
    settings |= {"styles": tmp_path / "styles.txt", "progress": lambda done, total: ticks.append((done, total))}
    with pytest.raises(UserError, match="over 14 prompts: no sure difference"):
        calibrate(str(tiny_sd3), tmp_path / "out", size="quick", minutes=0.0, **settings)
    assert ticks[-1] == (14 * 8, 14 * 8)


def test_the_command(base, judges, tmp_path, monkeypatch, capsys):
    from impasto.cli import main as cli

    monkeypatch.setattr(module.Judges, "load", lambda: judges)
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="--components 'nowhere' is no folder"):
        cli.run(["noise", "calibrate", "--components", "nowhere", "--out", str(tmp_path / "out")], True)
    flags = ["--prompts", str(PROMPTS), "--levels", "3", "--steps", "6", "--low", "-6", "--offset", "-1.5"]
    with pytest.raises(UserError, match=r"from -6 to 4 cannot be: .* go from -4\.9"):
        cli.run(["noise", "calibrate", "--base", str(base), "--out", str(tmp_path / "out"), *flags], True)
    result = cli.run(
        ["noise", "calibrate", "--base", str(base), "--out", str(tmp_path / "out"), *flags[:6], *flags[8:]], True
    )
    said = capsys.readouterr().err
    law = result["proposal"]
    half = result["points"]["50%"]["log_snr"]
    assert law["noise_mean"] == pytest.approx(half - 1.5, abs=0.01) and law["rule"]["offset"] == -1.5
    assert (
        f"--noise-mean {law['noise_mean']} --noise-std {law['noise_std']}" in said
        and "fitted on two small bases" in said
    )
    with pytest.raises(UserError, match="did you mean 'calibrate'"):
        cli.run(["noise", "calibrat"], True)
