"""The bench's logic with a runner that invents scores, and one tiny campaign that really trains, draws and scores."""

import gzip
import json
import sys
import threading
import time
import types
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest
from fakes import FakeEncoder, FakeJudges
from PIL import Image

from impasto import files as paths
from impasto.artworld import load_meta
from impasto.bases.loader import load
from impasto.errors import UserError
from impasto.reproduce import campaign as module
from impasto.reproduce import reproduce, runner, style_friendly
from impasto.reproduce.cells import FILE, Cell, read_all, write, write_all
from impasto.reproduce.claims import Arm, Claim, Reading, more, no_less
from impasto.reproduce.runner import resolve_switch, run_cell, sampling_of
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
    result = reproduce("tiny", base=str(base), out=out, world=world, log=lines.append, **more_)
    return result, lines


def test_reproduce_full_cells_decide_and_run_once(tiny_sd3, tmp_path, world, invented):
    result, lines = go(tiny_sd3, tmp_path, world, cells="full")
    assert result["verdicts"] == {"T1": "reproduced", "T2": "reproduced", "T3": "undecided"}
    assert len(invented) == result["run"] == 2 * 27 + 9 and len({cell.key for cell in invented}) == 63
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
    assert again["run"] == 0 and len(invented) == 63 and again["verdicts"] == result["verdicts"]


def test_reproduce_smoke_cells_do_not_decide(tiny_sd3, tmp_path, world, invented):
    result, _ = go(tiny_sd3, tmp_path, world, cells="smoke")
    assert len(invented) == 9 and set(result["verdicts"].values()) == {"undecided"}
    entry = json.loads((tmp_path / "claims.json").read_text())[0]
    assert entry["cells"] == "smoke" and "smoke cells decide nothing" in entry["why"]
    assert entry["readings"][0]["compares"][0]["effect"] == pytest.approx(0.4)  # shown all the same
    go(tiny_sd3, tmp_path, world, cells="full", claim=["T2"])
    claims = {e["id"]: e for e in json.loads((tmp_path / "claims.json").read_text())}
    assert claims["T2"]["cells"] == "full" and claims["T1"]["cells"] == "smoke"
    # smoke's seeds, references and prompts are full's too here (two prompts each): only what is new was run
    assert len(invented) == 9 + 27 + 9 - 2 * 3


def test_cell_key_depends_on_prompts_and_settings(tiny_sd3, world):
    campaign = module.make_campaign("tiny", str(tiny_sd3), "x", world=world)
    cell = campaign.cells_of("high", "smoke")[0]
    more_prompts = replace(campaign, world=replace(world, concepts=3)).cells_of("high", "smoke")[0]
    keys = {
        cell.key,
        more_prompts.key,
        campaign.cells_of("low", "smoke")[0].key,
        campaign.cells_of("high", "full")[1].key,
    }
    assert len(keys) == 4
    settings = cell.spec["arm"]["settings"]
    assert settings["noise_mean"] == -6.0 and settings["lr"] == 1e-3 and settings["noise_shift"] is None
    assert "crops" not in settings and "out" not in settings  # what does nothing is not stated, nor where it lies


def as_it_was(folder):
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_reproduce_into_page_of_other_base_raises(tiny_sd3, tiny_sd3_other, tmp_path, world, invented):
    go(tiny_sd3, tmp_path / "a", world)
    before = as_it_was(tmp_path / "a")
    for dry_run in (True, False):
        with pytest.raises(UserError, match=r"a is of another base \(.*sd3, .*\): give another --out, or move it"):
            go(tiny_sd3_other, tmp_path / "a", world, dry_run=dry_run)
    assert as_it_was(tmp_path / "a") == before and len(invented) == 9
    (tmp_path / "a" / "claims.json").unlink()  # by the cells alone
    with pytest.raises(UserError, match=r"none of the 9 cells of .*a is of this base in fp32, not quantised"):
        go(tiny_sd3_other, tmp_path / "a", world)
    go(tiny_sd3_other, tmp_path / "b", world)
    others = {key: cell for key, cell in read_all(tmp_path / "a" / FILE).items() if cell["arm"] == "high"}
    write_all(
        tmp_path / "b" / FILE, read_all(tmp_path / "b" / FILE) | others
    )  # others than the page's are told of only
    result, lines = go(tiny_sd3_other, tmp_path / "b", world)
    assert any(line.startswith("3 cells of another base (") for line in lines)
    assert result["run"] == 0 and result["done_before"] == 9
    entry = json.loads((tmp_path / "b" / "claims.json").read_text())[0]
    assert entry["base"]["sha256"] == result["base_sha256"] and entry["arms"]["high"]["style_accuracy"][2] == 3


