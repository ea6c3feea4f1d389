"""The bench's logic with a runner that invents scores, and one tiny campaign that really trains, draws and scores."""

import json
import sys
import types
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from fakes import FakeEncoder, FakeJudges

from impasto.artworld import load_meta
from impasto.errors import UserError
from impasto.reproduce import campaign as module
from impasto.reproduce import reproduce, style_friendly
from impasto.reproduce.cells import Cell, read_all
from impasto.reproduce.claims import Arm, Claim, Reading, more, no_less
from impasto.reproduce.runner import on_grid, run_cell, sampling_of
from impasto.reproduce.small_world import SmallWorld
from impasto.reproduce.statistics import ALPHA, sign_flip

FEW = {"steps": 2, "rank": 2}
ARMS = {
    "high": Arm("high noise", {"noise": "style-friendly", "noise_mean": -6.0, "noise_std": 2.0} | FEW),
    "low": Arm("low noise", {"noise": "style-friendly", "noise_mean": 2.0, "noise_std": 2.0} | FEW),
    "prompt": Arm("words", how="prompt"),
    "gone": Arm("cannot be", absent="no such file"),
    "deep": Arm("needs what is not there", needs="no_such_stream"),
}
CLAIMS = (
    Claim(
        "T1",
        "high beats low",
        {"high": {"FLUX": ".5 / .7 / .3"}},
        (
            Reading("as published", (more("high", "low"), no_less("high", "low"))),
            Reading("b", (more("low", "prompt"),)),
        ),
        curves={"mean": {"high": -6.0, "low": 2.0}},
    ),
    Claim("T2", "high beats words", {"figure": "so"}, (Reading("as published", (more("high", "prompt"),)),)),
    Claim("T3", "high beats gone", {}, (Reading("as published", (more("high", "gone"), more("high", "deep"))),)),
)


@pytest.fixture(autouse=True)
def tiny_group(monkeypatch):
    """A group "tiny" of three claims."""
    group = types.ModuleType("tiny_group")
    group.ARMS, group.CLAIMS, group.arms = ARMS, CLAIMS, lambda *_: ARMS
    monkeypatch.setitem(sys.modules, "tiny_group", group)
    monkeypatch.setitem(module.GROUPS, "tiny", "tiny_group")


@pytest.fixture
def invented(monkeypatch):
    """run_cell without training: the arm decides, the style and the seed add what all arms share. Lists its cells."""
    ran = []

    def run(cell, world, place):
        ran.append(cell)
        mean = {"high": 0.8, "low": 0.4, "prompt": 0.5}[cell.arm]
        shared = 0.01 * (len(cell.spec["style"]) + cell.spec["seed"])
        return {
            "scores": {"style_accuracy": mean + shared, "concept_top5": 0.6},
            "seconds": 6.0,
            "versions": {"a": "1"},
        }

    monkeypatch.setattr(module, "run_cell", run)
    return ran


@pytest.fixture
def world():
    return SmallWorld(judges=FakeJudges(), encoder=FakeEncoder(), concepts=2)


def go(base, out, world, **more_):
    lines = []
    result = reproduce("tiny", base=str(base), out=out, world=world, told=lines.append, **more_)
    return result, lines


def test_full_cells_decide_and_each_is_run_once(tiny_sd3, tmp_path, world, invented):
    result, lines = go(tiny_sd3, tmp_path, world, cells="full")
    assert result["verdicts"] == {"T1": "reproduced", "T2": "reproduced", "T3": "undecided"}
    assert len(invented) == result["run"] == 3 * 27 and len({cell.key for cell in invented}) == 81
    assert lines == ["left out: gone: no such file",
                     "left out: deep: this base has no layers of the kind 'no_such_stream'"]  # fmt: skip
    claims = json.loads((tmp_path / "claims.json").read_text())
    one = claims[0]
    assert [r["verdict"] for r in one["readings"]] == ["reproduced", "not reproduced"] and one["cells"] == "full"
    mean, sd, n = one["arms"]["high"]["style_accuracy"]
    assert n == 27 and 0.02 < sd < 0.06 and mean == pytest.approx(0.8 + 0.01 * (15 + 17 + 7) / 3 + 0.01, abs=1e-4)
    assert one["readings"][0]["compares"][0]["effect"] == pytest.approx(0.4)
    assert claims[2]["readings"][0]["why"][0] == "gone is left out: no such file"
    page = (tmp_path / "README.md").read_text()
    assert "**reproduced** (as published); b: not reproduced" in page and ".5 / .7 / .3" in page and "a 1" in page
    assert "Its width is 16: rank 32 is 2.000 of it" in page
    for name in ("T1.svg", "effects-as-published.svg"):
        root = ElementTree.fromstring((tmp_path / "pictures" / name).read_text())
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and f"pictures/{name}" in page
    again, _ = go(tiny_sd3, tmp_path, world, cells="full")
    assert again["run"] == 0 and len(invented) == 81 and again["verdicts"] == result["verdicts"]


