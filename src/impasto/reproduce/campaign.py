"""`impasto reproduce`: run the missing cells of claims; write verdicts and page from all cells.

    claims -> arms -> cells (arm x style x reference x seed) -> locally or over Ray -> cells.jsonl.gz -> claims.json,
    page

The same command resumes: existing cells are not run again, whichever claim needed them. A campaign belongs to one base
(by its weights' hash) in one precision; other cells are reported and ignored, and a folder with another campaign's page
is refused.
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
from impasto.parallel import fan
from impasto.progress import Progress, ignore
from impasto.reproduce import cells as store
from impasto.reproduce.cells import Cell
from impasto.reproduce.claims import Arm, Claim, Unit, restricted
from impasto.reproduce.clip_world import CLIP
from impasto.reproduce.page import write_page
from impasto.reproduce.paper import DINO, PaperWorld
from impasto.reproduce.runner import SCALED, BaseSpec, World, build_spec, resolve_switch, run_cell, run_curve
from impasto.reproduce.small_world import SmallWorld
from impasto.reproduce.style_friendly import proposal

GROUPS = {
    "style-friendly": "impasto.reproduce.style_friendly",
    "calibration": "impasto.reproduce.calibration",
    "styleinject": "impasto.reproduce.styleinject",
    "instastyle": "impasto.reproduce.instastyle",
    "finestyle": "impasto.reproduce.finestyle",
}
"""Groups of claims, one module each: CLAIMS, or claims(world), and arms(base_hash, calibration, world); optionally

following(campaign) -> {name: arm}             arms that depend on existing cells
drawings(campaign, claim, size) -> {file: SVG or PNG}  further ones for the page
on_family(claims, arms, family) -> (claims, arms)  others for some kinds of bases
others(out, claims, arms) -> (claims, arms)    with methods whose images lie in the campaign's folder
BASE                                           the default base
WORLDS                                         {protocol: (references, clip, dino) -> World}
"""
CALIBRATION = "calibration.json"
"""The calibration last given, stored beside the cells for later calls."""
PROTOCOLS = ("small-world", "paper")
DEFAULT_BASE = "mini-sd3"
DEFAULT_SECONDS = {name: {"train": (45.0, 0.8), "other": (5.0, 0.8)} for name in ("mini-sd3", "mini-sd15", "mini-muse")}
"""(seconds per cell, seconds per image) on one free core, used until cells are timed: a trained smoke cell took 57 CPU
seconds including imports; the other kind is estimated from the demo."""
"""Called with (cells done, cells in all, note on the last one)."""


@dataclass(frozen=True)
class Campaign:
    """A group of claims on one base. left_out: {arm: reason}. known: existing cells, {key: content}."""

    group: str
    claims: tuple[Claim, ...]
    arms: Mapping[str, Arm]
    left_out: Mapping[str, str]
    specs: Mapping[str, Mapping[str, Any]]  # of the arms that are not left out
    world: World
    place: BaseSpec
    family: Family
    out: Path
    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """Name of the module of its claims."""
        return GROUPS[self.group]

    def with_arms(self, arms: Mapping[str, Arm]) -> "Campaign":
        """A copy with these arms added or replaced."""
        left_out, specs, own = dict(self.left_out), dict(self.specs), dict(self.arms)
        for name, arm in arms.items():
            for table in (left_out, specs):
                table.pop(name, None)
            own[name] = arm
            try:
                settings = store.settings_of(arm, self.family, self.place.base)
                specs[name], more = resolve_switch(settings, self.family)
                own[name] = replace(arm, what=arm.what + more)
            except UserError as error:
                left_out[name] = str(error)
        return replace(self, arms=own, left_out=left_out, specs=specs)

    def cells(self, claims: Sequence[Claim], size: str) -> list[Cell]:
        """The cells of these claims, without duplicates (arms may have equal settings)."""
        needed = dict.fromkeys(arm for claim in claims for arm in claim.arms if arm in self.specs)
        found: dict[str, Cell] = {}
        for cell in (cell for arm in needed for cell in self.cells_of(arm, size)):
            found.setdefault(cell.key, cell)
        return list(found.values())

    def cells_of(self, arm: str, size: str) -> list[Cell]:
        """The cells of an arm."""
        units = self.world.units(size, self.arms[arm].where)
        own = dict.fromkeys(self.shared(arm, size).values())
        return [Cell(arm, u, build_spec(self.world, self.family, self.specs[arm], units[u])) for u in own]

    def shared(self, arm: str, size: str) -> dict[Unit, Unit]:
        """{unit: the unit whose cell it uses}. Arms of the base alone do not depend on the reference, so all references
        of a style and seed share the first one's cell, unless scores are measured against the reference."""
        of, first = self.arms[arm], dict[tuple[str, int], Unit]()
        blind = of.how == "prompt" and not self.world.to_reference
        return {
            unit: first.setdefault((spec["style"], spec["seed"]), unit) if blind else unit
            for unit, spec in self.world.units(size, of.where).items()
        }

    def reload(self) -> "Campaign":
        """A copy with all cells on disk, also those of other processes, and the arms that depend on them."""
        known = usable_cells(store.read_all(self.out / store.FILE), self.family, lambda line: None)
        return replace(self, known=known).with_following()

    def with_following(self) -> "Campaign":
        """A copy with the arms that depend on known cells."""
        module = import_module(GROUPS[self.group])
        return self.with_arms(module.following(self)) if hasattr(module, "following") else self