def test_reproduce_into_page_of_other_precision_raises(tiny_sd3, tmp_path, world, invented):
    result, _ = go(tiny_sd3, tmp_path, world, cells="full", precision="fp32")
    assert result["verdicts"]["T1"] == "reproduced"
    before = as_it_was(tmp_path)
    with pytest.raises(UserError, match="is of this base in fp32, not bf16: give --precision fp32 or another --out"):
        go(tiny_sd3, tmp_path, world, precision="bf16")
    assert as_it_was(tmp_path) == before
    claims = tmp_path / "claims.json"
    entries = json.loads(claims.read_text())
    for entry in entries:
        assert entry["base"].pop("precision") == "fp32"
    claims.write_text(json.dumps(entries))  # as pages were before
    with pytest.raises(UserError, match="is of this base in fp32, not bf16"):
        go(tiny_sd3, tmp_path, world, precision="bf16")
    claims.unlink()
    with pytest.raises(UserError, match=r"none of the 63 cells of .* is of this base in bf16"):
        go(tiny_sd3, tmp_path, world, precision="bf16")
    go(tiny_sd3, tmp_path / "16", world, precision="bf16")
    write_all(tmp_path / FILE, read_all(tmp_path / FILE) | read_all(tmp_path / "16" / FILE))
    result, lines = go(tiny_sd3, tmp_path, world, cells="full", precision="fp32")
    assert "9 cells of another precision (bf16, not fp32) are not used" in lines
    assert result["run"] == 0 and result["verdicts"]["T1"] == "reproduced"


def test_default_out_depends_on_base():
    out = module.default_out
    assert str(out("style-friendly", "mini-sd3", "small-world")) == "docs/results/style-friendly"
    assert str(out("calibration", "mini-sd15", "small-world")) == "docs/results/calibration-mini-sd15"
    paper = out("style-friendly", "stabilityai/stable-diffusion-3.5-large", "paper")
    assert str(paper) == "docs/results/style-friendly-paper-stabilityai-stable-diffusion-3.5-large"


def test_store_calibration_of_other_base_raises(tiny_sd3, tmp_path, world, invented):
    from impasto.bases.loader import load

    def write(folder, base):
        folder.mkdir(exist_ok=True)
        file = folder / "calibration.json"
        file.write_text(json.dumps({"base_hash": base, "proposal": {"noise_mean": -2.5, "noise_std": 2.25}}))
        return file

    stored, given = write(tmp_path / "out", "0" * 64), write(tmp_path / "given", load(str(tiny_sd3)).hash)
    with pytest.raises(UserError, match=r"out/calibration\.json is of another base: give another --out"):
        go(tiny_sd3, tmp_path / "out", world, calibration=given)
    assert json.loads(stored.read_text())["base_hash"] == "0" * 64 and not invented
    stored.unlink()
    go(tiny_sd3, tmp_path / "out", world, calibration=given)
    assert stored.read_bytes() == given.read_bytes()


def test_usable_cells_exclude_quantised_base(tiny_sd3, tmp_path, world, invented):
    go(tiny_sd3, tmp_path, world)
    cells = read_all(tmp_path / FILE)
    high = sorted((cell for cell in cells.values() if cell["arm"] == "high"), key=lambda cell: cell["unit"])
    said = ["25% of the blocks computed again, the base in nf4: about 9 of 12 GB (NVIDIA L4)", "no block would take 20"]
    for cell, running in zip(high, (said, ["no block computed again, the base in main memory"], []), strict=True):
        cells[cell["key"]] = cell | {"running": running}
    write_all(tmp_path / FILE, cells)
    result, lines = go(tiny_sd3, tmp_path, world)
    assert "1 cells of a quantised base, not stated in their keys, are not used" in lines and result["run"] == 1
    sys.modules["tiny_group"].arms = lambda *_: ARMS | {"high": Arm("h", ARMS["high"].settings | {"quantize": "nf4"})}
    go(tiny_sd3, tmp_path / "asked", world)
    cells = read_all(tmp_path / "asked" / FILE)
    write_all(
        tmp_path / "asked" / FILE, {k: c | ({"running": said} if c["arm"] == "high" else {}) for k, c in cells.items()}
    )
    assert go(tiny_sd3, tmp_path / "asked", world)[0]["run"] == 0  # where the key says it, it is what was asked for


