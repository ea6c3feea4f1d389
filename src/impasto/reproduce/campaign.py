"""`impasto reproduce`: which cells the claims need; those that are missing are run; verdicts and page come from all.

    claims -> arms -> cells (arm x style x reference x seed) -> here or over Ray -> cells.jsonl.gz -> claims.json, page

The same command goes on where it was stopped: a cell that has its file is not run again, whichever claim asked for it.
A campaign is of one base in one precision, by the hash of its weights; cells of another are told of and left alone, and
a folder whose page is another one's is refused.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from impasto.errors import UserError, nearest
from impasto.families.base import Family
from impasto.files import atomic, writable_folder
from impasto.reproduce import cells as store
from impasto.reproduce.cells import Cell
from impasto.reproduce.claims import Arm, Claim, Unit, restricted
from impasto.reproduce.fan import fan
from impasto.reproduce.page import write_page
from impasto.reproduce.paper import CLIP, DINO, PaperWorld
from impasto.reproduce.runner import Place, World, on_grid, run_cell, whole_spec
from impasto.reproduce.small_world import SmallWorld
from impasto.reproduce.style_friendly import proposal

GROUPS = {"style-friendly": "impasto.reproduce.style_friendly", "calibration": "impasto.reproduce.calibration"}
"""Groups of claims, one file each: CLAIMS, arms(base_hash, calibration, world), and, where arms follow from cells that
are there, following(campaign) -> {name: arm}."""
CALIBRATION = "calibration.json"
"""The calibration that a campaign was last given, kept beside its cells: later calls need not name it again."""
PROTOCOLS = ("small-world", "paper")
DEFAULT_BASE = "mini-sd3"
ROUGH = {"mini-sd3": {"train": (45.0, 0.8), "other": (5.0, 0.8)}}
"""Seconds of a cell before its pictures, and per picture, on one free core: one trained smoke cell took 57 CPU seconds,
loading the libraries included; the other kind is by the demo's time. Used until cells were timed here."""
Progress = Callable[[int, int, str], None]
"""Called with (cells done, cells in all, what is known of the last one)."""


@dataclass(frozen=True)
class Campaign:
    """A group of claims on one base: its arms, those that are left out and why, where its cells lie, and those that
    are there, {key: content}."""

    group: str
    claims: tuple[Claim, ...]
    arms: Mapping[str, Arm]
    left_out: Mapping[str, str]
    specs: Mapping[str, Mapping[str, Any]]  # of the arms that are not
    world: World
    place: Place
    family: Family
    out: Path
    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def with_arms(self, arms: Mapping[str, Arm]) -> "Campaign":
        """With these arms as well, or instead of those of the same name."""
        left_out, specs, own = dict(self.left_out), dict(self.specs), dict(self.arms)
        for name, arm in arms.items():
            for told in (left_out, specs):
                told.pop(name, None)
            own[name] = arm
            try:
                settings = store.settings_of(arm, self.family, self.place.base)
                specs[name], more = on_grid(settings, self.family)
                own[name] = replace(arm, what=arm.what + more)
            except UserError as error:
                left_out[name] = str(error)
        return replace(self, arms=own, left_out=left_out, specs=specs)

    def cells(self, claims: Sequence[Claim], size: str) -> list[Cell]:
        """The cells that these claims need, arm by arm, each once: also where two arms come to the same settings."""
        needed = dict.fromkeys(arm for claim in claims for arm in claim.arms if arm in self.specs)
        found: dict[str, Cell] = {}
        for cell in (cell for arm in needed for cell in self.cells_of(arm, size)):
            found.setdefault(cell.key, cell)
        return list(found.values())

    def cells_of(self, arm: str, size: str) -> list[Cell]:
        """The cells of an arm."""
        units = self.world.units(size, self.arms[arm].where)
        own = dict.fromkeys(self.shared(arm, size).values())
        return [Cell(arm, u, whole_spec(self.world, self.family, self.specs[arm], units[u])) for u in own]

    def shared(self, arm: str, size: str) -> dict[Unit, Unit]:
        """{pair: the pair whose cell it has}: its own. The base alone sees no reference, so that its pictures for all
        references of a style and seed are the same: there it is the first of them, unless they are measured against the
        reference."""
        of, first = self.arms[arm], dict[tuple[str, int], Unit]()
        blind = of.how == "prompt" and of.where == "heldout" and not self.world.to_reference
        return {
            unit: first.setdefault((spec["style"], spec["seed"]), unit) if blind else unit
            for unit, spec in self.world.units(size, of.where).items()
        }

    def anew(self) -> "Campaign":
        """With all cells that are there now, also those of another command, and the arms that follow from them."""
        known = usable(store.read_all(self.out / store.FILE), self.family, lambda line: None)
        return replace(self, known=known).followed()

    def followed(self) -> "Campaign":
        """With the arms that follow from the cells that are known."""
        module = import_module(GROUPS[self.group])
        return self.with_arms(module.following(self)) if hasattr(module, "following") else self