def test_smoke_cells_decide_nothing_and_full_ones_outrank_them(tiny_sd3, tmp_path, world, invented):
    result, _ = go(tiny_sd3, tmp_path, world, cells="smoke")
    assert len(invented) == 9 and set(result["verdicts"].values()) == {"undecided"}
    entry = json.loads((tmp_path / "claims.json").read_text())[0]
    assert entry["cells"] == "smoke" and "smoke cells decide nothing" in entry["why"]
    assert entry["readings"][0]["compares"][0]["effect"] == pytest.approx(0.4)  # shown all the same
    go(tiny_sd3, tmp_path, world, cells="full", claim=["T2"])
    claims = {e["id"]: e for e in json.loads((tmp_path / "claims.json").read_text())}
    assert claims["T2"]["cells"] == "full" and claims["T1"]["cells"] == "smoke"
    # smoke's seeds, references and prompts are full's too here (two prompts each): only what is new was run
    assert len(invented) == 9 + 2 * 27 - 2 * 3


def test_the_same_cells_of_other_prompts_or_settings_are_others(tiny_sd3, world):
    campaign = module.prepare("tiny", str(tiny_sd3), "x", world=world)
    cell = campaign.cells_of("high", "smoke")[0]
    more_prompts = replace(campaign, world=replace(world, concepts=3)).cells_of("high", "smoke")[0]
    keys = {
        cell.key,
        more_prompts.key,
        campaign.cells_of("low", "smoke")[0].key,
        campaign.cells_of("high", "full")[1].key,
    }
    assert len(keys) == 4
    stated = cell.spec["arm"]["settings"]
    assert stated["noise_mean"] == -6.0 and stated["lr"] == 1e-3 and stated["noise_shift"] is None
    assert "crops" not in stated and "out" not in stated  # what does nothing is not stated, nor where it lies


def test_cells_of_another_base_are_told_of_and_not_used(tiny_sd3, tiny_sd3_other, tmp_path, world, invented):
    go(tiny_sd3, tmp_path, world)
    result, lines = go(tiny_sd3_other, tmp_path, world)
    assert any(line.startswith("9 cells of another base (") for line in lines)
    assert result["run"] == 9 and result["done_before"] == 0
    entry = json.loads((tmp_path / "claims.json").read_text())[0]
    assert entry["base"]["sha256"] == result["base_sha256"] and entry["arms"]["high"]["style_accuracy"][2] == 3


@pytest.fixture(scope="module")
def tiny_sd3_other(tmp_path_factory):
    from tiny import sd3_folder

    return sd3_folder(tmp_path_factory.mktemp("other") / "sd3", seed=5)


def test_a_cell_that_fails_stops_no_other_and_nothing_is_decided_without_it(
    tiny_sd3, tmp_path, world, invented, monkeypatch
):
    fine = module.run_cell

    def sometimes(cell, *rest):
        if cell.arm == "high" and "unifont" in cell.unit and cell.spec["seed"] == 1:
            raise UserError("the loss is not a number any more")
        return fine(cell, *rest)

    monkeypatch.setattr(module, "run_cell", sometimes)
    result, _ = go(tiny_sd3, tmp_path, world, cells="full")
    assert len(result["failed"]) == 3 and "not a number" in result["failed"][0]
    entry = json.loads((tmp_path / "claims.json").read_text())[0]
    assert entry["verdict"] == "undecided" and entry["progress"]["full"] == [78, 81] and entry["cells"] == "smoke"
    assert [r["cells"] for r in entry["readings"]] == ["smoke", "full"]  # the other reading has all of its cells
    assert entry["readings"][1]["verdict"] == "not reproduced"
    monkeypatch.setattr(module, "run_cell", fine)
    assert go(tiny_sd3, tmp_path, world, cells="full")[0]["verdicts"]["T1"] == "reproduced"