def test_train_job_does_not_quantise_base(tiny_sd3, tmp_path, world, monkeypatch):
    from impasto.files import cache_dir
    from impasto.reproduce import runner

    result = []
    monkeypatch.setattr(runner, "train", result.append)
    campaign = module.make_campaign("tiny", str(tiny_sd3), tmp_path, world=world)
    cell = campaign.cells_of("high", "smoke")[0]
    assert "quantize" not in cell.spec["arm"]["settings"]  # the key is as it was
    runner.train_job(cell.spec, campaign.place, tmp_path, tmp_path / "reference.png")
    asked = {**cell.spec, "arm": {"settings": {**cell.spec["arm"]["settings"], "quantize": "nf4"}}}
    runner.train_job(asked, campaign.place, tmp_path, tmp_path / "reference.png")
    assert [config.execution.quantize for config in result] == ["none", "nf4"]
    folder = cache_dir("reproduce", cell.spec["base"][:12], cell.name)
    recipe, old = folder / "style" / "recipe.toml", folder / "images" / "0000.png"
    monkeypatch.setattr(runner, "generate_images", lambda *_: None)
    monkeypatch.setattr(SmallWorld, "scores", lambda *_: {})
    for running, stays in (("no block computed again", True), ("no block computed again, the base in int8", False)):
        for file in (recipe, old):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"[impasto]\nrunning = ['{running}']\n")
        run_cell(cell, world, campaign.place)
        assert old.is_file() == recipe.is_file() == stays


def test_image_only_arm_has_layers_of_recipe(tiny_sd3, tiny_flux, tmp_path):
    for base, layers in ((tiny_sd3, ["image_stream"]), (tiny_flux, ["image_stream", "single_mlp"])):
        campaign = module.make_campaign("style-friendly", str(base), tmp_path)
        result = {name: spec["settings"] for name, spec in campaign.specs.items() if "settings" in spec}
        for name, of in (("image stream", "style-friendly"), ("matched, image stream", "matched")):
            assert json.loads(json.dumps(result[name])) == json.loads(json.dumps(result[of])) | {"targets": layers}


def test_prompt_arm_shares_cells_over_references(tiny_sd3, tmp_path, world, invented):
    campaign = module.make_campaign("tiny", str(tiny_sd3), tmp_path, world=world)
    every = {cell.unit: cell.key for cell in campaign.cells_of("low", "full")}
    cells = campaign.cells_of("prompt", "full")
    assert len(every) == 27 and [cell.unit for cell in cells] == [unit for unit in every if ", cat, " in unit]
    assert [c.key for c in campaign.cells_of("prompt", "smoke")] == [c.key for c in cells if c.spec["seed"] == 0]
    units = world.units("full", "heldout")
    assert all(c.spec[key] == value for c in cells for key, value in units[c.unit].items())  # the keys are as they were
    go(tiny_sd3, tmp_path, world, cells="full")
    entry = next(e for e in json.loads((tmp_path / "claims.json").read_text()) if e["id"] == "T2")
    assert entry["arms"]["prompt"]["style_accuracy"][2] == 9 and entry["n"] == {"high": [27, 27], "prompt": [9, 9]}
    (row,) = entry["readings"][0]["compares"]  # each with the other arm's of its style and seed
    assert row["pairs"] == 27 and row["effect"] == pytest.approx(0.3) and row["interval"] == pytest.approx([0.3, 0.3])
    assert campaign.shared("prompt", "full")["unifont, bread, 2"] == "unifont, cat, 2"
    of_each = replace(campaign, world=Measured(**vars(world)))
    assert len(of_each.cells_of("prompt", "full")) == 27


class Measured(SmallWorld):
    """One whose scores are measured against the reference, as the paper's are."""

    to_reference = True