def reproduce(
    group: str = "style-friendly",
    cells: str = "smoke",
    claim: Sequence[str] = (),
    base: str = DEFAULT_BASE,
    out: Path | str | None = None,
    workers: int = 1,
    cluster: str | None = None,
    calibration: Path | None = None,
    protocol: str = "small-world",
    references: Path | None = None,
    clip: str | None = None,
    dino: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    dry_run: bool = False,
    world: World | None = None,
    progress: Progress | None = None,
    told: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run the cells of the claims that have no file yet, write claims.json and the page; returns a summary.

    Cells of arms that follow from those just run are run as well.
    claim: ids, all when empty. cells: "smoke" or "full". out: see `default_out`. workers: processes here, cluster: the
    address of a Ray cluster. protocol: "small-world", or "paper" with its references, clip and dino (see
    paper.py); world: one that is made already. told: called with lines for a person. Raises UserError on bad input.
    """
    world = world or world_of(protocol, references, clip, dino)
    campaign = prepare(group, base, out, calibration, device, precision, world, told)
    chosen = choose(campaign.claims, claim)
    if workers < 1:
        raise UserError(f"workers must be at least 1, not {workers}")
    if cells not in campaign.world.sizes:
        raise UserError(f"unknown cells {cells!r}: {nearest(cells, list(campaign.world.sizes))}")
    known = campaign.known
    wanted = campaign.cells(chosen, cells)
    missing = [cell for cell in wanted if cell.key not in known]
    for arm in dict.fromkeys(arm for one in chosen for arm in one.arms if arm in campaign.left_out):
        told(f"left out: {arm}: {campaign.left_out[arm]}")
    about: dict[str, Any] = {"group": group, "cells": cells, "claims": [one.id for one in chosen], "base": base}
    about |= {"base_sha256": campaign.family.hash, "out": str(campaign.out)}
    about |= {"wanted": len(wanted), "done_before": len(wanted) - len(missing)}
    about |= {"minutes": estimate(missing, known, base, max(1, workers))}
    if dry_run:
        arms = {arm: sum(cell.arm == arm for cell in missing) for arm in dict.fromkeys(cell.arm for cell in wanted)}
        return about | {"to_run": len(missing), "arms": arms}
    writable_folder(campaign.out)
    if calibration is not None:
        keep(Path(calibration), campaign.out / CALIBRATION, campaign.family.hash)
    failed, tried = [], set[str]()
    try:
        while missing:
            failed += run(campaign, missing, workers, cluster, progress)
            tried |= {cell.key for cell in missing}
            campaign = campaign.followed()
            missing = [c for c in campaign.cells(chosen, cells) if c.key not in campaign.known.keys() | tried]
    finally:  # whatever stopped it: the page tells of all cells that are there
        result = write_page(campaign.anew())
    verdicts = {one["id"]: one["verdict"] for one in result if one["id"] in about["claims"]}
    about["wanted"] = len(campaign.cells(chosen, cells))
    return about | {"run": len(tried) - len(failed), "failed": failed, "verdicts": verdicts}


def prepare(
    group: str,
    base: str,
    out: Path | str | None,
    calibration: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    world: World | None = None,
    told: Callable[[str], None] = print,
) -> Campaign:
    """The campaign of a group on a base. Raises UserError on an unknown group or base, a broken cell, or a folder of
    another base or precision."""
    if group not in GROUPS:
        raise UserError(f"unknown group of claims {group!r}: {nearest(group, list(GROUPS))}")
    module = import_module(GROUPS[group])
    place = Place(base, device, precision)
    family = place.family()
    world = world or SmallWorld()
    out = Path(out) if out is not None else default_out(group, base, world.name)
    there = store.read_all(out / store.FILE)
    known = usable(there, family, told)
    check_page(out, family, there, known)
    arms: dict[str, Arm] = module.arms(family.hash, calibration or kept(out, family.hash, told), world.name)
    claims = tuple(claim for one in module.CLAIMS if (claim := restricted(one, arms, ours=world.name != "paper")))
    return Campaign(group, claims, {}, {}, {}, world, place, family, out, known).with_arms(arms).followed()


def default_out(group: str, base: str, world: str) -> Path:
    """docs/results/<group> for the default base, docs/results/<group>-<base> for others, slashes as minus."""
    name = group + ("-paper" if world == "paper" else "")
    return Path("docs/results") / (name if base == DEFAULT_BASE else f"{name}-{store.slug(base).strip('.')}")


def check_page(out: Path, family: Family, there: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise UserError where a page of this base would take the place of another base's or precision's.

    there, known: the cells in the folder, and those of them that are of use here.
    """
    name, base, precision = page_of(out)
    fp = family.precision
    if base not in (None, family.hash):
        raise UserError(
            f"{out} is of another base ({name}, {base[:12]}, not {family.hash[:12]}): give another --out, or move it"
        )
    own = [cell for cell in there.values() if cell["spec"].get("base") == family.hash]
    if base is not None and precision is None and own:  # a page that does not say it yet: that of most cells
        precision = Counter(map(precision_of, own)).most_common(1)[0][0]
    if precision not in (None, fp):
        raise UserError(
            f"{out} is of this base in {precision}, not {fp}: give --precision {precision} or another --out"
        )
    if there and not known:
        raise UserError(
            f"none of the {len(there)} cells of {out} is of this base in {fp}, not quantised: give another --out"
        )


def page_of(out: Path) -> tuple[str | None, str | None, str | None]:
    """(name of the base, hash, precision) that the claims.json of a folder is of; None for what it does not say."""
    try:
        base = json.loads((out / "claims.json").read_text(encoding="utf-8"))[0]["base"]
        name, sha, precision = (base.get(key) for key in ("name", "sha256", "precision"))
        return name, sha, precision
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None, None, None


def precision_of(cell: Mapping[str, Any]) -> str:
    """Of the base, as a cell says."""
    return str(cell["spec"].get("sampling", {}).get("precision"))


def keep(calibration: Path, file: Path, base_hash: str) -> None:
    """Copy the calibration beside the cells. Raises UserError where another base's is there."""
    if file.is_file() and proposal(file)[0] != base_hash:
        raise UserError(f"{file} is of another base: give another --out, or move it")
    content = calibration.read_bytes()
    with atomic(file) as temporary:
        temporary.write_bytes(content)


def kept(out: Path, base_hash: str, told: Callable[[str], None]) -> Path | None:
    """The calibration that an earlier call was given, None where there is none of this base."""
    file = out / CALIBRATION
    if not file.is_file():
        return None
    if proposal(file)[0] != base_hash:
        told(f"{file} is of another base and is not used: give --calibration")
        return None
    return file


def world_of(protocol: str, folder: Path | None, clip: str | None, dino: str | None) -> World:
    """The world of a protocol. Raises UserError on an unknown one, and on flags that it has no use for."""
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}: {nearest(protocol, list(PROTOCOLS))}")
    if protocol == "paper":
        if folder is None:
            raise UserError("--protocol paper needs --references DIR, the folder of StyleDrop's 18 pictures")
        return PaperWorld(folder, clip or CLIP, dino or DINO)
    if folder or clip or dino:
        raise UserError("--references, --clip and --dino go with --protocol paper")
    return SmallWorld()