def test_ctrl_c_loses_the_running_cell_only(tiny_sd3, tmp_path, world, invented, monkeypatch):
    fine, count = module.run_cell, []

    def stopped(cell, *rest):
        count.append(cell)
        if len(count) == 4:
            raise KeyboardInterrupt
        return fine(cell, *rest)

    monkeypatch.setattr(module, "run_cell", stopped)
    with pytest.raises(KeyboardInterrupt, match="3 of 9 cells are done: the same command goes on"):
        go(tiny_sd3, tmp_path, world)
    assert len(read_all(tmp_path / "cells")) == 3
    assert go(tiny_sd3, tmp_path, world)[0]["done_before"] == 3


def test_a_dry_run_counts_and_writes_nothing(tiny_sd3, tmp_path, world, invented):
    result, _ = go(tiny_sd3, tmp_path / "new", world, cells="full", dry_run=True)
    assert result["to_run"] == result["wanted"] == 81 and result["arms"] == {"high": 27, "low": 27, "prompt": 27}
    assert result["minutes"] is None and not (tmp_path / "new").exists()  # nothing was timed on this base
    go(tiny_sd3, tmp_path, world)
    assert go(tiny_sd3, tmp_path, world, cells="full", dry_run=True)[0]["minutes"] == pytest.approx(72 * 6 / 60)