def test_page_marks_incomplete_and_smoke_cells(tiny_sd3, tmp_path, world, invented, monkeypatch):
    fine = module.run_cell

    def sometimes(cell, *rest):
        if cell.arm == "prompt" and cell.spec["seed"] == 2:
            raise UserError("no")
        return fine(cell, *rest)

    monkeypatch.setattr(module, "run_cell", sometimes)
    go(tiny_sd3, tmp_path, world, cells="full")
    page, pictures = (tmp_path / "README.md").read_text(), tmp_path / "pictures"
    high, prompt = (
        next(line for line in page.splitlines() if line.startswith(f"| {n} |")) for n in ("high", "*prompt*")
    )
    assert "| 27 | .940 ± " in high
    assert prompt.startswith("| *prompt* | words | *6 of 9* | *.635 ± ")
    assert "has more style than low | style accuracy | full, 27 of 27 | +.400 [+.400, +.400] |" in page
    assert "low has more style than prompt | style accuracy | smoke, 3 of 3 | -.100 |" in page  # three have no interval
    assert "95 % intervals of their mean by Student's t" in page and "none below 6 effects" in page
    forest = (pictures / "effects-as-published.svg").read_text()
    root, n = ElementTree.fromstring(forest), "{http://www.w3.org/2000/svg}"
    marked = {
        g.get("class"): "".join(g.itertext()) for g in root.findall(f"{n}g") if g.get("class") in ("smoke", "full")
    }
    assert "T2 (smoke)" in marked["smoke"] and "T1" in marked["full"] and "smoke" not in marked["full"].split(";")[0]
    assert ".smoke .dot" in forest
    entry = json.loads((tmp_path / "claims.json").read_text())[0]
    assert entry["n"]["prompt"] == [6, 9] and entry["arms_cells"] == "full"
    assert "score, full cells" in (pictures / "T1.svg").read_text()


def test_page_curve_omits_incomplete_arms(tiny_sd3, tmp_path, world, invented, monkeypatch):
    fine = module.run_cell

    def sometimes(cell, *rest):
        if cell.arm == "low" and cell.spec["style"] == "unifont":
            raise UserError("no")
        return fine(cell, *rest)

    monkeypatch.setattr(module, "run_cell", sometimes)
    go(tiny_sd3, tmp_path, world)
    assert not (tmp_path / "pictures" / "T1.svg").exists() and "*2 of 3*" in (tmp_path / "README.md").read_text()


def switched_arms():
    """Make the group's claim one about prompt switching."""
    arms = {
        "first": Arm("a", how="omit-first", options={"at": -3.0}, where="known"),
        "only": Arm("b", how="only-first", options={"at": -3.0}, where="known"),
        "no": Arm("c", how="plain", where="known"),
    }
    claim = Claim("T1", "early", {"f": "g"}, (Reading("as published", (more("only", "first"),)),), shown=("no",))
    sys.modules["tiny_group"].arms = lambda *_: arms
    sys.modules["tiny_group"].CLAIMS = (claim,)


def test_page_omits_clip_t_of_plain_prompts(tiny_sd3, tmp_path, world, monkeypatch):
    switched_arms()
    scores = {"style_accuracy": 0.5, "concept_top5": 0.6, "clip_t": 0.214}
    monkeypatch.setattr(module, "run_cell", lambda *_: {"scores": scores, "seconds": 1.0})
    go(tiny_sd3, tmp_path, world)
    result = json.loads((tmp_path / "claims.json").read_text())[0]["arms"]
    assert {arm for arm, own in result.items() if "clip_t" in own} == {"only"}
    rows = [line.split(" | ") for line in (tmp_path / "README.md").read_text().splitlines()]
    ends = {row[0]: row[-1] for row in rows if row[0] in ("| first", "| only", "| no")}
    assert ends == {"| first": "– |", "| only": ".214 ± .000 |", "| no": "– |"}
    assert (
        "No CLIP-T of first; no: their pictures were compared with prompts without"
        in (tmp_path / "README.md").read_text()
    )
    assert all(cell["scores"]["clip_t"] == 0.214 for cell in read_all(tmp_path / FILE).values())  # kept all the same


def test_reproduce_continues_after_any_cell_error(tiny_sd3, tmp_path, world, invented, monkeypatch):
    fine = module.run_cell

    def sometimes(cell, *rest):
        if cell.arm == "high":
            raise {0: RuntimeError("CUDA out of memory. Tried"), 1: ZeroDivisionError("a\nb"), 2: KeyError("k")}[
                len(cell.spec["style"]) % 3
            ]
        return fine(cell, *rest)

    monkeypatch.setattr(module, "run_cell", sometimes)
    result, _ = go(tiny_sd3, tmp_path, world)
    assert result["run"] == 6 and len(result["failed"]) == 3
    assert all("\n" not in line for line in result["failed"])
    said = "\n".join(result["failed"])
    for words in ("out of memory: try a smaller", "ZeroDivisionError: a (test_campaign.py, line ", "KeyError: 'k' ("):
        assert words in said