def choose(claims: Sequence[Claim], ids: Sequence[str]) -> list[Claim]:
    """The claims of these ids, all when none is given. Raises UserError on an unknown one, the nearest named."""
    known = {claim.id: claim for claim in claims}
    for one in ids:
        if one not in known:
            raise UserError(f"unknown claim {one!r}: {nearest(one, list(known))}")
    return [claim for claim in claims if claim.id in ids or not ids]


def usable(
    there: Mapping[str, dict[str, Any]], family: Family, told: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """The cells of this base in this precision, as their key says it; a line about the others."""
    own: dict[str, dict[str, Any]] = {}
    others = Counter[str]()
    for key, cell in there.items():
        base, precision = str(cell["spec"].get("base")), precision_of(cell)
        if base != family.hash:
            others[f"of another base ({base[:12]}, not {family.hash[:12]})"] += 1
        elif precision != family.precision:
            others[f"of another precision ({precision}, not {family.precision})"] += 1
        elif store.quantised(cell.get("running", ()), cell["spec"]):
            others["of a quantised base, which their keys do not say,"] += 1
        else:
            own[key] = cell
    for which, count in sorted(others.items()):
        told(f"{count} cells {which} are not used")
    return own


def estimate(missing: Sequence[Cell], known: Mapping[str, Mapping[str, Any]], base: str, workers: int) -> float | None:
    """Minutes that the missing cells take: by the mean of timed cells of the same kind with as many prompts, else by
    what was measured on mini-sd3; None when there is neither."""
    total, seconds = 0.0, defaultdict[tuple[str, int], list[float]](list)
    for content in known.values():
        if "seconds" in content:
            seconds[load_of(content["spec"])].append(content["seconds"])
    for cell in missing:
        kind, prompts = load_of(cell.spec)
        timed = seconds.get((kind, prompts))
        if not timed and base not in ROUGH:
            return None
        total += sum(timed) / len(timed) if timed else ROUGH[base][kind][0] + prompts * ROUGH[base][kind][1]
    return round(total / 60 / workers, 1)


def load_of(spec: Mapping[str, Any]) -> tuple[str, int]:
    """What the time of a cell depends on most: ("train" or "other", pictures)."""
    return "train" if spec["arm"]["how"] == "train" else "other", store.pictures(spec)


def run(
    campaign: Campaign,
    missing: Sequence[Cell],
    workers: int,
    cluster: str | None,
    progress: Progress | None,
) -> list[str]:
    """Run the missing cells, each written as soon as it is done and known from then on; returns those that failed."""
    failed: list[str] = []
    results = fan(run_cell, missing, (campaign.world, campaign.place), workers, cluster)
    done = 0
    try:
        for done, (cell, result) in enumerate(results, 1):
            if isinstance(result, str):
                failed.append(f"{cell.name}: {result}")
            else:
                campaign.known[cell.key] = store.write(campaign.out / store.FILE, cell, result)
            if progress:
                note = "failed" if isinstance(result, str) else f"{result['seconds']:.0f} s"
                progress(done, len(missing), f"{cell.arm}, {cell.unit}: {note}")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{done} of {len(missing)} cells are done: the same command goes on") from None
    return failed