def reproduce(
    group: str = "style-friendly",
    cells: str = "smoke",
    claim: Sequence[str] = (),
    base: str | None = None,
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
    curves: bool = False,
    dry_run: bool = False,
    world: World | None = None,
    progress: Progress = ignore,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run the missing cells of the claims, write claims.json and the page; returns a summary.

    Cells of arms that depend on the new cells are run too.
    claim: ids, all when empty. cells: "smoke" or "full". out: see `default_out`. workers: local processes; cluster: the
    address of a Ray cluster. protocol: "small-world", or "paper" with its references, clip and dino (see paper.py);
    world: used instead of `protocol`. curves: also sample the cells of readings at equal text at the other strengths of
    their curves, see `runner.run_curve`. log: called with messages. Raises UserError on bad input.
    """
    base = base or default_base(group)
    world = world or make_world(protocol, references, clip, dino, group)
    campaign = make_campaign(group, base, out, calibration, device, precision, world, log)
    chosen = choose_claims(campaign.claims, claim)
    if workers < 1:
        raise UserError(f"workers must be at least 1, not {workers}")
    if cells not in campaign.world.sizes:
        raise UserError(f"unknown cells {cells!r}: {nearest(cells, list(campaign.world.sizes))}")
    known = campaign.known
    wanted = campaign.cells(chosen, cells)
    missing = [cell for cell in wanted if cell.key not in known]
    for arm in dict.fromkeys(arm for one in chosen for arm in one.arms if arm in campaign.left_out):
        log(f"left out: {arm}: {campaign.left_out[arm]}")
    about: dict[str, Any] = {"group": group, "cells": cells, "claims": [one.id for one in chosen], "base": base}
    about |= {"base_sha256": campaign.family.hash, "out": str(campaign.out)}
    about |= {"wanted": len(wanted), "done_before": len(wanted) - len(missing)}
    about |= {"minutes": estimate_minutes(missing, known, base, max(1, workers))}
    if dry_run:
        arms = {arm: sum(cell.arm == arm for cell in missing) for arm in dict.fromkeys(cell.arm for cell in wanted)}
        lacking = {"curves_to_run": len(without_curve(campaign, chosen, cells))} if curves else {}
        return about | {"to_run": len(missing), "arms": arms} | lacking
    writable_folder(campaign.out)
    if calibration is not None:
        store_calibration(Path(calibration), campaign.out / CALIBRATION, campaign.family.hash)
    failed, tried = [], set[str]()
    try:
        while missing:
            missing.sort(key=training_steps)  # cheap ones first, so that results come early
            failed += run(campaign, missing, workers, cluster, progress)
            tried |= {cell.key for cell in missing}
            campaign = campaign.with_following()
            missing = [c for c in campaign.cells(chosen, cells) if c.key not in campaign.known.keys() | tried]
        if curves:
            failed += run(campaign, without_curve(campaign, chosen, cells), workers, cluster, progress, run_curve)
    finally:  # also after an interruption the page covers all existing cells
        result = write_page(campaign.reload())
    verdicts = {one["id"]: one["verdict"] for one in result if one["id"] in about["claims"]}
    about["wanted"] = len(campaign.cells(chosen, cells))
    return about | {"run": len(tried) - len(failed), "failed": failed, "verdicts": verdicts}


def make_campaign(
    group: str,
    base: str,
    out: Path | str | None,
    calibration: Path | None = None,
    device: str = "auto",
    precision: str = "auto",
    world: World | None = None,
    log: Callable[[str], None] = print,
) -> Campaign:
    """The campaign of a group on a base. Raises UserError on an unknown group or base, an invalid cell, or a folder of
    another base or precision."""
    module = module_of(group)
    place = BaseSpec(base, device, precision)
    family = place.family()
    world = world or make_world("small-world", None, None, None, group)
    out = Path(out) if out is not None else default_out(group, base, world.name)
    there = store.read_all(out / store.FILE)
    known = usable_cells(there, family, log)
    check_page(out, family, there, known)
    arms: dict[str, Arm] = module.arms(
        family.hash, calibration or stored_calibration(out, family.hash, log), world.name
    )
    stated = module.claims(world.name) if hasattr(module, "claims") else module.CLAIMS
    if hasattr(module, "on_family") and world.name != "paper":
        stated, arms = module.on_family(stated, arms, family)
    if hasattr(module, "others") and world.name != "paper":
        stated, arms = module.others(out, stated, arms)
    claims = tuple(claim for one in stated if (claim := restricted(one, arms, ours=world.name != "paper")))
    return Campaign(group, claims, {}, {}, {}, world, place, family, out, known).with_arms(arms).with_following()


def default_out(group: str, base: str, world: str) -> Path:
    """docs/results/<group> for the default base, docs/results/<group>-<base> for others, slashes as minus."""
    name = group + ("-paper" if world == "paper" else "")
    return Path("docs/results") / (name if base == default_base(group) else f"{name}-{store.slug(base).strip('.')}")


def check_page(out: Path, family: Family, there: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise UserError when a page of this base would replace another base's or precision's.

    there, known: all cells of the folder, and the usable ones.
    """
    name, base, precision = page_of(out)
    fp = family.precision
    if base not in (None, family.hash):
        raise UserError(
            f"{out} is of another base ({name}, {base[:12]}, not {family.hash[:12]}): give another --out, or move it"
        )
    own = [cell for cell in there.values() if cell["spec"].get("base") == family.hash]
    if base is not None and precision is None and own:  # a page of an older version: the precision of most cells
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
    """(name, hash, precision) of the base in a folder's claims.json; None if missing."""
    try:
        base = json.loads((out / "claims.json").read_text(encoding="utf-8"))[0]["base"]
        name, sha, precision = (base.get(key) for key in ("name", "sha256", "precision"))
        return name, sha, precision
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None, None, None


def precision_of(cell: Mapping[str, Any]) -> str:
    """The base's precision in a cell's spec."""
    return str(cell["spec"].get("sampling", {}).get("precision"))


def store_calibration(calibration: Path, file: Path, base_hash: str) -> None:
    """Copy the calibration beside the cells. Raises UserError if one of another base is there."""
    if file.is_file() and proposal(file)[0] != base_hash:
        raise UserError(f"{file} is of another base: give another --out, or move it")
    content = calibration.read_bytes()
    with atomic(file) as temporary:
        temporary.write_bytes(content)


def stored_calibration(out: Path, base_hash: str, log: Callable[[str], None]) -> Path | None:
    """The stored calibration of an earlier call, None if there is none for this base."""
    file = out / CALIBRATION
    if not file.is_file():
        return None
    if proposal(file)[0] != base_hash:
        log(f"{file} is of another base and is not used: give --calibration")
        return None
    return file


def default_base(group: str) -> str:
    """The base of a group where none is given. Raises UserError on an unknown group."""
    return getattr(module_of(group), "BASE", DEFAULT_BASE)


def module_of(group: str) -> Any:
    """The module of a group's claims. Raises UserError on an unknown one."""
    if group not in GROUPS:
        raise UserError(f"unknown group of claims {group!r}: {nearest(group, list(GROUPS))}")
    return import_module(GROUPS[group])


def make_world(
    protocol: str, folder: Path | None, clip: str | None, dino: str | None, group: str = "style-friendly"
) -> World:
    """The world of a protocol. Raises UserError on an unknown one, and on flags that do not apply to it."""
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}: {nearest(protocol, list(PROTOCOLS))}")
    own = getattr(module_of(group), "WORLDS", {})
    if protocol in own:
        return own[protocol](folder, clip, dino)
    if protocol == "paper":
        if folder is None:
            raise UserError("--protocol paper needs --references DIR, the folder of StyleDrop's 18 images")
        return PaperWorld(folder, clip or CLIP, dino or DINO)
    if folder or clip or dino:
        raise UserError("--references, --clip and --dino need --protocol paper")
    return SmallWorld()