def test_reproduce_interrupted_writes_page(tiny_sd3, tmp_path, world, invented, monkeypatch):
    def broken(*rest):
        raise OSError("no room for the cell's file")

    write = module.store.write
    monkeypatch.setattr(module.store, "write", lambda *rest: write(*rest) if len(invented) < 4 else broken())
    with pytest.raises(OSError, match="no room"):
        go(tiny_sd3, tmp_path, world)
    assert json.loads((tmp_path / "claims.json").read_text())[0]["progress"]["smoke"] == [3, 9]


@pytest.fixture(scope="module")
def tiny_sd3_other(tmp_path_factory):
    from tiny import sd3_folder

    return sd3_folder(tmp_path_factory.mktemp("other") / "sd3", seed=5)


def test_reproduce_with_failed_cell_is_undecided(tiny_sd3, tmp_path, world, invented, monkeypatch):
    fine = module.run_cell

    def sometimes(cell, *rest):
        if cell.arm == "high" and "unifont" in cell.unit and cell.spec["seed"] == 1:
            raise UserError("the loss is not a number any more")
        return fine(cell, *rest)

    monkeypatch.setattr(module, "run_cell", sometimes)
    result, _ = go(tiny_sd3, tmp_path, world, cells="full")
    assert len(result["failed"]) == 3 and "not a number" in result["failed"][0]
    entry = json.loads((tmp_path / "claims.json").read_text())[0]
    assert entry["verdict"] == "undecided" and entry["progress"]["full"] == [60, 63] and entry["cells"] == "smoke"
    assert [r["cells"] for r in entry["readings"]] == ["smoke", "full"]  # the other reading has all of its cells
    assert entry["readings"][1]["verdict"] == "not reproduced"
    monkeypatch.setattr(module, "run_cell", fine)
    assert go(tiny_sd3, tmp_path, world, cells="full")[0]["verdicts"]["T1"] == "reproduced"


def test_make_campaign_leaves_out_impossible_law(tiny_sd3, tmp_path):
    file = tmp_path / "calibration.json"
    result = {"base_hash": load(str(tiny_sd3)).hash, "proposal": {"noise_mean": -200.0, "noise_std": 1.0}}
    file.write_text(json.dumps(result))
    campaign = module.make_campaign("style-friendly", str(tiny_sd3), "x", file)
    assert "lie below log-SNR -13.81" in campaign.left_out["calibrated"]


def test_page_includes_cells_of_other_processes(tiny_sd3, tmp_path, world, invented, monkeypatch):
    fine = module.run_cell

    def slow(cell, *rest):
        monkeypatch.setattr(module, "run_cell", fine)
        go(tiny_sd3, tmp_path, world, cells="full")  # another command, begun and ended during this one's first cell
        return fine(cell, *rest)

    monkeypatch.setattr(module, "run_cell", slow)
    go(tiny_sd3, tmp_path, world, cells="smoke")
    entry = json.loads((tmp_path / "claims.json").read_text())[0]
    assert entry["progress"]["full"] == [63, 63] and entry["verdict"] == "reproduced"


def test_run_cell_concurrently_generates_once(tiny_sd3, tmp_path, monkeypatch):
    """The second waits; pictures that are not all there are drawn anew."""
    world = SmallWorld(judges=FakeJudges(), encoder=FakeEncoder(), concepts=5)  # no other test has its pictures
    campaign = module.make_campaign("style-friendly", str(tiny_sd3), tmp_path, world=world)
    cell = campaign.cells_of("prompt", "smoke")[0]
    drawn, started = [], threading.Event()

    def generate(base, prompts, **rest):
        for i, prompt in enumerate(prompts):
            drawn.append(i)
            started.set()
            time.sleep(0.05)
            yield Image.new("RGB", (8, 8)), {"prompt": prompt}

    monkeypatch.setattr(runner, "generate", generate)
    monkeypatch.setattr(runner, "save_png", lambda image, info, path: image.save(path))
    seen = []
    monkeypatch.setattr(
        type(world), "scores", lambda self, folder, *rest: seen.append(len(list(folder.iterdir()))) or {}
    )
    threads = [threading.Thread(target=runner.run_cell, args=(cell, world, campaign.place)) for _ in range(2)]
    threads[0].start()
    started.wait()
    threads[1].start()
    for thread in threads:
        thread.join()
    assert len(drawn) == len(cell.spec["prompts"]) and seen == [len(drawn)] * 2
    folder = next(
        path for path in paths.cache_dir("reproduce", cell.spec["base"][:12]).glob("prompt*") if path.is_dir()
    )
    (folder / "images" / "0000.png").unlink()
    runner.run_cell(cell, world, campaign.place)
    assert len(drawn) == 2 * len(cell.spec["prompts"]) and seen[-1] == len(cell.spec["prompts"])