def test_bad_input(tiny_sd3, tmp_path, world, invented):
    with pytest.raises(UserError, match="unknown group of claims 'style-frendly': did you mean"):
        reproduce("style-frendly")
    with pytest.raises(UserError, match="unknown claim 'T9': did you mean 'T"):
        go(tiny_sd3, tmp_path, world, claim=["T9"])
    with pytest.raises(UserError, match="unknown cells 'ful': did you mean 'full'"):
        go(tiny_sd3, tmp_path, world, cells="ful")
    with pytest.raises(UserError, match="workers must be at least 1"):
        go(tiny_sd3, tmp_path, world, workers=0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        go(tiny_sd3, tmp_path / "file", world)
    assert not invented


def test_broken_cells_are_named(tiny_sd3, tmp_path, world, invented):
    go(tiny_sd3, tmp_path, world)
    path = next((tmp_path / "cells").glob("high--unifont*.json"))
    good = path.read_text()
    for broken, said in (
        (good[:200], "cannot be read"),
        ("[]", "is not complete"),
        (good.replace('"scores"', '"score"'), "not complete \\(no scores\\)"),
        (good.replace('"seed": 0', '"seed": 1'), "changed by hand"),
        (good.replace(": 0.6", ': "high"'), "no numbers"),
    ):
        assert broken != good
        path.write_text(broken)
        with pytest.raises(UserError, match=f"{path.name}.*{said}"):
            go(tiny_sd3, tmp_path, world)


def test_the_packaged_claims_are_sound(tiny_sd3):
    arms, claims = style_friendly.ARMS, style_friendly.CLAIMS
    assert len({c.id for c in claims}) == len(claims)
    for claim in claims:
        assert set(claim.arms) <= set(arms), claim.id
        assert claim.readings[0].name == "as published" and claim.paper
        for reading in claim.readings:
            for compare in reading.compares:
                assert sum(compare.weights.values()) == pytest.approx(0)
    campaign = module.prepare("style-friendly", str(tiny_sd3), "x")
    specs = [
        (arms[name].where, json.dumps(spec, sort_keys=True))
        for name, spec in campaign.specs.items()
        if "first_steps" not in spec  # which levels fall between the same steps is the base's
    ]
    assert len(specs) == len(set(specs))  # what is the same is one arm, computed once
    used = {arm for claim in claims for arm in claim.arms}
    assert set(arms) == used and set(campaign.left_out) <= {*("calibrated", "style-aligned", "style-aligned, plain")}


@pytest.mark.filterwarnings("ignore:the prompt is too long")  # for the tiny base's tokenizer of letters
def test_one_tiny_campaign_for_real(tiny_sd3, tmp_path, monkeypatch):
    world = SmallWorld(judges=FakeJudges(), encoder=FakeEncoder(), styles=1, concepts=2)
    monkeypatch.setattr(module, "run_cell", run_cell)
    result, _ = go(tiny_sd3, tmp_path, world, claim=["T2"])
    assert result["run"] == 2 and not result["failed"]
    cells = list(read_all(tmp_path / "cells").values())
    assert {c["arm"] for c in cells} == {"high", "prompt"}
    for cell in cells:
        assert 0 <= cell["scores"]["style_accuracy"] <= 1 and cell["scores"]["leakage"] is not None
        assert cell["spec"]["caption"] == "cat, soft 3D render with smooth purple-pink shading"
        assert cell["versions"]["torch"] and cell["device"] == "cpu" and cell["seconds"] > 0
        assert Cell(cell["arm"], cell["unit"], cell["spec"]).key == cell["key"]
    from impasto.paths import cache_dir

    folder = next(cache_dir("reproduce").rglob("high--*"))
    assert (folder / "style" / "pytorch_lora_weights.safetensors").is_file() and not (
        folder / "style" / "state"
    ).exists()
    assert len(list((folder / "images").glob("*.png"))) == 2
    entry = next(e for e in json.loads((tmp_path / "claims.json").read_text()) if e["id"] == "T2")
    assert entry["verdict"] == "undecided" and entry["arms"]["high"]["style_accuracy"][2] == 1


@pytest.mark.filterwarnings("ignore:the prompt is too long")  # for the tiny base's tokenizer of letters
def test_prompt_switching_for_real(tiny_sd3, tmp_path):
    """Both orders, on styles that the base knows, with the log-SNR of every step in the picture."""
    from PIL import Image

    from impasto.paths import cache_dir

    arms = {
        "first": Arm("a", how="omit-first", options={"at": -3.0}, where="known"),
        "only": Arm("b", how="only-first", options={"at": -3.0}, where="known"),
        "no": Arm("c", how="plain", where="known"),
    }
    claim = Claim("T1", "early", {"f": "g"}, (Reading("as published", (more("only", "first"),)),), shown=("no",))
    sys.modules["tiny_group"].arms = lambda *_: arms
    sys.modules["tiny_group"].CLAIMS = (claim,)
    world = SmallWorld(judges=FakeJudges(), encoder=FakeEncoder(), known=1, concepts=2)
    result, _ = go(tiny_sd3, tmp_path, world)
    assert result["run"] == 3 and not result["failed"]
    pictures = {}
    for folder in cache_dir("reproduce").rglob("*--twemoji-0--*"):
        pictures[folder.name.split("--")[0]] = [Image.open(f).info["impasto"] for f in sorted(folder.rglob("*.png"))]
    told = {arm: [json.loads(text) for text in texts] for arm, texts in pictures.items()}
    words = ", clean flat vector emoji with plain solid colours"
    for first, only, no in zip(told["first"], told["only"], told["no"], strict=True):
        assert first["switch_to"] == first["prompt"] + words == only["prompt"] and only["switch_to"] == no["prompt"]
        assert first["prompt_of_step"] == only["prompt_of_step"] and "switch_to" not in no
        assert first["seed"] == only["seed"] == no["seed"]


def test_levels_between_the_same_steps_are_one_cell(tiny_sd3):
    from impasto.families import load
    from impasto.guidance.prompt_switch import grid

    family = load(str(tiny_sd3))
    own = sampling_of(family)
    second, third = grid(family, own["steps"], own["size"])[1:3]
    levels = [second + share * (third - second) for share in (0.2, 0.9, 1.2)]
    told = [on_grid({"how": "omit-first", "at": at}, family) for at in levels]
    assert told[0] == told[1] and told[0][0] == {"how": "omit-first", "first_steps": 2}
    assert told[0][1] == f" (the first 2 of {own['steps']} steps)" and told[2][0]["first_steps"] == 3
    with pytest.raises(UserError, match="outside of the sampling"):
        on_grid({"how": "omit-first", "at": 99.0}, family)
    assert on_grid({"how": "plain"}, family) == ({"how": "plain"}, "")


def test_the_calibrated_arm_is_this_bases(tiny_sd3, tmp_path):
    from impasto.families import load

    file = tmp_path / "calibration.json"
    own = {"base_hash": load(str(tiny_sd3)).hash, "proposal": {"noise_mean": -2.5, "noise_std": 2.25}}
    file.write_text(json.dumps(own))
    campaign = module.prepare("style-friendly", str(tiny_sd3), "x", file)
    settings = campaign.specs["calibrated"]["settings"]
    assert (settings["noise_mean"], settings["noise_std"]) == (-2.5, 2.25) and "calibrated" not in campaign.left_out
    for content, said in (
        (json.dumps(own | {"base_hash": "0" * 64}), "of another base \\(000000000000, not"),
        (json.dumps({"base_hash": own["base_hash"]}), "is no calibration.json .*'proposal'"),
        ("[", "is no calibration.json"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=said):
            module.prepare("style-friendly", str(tiny_sd3), "x", file)
    lines = []
    file.write_text(json.dumps(own | {"base_hash": "0" * 64}))  # kept by an earlier call, on another base
    campaign = module.prepare("style-friendly", str(tiny_sd3), tmp_path, told=lines.append)
    assert "calibrated" in campaign.left_out and "of another base and is not used" in lines[0]
    file.write_text(json.dumps(own))
    assert "calibrated" in module.prepare("style-friendly", str(tiny_sd3), tmp_path).specs


@pytest.mark.filterwarnings("ignore:the prompt is too long")
def test_style_aligned_for_real(tiny_sd3, tmp_path):
    arms = {"aligned": style_friendly.ARMS["style-aligned"], "prompt": ARMS["prompt"]}
    claim = Claim("T1", "aligned", {"f": "g"}, (Reading("as published", (more("aligned", "prompt"),)),))
    sys.modules["tiny_group"].arms = lambda *_: arms
    sys.modules["tiny_group"].CLAIMS = (claim,)
    world = SmallWorld(judges=FakeJudges(), encoder=FakeEncoder(), styles=1, concepts=2)
    result, _ = go(tiny_sd3, tmp_path, world)
    assert result["run"] == 2 and not result["failed"]
    from impasto.paths import cache_dir

    made = {f.name.split("--")[0]: f for f in cache_dir("reproduce").rglob("*--fluent-emoji-3d-cat-0--*")}
    images = [(made[arm] / "images" / "0000.png").read_bytes() for arm in arms]
    assert images[0] != images[1]


def test_the_base_alone_is_tested_on_every_style_that_it_knows_and_few_could_refute_nothing():
    meta, world = load_meta(), SmallWorld()
    full, smoke = world.units("full", "known"), world.units("smoke", "known")
    trained = {meta["style_names"][style] for style in meta["split"]["train_styles"]}
    assert {unit["style"] for unit in full.values()} == trained and len(full) == 36
    assert len({unit["style"] for unit in smoke.values()}) == 3
    (decided,) = (claim for claim in style_friendly.CLAIMS if claim.id == "S8")
    tests = len(decided.readings) * len(decided.readings[0].compares)
    worst = [-1.0] * len(trained)  # every style against the claim
    assert sign_flip([-d for d in worst]) * tests < ALPHA < sign_flip([-d for d in worst[:6]]) * tests


def test_the_command(tiny_sd3, tmp_path, monkeypatch, capsys):
    from impasto import cli

    def call(*flags):
        monkeypatch.setattr(
            sys, "argv", ["impasto", "reproduce", *flags, "--base", str(tiny_sd3), "--dry-run", "--json"]
        )
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code, json.loads(out.splitlines()[-1]), err

    code, told, err = call("--claim", "S1", "--claim", "S8", "--cells", "full", "--out", str(tmp_path / "x"))
    assert code == 0 and told["claims"] == ["S1", "S8"] and told["to_run"] == told["wanted"]
    assert told["arms"]["style-friendly"] == 27 and told["arms"]["only below -2.38"] == 36
    assert "left out: calibrated: no calibration was given" in err
    code, told, _ = call("--claim", "S99")
    assert code == 2 and told["error"].startswith("unknown claim 'S99': did you mean 'S9'")