def choose_claims(claims: Sequence[Claim], ids: Sequence[str]) -> list[Claim]:
    """The claims of these ids, all when none is given. Raises UserError on an unknown one, naming the nearest."""
    known = {claim.id: claim for claim in claims}
    for one in ids:
        if one not in known:
            raise UserError(f"unknown claim {one!r}: {nearest(one, list(known))}")
    return [claim for claim in claims if claim.id in ids or not ids]


def usable_cells(
    there: Mapping[str, dict[str, Any]], family: Family, log: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """The cells of this base in this precision; logs the number of the others."""
    own: dict[str, dict[str, Any]] = {}
    others = Counter[str]()
    for key, cell in there.items():
        base, precision = str(cell["spec"].get("base")), precision_of(cell)
        if base != family.hash:
            others[f"of another base ({base[:12]}, not {family.hash[:12]})"] += 1
        elif precision != family.precision:
            others[f"of another precision ({precision}, not {family.precision})"] += 1
        elif store.quantised(cell.get("running", ()), cell["spec"]):
            others["of a quantised base, not stated in their keys,"] += 1
        else:
            own[key] = cell
    for which, count in sorted(others.items()):
        log(f"{count} cells {which} are not used")
    return own


def estimate_minutes(
    missing: Sequence[Cell], known: Mapping[str, Mapping[str, Any]], base: str, workers: int
) -> float | None:
    """Estimated minutes of the missing cells: by the mean of timed cells with the same `cost_key`, else by
    DEFAULT_SECONDS; None without either."""
    total, seconds = 0.0, defaultdict[tuple[str, int], list[float]](list)
    for content in known.values():
        if "seconds" in content:
            seconds[cost_key(content["spec"])].append(content["seconds"])
    for cell in missing:
        kind, prompts = cost_key(cell.spec)
        timed = seconds.get((kind, prompts))
        if not timed and base not in DEFAULT_SECONDS:
            return None
        total += (
            sum(timed) / len(timed)
            if timed
            else DEFAULT_SECONDS[base][kind][0] + prompts * DEFAULT_SECONDS[base][kind][1]
        )
    return round(total / 60 / workers, 1)


def without_curve(campaign: Campaign, claims: Sequence[Claim], size: str) -> list[Cell]:
    """The cells of readings at equal text that are done and have no curve yet; of methods that have a strength."""
    compares = [c for claim in claims for r in claim.readings if r.equal_text for c in r.compares]
    arms = dict.fromkeys(arm for compare in compares for arm in compare.weights if arm in campaign.specs)
    cells = {
        cell.key: cell
        for arm in arms
        if campaign.arms[arm].how in SCALED
        for cell in campaign.cells_of(arm, size)
        if cell.key in campaign.known and "curve" not in campaign.known[cell.key]
    }
    return list(cells.values())


def training_steps(cell: Cell) -> int:
    """Steps of a cell's training and its teacher's; 0 without one."""
    trained = (cell.spec["arm"], cell.spec.get("teacher", {}))
    return sum(one.get("settings", {}).get("steps") or 0 for one in trained)


def cost_key(spec: Mapping[str, Any]) -> tuple[str, int]:
    """The main determinants of a cell's time: ("train" or "other", number of images)."""
    return "train" if "settings" in spec["arm"] else "other", store.pictures(spec)


def run(
    campaign: Campaign,
    missing: Sequence[Cell],
    workers: int,
    cluster: str | None,
    progress: Progress,
    function: Callable[..., dict[str, Any]] | None = None,
) -> list[str]:
    """Run the missing cells, writing each when it is done; returns the failed ones as messages. function: `run_cell`
    when None; with `run_curve` its result is added to the cell."""
    failed: list[str] = []
    results = fan(function or run_cell, missing, (campaign.world, campaign.place), workers, cluster)
    done = 0
    try:
        for done, (cell, result) in enumerate(results, 1):
            if isinstance(result, str):
                failed.append(f"{cell.name}: {result}")
            else:
                before = campaign.known.get(cell.key, {}) if "curve" in result else {}
                own = {key: value for key, value in before.items() if key not in ("key", "arm", "unit", "spec")}
                campaign.known[cell.key] = store.write(campaign.out / store.FILE, cell, own | result)
            note = (
                "failed" if isinstance(result, str) else f"{result.get('seconds', result.get('curve_seconds')):.0f} s"
            )
            progress("cells", done, len(missing), f"{cell.arm}, {cell.unit}: {note}")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{done} of {len(missing)} cells are done: the same command resumes") from None
    return failed