def test_run_cell_with_other_reference_or_judge_raises(tiny_sd3, tmp_path, world):
    campaign = module.make_campaign("style-friendly", str(tiny_sd3), tmp_path, world=world)
    cell = campaign.cells_of("sd3", "smoke")[0]
    for changes, said in (
        ({"reference_sha256": "0"}, "reference differs here"),
        ({"instruments": {"style": "other"}}, "instruments differs here"),
    ):
        with pytest.raises(UserError, match=said):
            runner.run_cell(replace(cell, spec=cell.spec | changes), world, campaign.place)


def test_reproduce_keyboard_interrupt_keeps_finished_cells(tiny_sd3, tmp_path, world, invented, monkeypatch):
    fine, count = module.run_cell, []

    def stopped(cell, *rest):
        count.append(cell)
        if len(count) == 4:
            raise KeyboardInterrupt
        return fine(cell, *rest)

    monkeypatch.setattr(module, "run_cell", stopped)
    with pytest.raises(KeyboardInterrupt, match="3 of 9 cells are done: the same command resumes"):
        go(tiny_sd3, tmp_path, world)
    assert len(read_all(tmp_path / FILE)) == 3
    assert json.loads((tmp_path / "claims.json").read_text())[0]["progress"]["smoke"] == [3, 9]
    assert go(tiny_sd3, tmp_path, world)[0]["done_before"] == 3


def test_reproduce_dry_run_writes_nothing(tiny_sd3, tmp_path, world, invented):
    result, _ = go(tiny_sd3, tmp_path / "new", world, cells="full", dry_run=True)
    assert result["to_run"] == result["wanted"] == 63 and result["arms"] == {"high": 27, "low": 27, "prompt": 9}
    assert result["minutes"] is None and not (tmp_path / "new").exists()  # nothing was timed on this base
    go(tiny_sd3, tmp_path, world)
    assert go(tiny_sd3, tmp_path, world, cells="full", dry_run=True)[0]["minutes"] == pytest.approx(54 * 6 / 60)


def test_reproduce_with_bad_input_raises(tiny_sd3, tmp_path, world, invented):
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


def test_read_all_of_invalid_cell_raises_with_line(tiny_sd3, tmp_path, world, invented):
    go(tiny_sd3, tmp_path, world)
    path = tmp_path / FILE
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    n, good = next((n, one) for n, one in enumerate(lines) if '"arm": "high", "unit": "unifont' in one)
    for broken, message in (
        (good[:200], "cannot be read"),
        ("[]", "is not complete"),
        (good.replace('"scores"', '"score"'), "not complete \\(no scores\\)"),
        (good.replace('"seed": 0', '"seed": 1'), "was edited"),
        (good.replace(": 0.6", ': "high"'), "not finite"),
        (good.replace(": 0.6", ": NaN"), "not finite"),
        (json.dumps(json.loads(good) | {"scores": {}}), "has no scores"),
        (json.dumps(json.loads(good) | {"running": None}), 'has an invalid entry "running"'),
    ):
        assert broken != good
        path.write_bytes(gzip.compress("\n".join([*lines[:n], broken, *lines[n + 1 :]]).encode()))
        with pytest.raises(UserError, match=f"{path.name}, line {n + 1}: .*{message}"):
            go(tiny_sd3, tmp_path, world)
    path.write_bytes(gzip.compress("\n".join(lines).encode())[:-20])
    with pytest.raises(UserError, match=f"{path.name} cannot be read"):
        go(tiny_sd3, tmp_path, world)


def test_write_concurrently_keeps_all_cells(tiny_sd3, tmp_path, world, invented):
    go(tiny_sd3, tmp_path / "a", world)
    cells = read_all(tmp_path / "a" / FILE)
    stored = list(cells.values())
    for cell in reversed(stored):
        write(tmp_path / "b" / FILE, Cell(cell["arm"], cell["unit"], cell["spec"]), {"scores": cell["scores"]} | cell)
    assert read_all(tmp_path / "b" / FILE) == cells
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()


def test_claims_are_consistent(tiny_sd3):
    arms, claims = style_friendly.ARMS, style_friendly.CLAIMS
    assert len({c.id for c in claims}) == len(claims)
    for claim in claims:
        assert set(claim.arms) <= set(arms), claim.id
        assert claim.readings[0].name == "as published" and claim.paper
        for reading in claim.readings:
            for compare in reading.compares:
                assert sum(compare.weights.values()) == pytest.approx(0)
    campaign = module.make_campaign("style-friendly", str(tiny_sd3), "x")
    specs = [
        (arms[name].where, json.dumps(spec, sort_keys=True))
        for name, spec in campaign.specs.items()
        if "first_steps" not in spec  # which levels fall between the same steps is the base's
    ]
    assert len(specs) == len(set(specs))  # what is the same is one arm, computed once
    used = {arm for claim in claims for arm in claim.arms}
    assert set(arms) == used and set(campaign.left_out) <= {*("calibrated", "style-aligned", "style-aligned, plain")}


@pytest.mark.filterwarnings("ignore:the prompt is too long")  # for the tiny base's tokenizer of letters
def test_reproduce_tiny_campaign(tiny_sd3, tmp_path, monkeypatch):
    world = SmallWorld(judges=FakeJudges(), encoder=FakeEncoder(), styles=1, concepts=2)
    monkeypatch.setattr(module, "run_cell", run_cell)
    result, _ = go(tiny_sd3, tmp_path, world, claim=["T2"])
    assert result["run"] == 2 and not result["failed"]
    cells = list(read_all(tmp_path / FILE).values())
    assert {c["arm"] for c in cells} == {"high", "prompt"}
    for cell in cells:
        assert 0 <= cell["scores"]["style_accuracy"] <= 1 and cell["scores"]["leakage"] is not None
        assert cell["spec"]["caption"] == "cat, soft 3D render with smooth purple-pink shading"
        assert cell["versions"]["torch"] and cell["device"] == "cpu" and cell["seconds"] > 0
        assert Cell(cell["arm"], cell["unit"], cell["spec"]).key == cell["key"]
    from impasto.files import cache_dir

    folder = next(cache_dir("reproduce").rglob("high--*"))
    assert (folder / "style" / "pytorch_lora_weights.safetensors").is_file() and not (
        folder / "style" / "state"
    ).exists()
    assert len(list((folder / "images").glob("*.png"))) == 2
    entry = next(e for e in json.loads((tmp_path / "claims.json").read_text()) if e["id"] == "T2")
    assert entry["verdict"] == "undecided" and entry["arms"]["high"]["style_accuracy"][2] == 1


@pytest.mark.filterwarnings("ignore:the prompt is too long")  # for the tiny base's tokenizer of letters
def test_prompt_switch_arms_generate_expected_images(tiny_sd3, tmp_path):
    """Both orders, on styles that the base knows, with the log-SNR of every step in the picture."""
    from PIL import Image

    from impasto.files import cache_dir

    switched_arms()
    world = SmallWorld(judges=FakeJudges(), encoder=FakeEncoder(), known=1, concepts=2)
    result, _ = go(tiny_sd3, tmp_path, world)
    assert result["run"] == 3 and not result["failed"]
    pictures = {}
    for folder in cache_dir("reproduce").rglob("*--twemoji-0--*"):
        pictures[folder.name.split("--")[0]] = [Image.open(f).info["impasto"] for f in sorted(folder.rglob("*.png"))]
    result = {arm: [json.loads(text) for text in texts] for arm, texts in pictures.items()}
    words = ", clean flat vector emoji with plain solid colours"
    for first, only, no in zip(result["first"], result["only"], result["no"], strict=True):
        assert first["switch_to"] == first["prompt"] + words == only["prompt"] and only["switch_to"] == no["prompt"]
        assert first["prompt_of_step"] == only["prompt_of_step"] and "switch_to" not in no
        assert first["seed"] == only["seed"] == no["seed"]


def test_resolve_switch_between_same_steps_is_one_cell(tiny_sd3):
    from impasto.bases.loader import load
    from impasto.guidance.prompt_switch import grid

    family = load(str(tiny_sd3))
    own = sampling_of(family)
    second, third = grid(family, own["steps"], own["size"])[1:3]
    levels = [second + share * (third - second) for share in (0.2, 0.9, 1.2)]
    result = [resolve_switch({"how": "omit-first", "at": at}, family) for at in levels]
    assert result[0] == result[1] and result[0][0] == {"how": "omit-first", "first_steps": 2}
    assert result[0][1] == f" (the first 2 of {own['steps']} steps)" and result[2][0]["first_steps"] == 3
    with pytest.raises(UserError, match="outside of the sampling"):
        resolve_switch({"how": "omit-first", "at": 99.0}, family)
    assert resolve_switch({"how": "plain"}, family) == ({"how": "plain"}, "")


def test_calibrated_arm_needs_calibration_of_base(tiny_sd3, tmp_path):
    file = tmp_path / "calibration.json"
    own = {"base_hash": load(str(tiny_sd3)).hash, "proposal": {"noise_mean": -2.5, "noise_std": 2.25}}
    file.write_text(json.dumps(own))
    campaign = module.make_campaign("style-friendly", str(tiny_sd3), "x", file)
    settings = campaign.specs["calibrated"]["settings"]
    assert (settings["noise_mean"], settings["noise_std"]) == (-2.5, 2.25) and "calibrated" not in campaign.left_out
    for content, said in (
        (json.dumps(own | {"base_hash": "0" * 64}), "of another base \\(000000000000, not"),
        (json.dumps({"base_hash": own["base_hash"]}), "is not a calibration.json .*'proposal'"),
        ("[", "is not a calibration.json"),
    ):
        file.write_text(content)
        with pytest.raises(UserError, match=said):
            module.make_campaign("style-friendly", str(tiny_sd3), "x", file)
    lines = []
    file.write_text(json.dumps(own | {"base_hash": "0" * 64}))  # kept by an earlier call, on another base
    campaign = module.make_campaign("style-friendly", str(tiny_sd3), tmp_path, log=lines.append)
    assert "calibrated" in campaign.left_out and "of another base and is not used" in lines[0]
    file.write_text(json.dumps(own))
    assert "calibrated" in module.make_campaign("style-friendly", str(tiny_sd3), tmp_path).specs


@pytest.mark.filterwarnings("ignore:the prompt is too long")
def test_style_aligned_arm_generates_images(tiny_sd3, tmp_path):
    arms = {"aligned": style_friendly.ARMS["style-aligned"], "prompt": ARMS["prompt"]}
    claim = Claim("T1", "aligned", {"f": "g"}, (Reading("as published", (more("aligned", "prompt"),)),))
    sys.modules["tiny_group"].arms = lambda *_: arms
    sys.modules["tiny_group"].CLAIMS = (claim,)
    world = SmallWorld(judges=FakeJudges(), encoder=FakeEncoder(), styles=1, concepts=2)
    result, _ = go(tiny_sd3, tmp_path, world)
    assert result["run"] == 2 and not result["failed"]
    from impasto.files import cache_dir

    made = {f.name.split("--")[0]: f for f in cache_dir("reproduce").rglob("*--fluent-emoji-3d-cat-0--*")}
    images = [(made[arm] / "images" / "0000.png").read_bytes() for arm in arms]
    assert images[0] != images[1]


def test_known_units_cover_all_train_styles():
    meta, world = load_meta(), SmallWorld()
    full, smoke = world.units("full", "known"), world.units("smoke", "known")
    known = {meta["style_names"][style] for style in meta["split"]["train_styles"]}
    assert {unit["style"] for unit in full.values()} == known and len(full) == 36
    assert len({unit["style"] for unit in smoke.values()}) == 3
    (decided,) = (claim for claim in style_friendly.CLAIMS if claim.id == "S8")
    tests = len(decided.readings) * len(decided.readings[0].compares)
    worst = [-1.0] * len(known)  # every style against the claim
    assert sign_flip([-d for d in worst]) * tests < ALPHA < sign_flip([-d for d in worst[:6]]) * tests


def test_reproduce_command(tiny_sd3, tmp_path, monkeypatch, capsys):
    from impasto.cli import main as cli

    def call(*flags):
        monkeypatch.setattr(
            sys, "argv", ["impasto", "reproduce", *flags, "--base", str(tiny_sd3), "--dry-run", "--json"]
        )
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code, json.loads(out.splitlines()[-1]), err

    code, result, err = call("--claim", "S1", "--claim", "S8", "--cells", "full", "--out", str(tmp_path / "x"))
    assert code == 0 and result["claims"] == ["S1", "S8"] and result["to_run"] == result["wanted"]
    assert result["arms"]["style-friendly"] == 27 and result["arms"]["only below -2.38"] == 36
    assert "left out: calibrated: no calibration was given" in err
    code, result, _ = call("--claim", "S99")
    assert code == 2 and result["error"].startswith("unknown claim 'S99': did you mean 'S9'")
