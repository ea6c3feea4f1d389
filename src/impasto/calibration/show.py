"""`impasto noise show`: a noise law in log-SNR and in sigma, with the band in which style emerges.

The band is the base's own where `impasto noise calibrate` has measured it (10 to 90 % of the style decided). Else it is
the published one: with FLUX at 1024 px, leaving the style's words out of the first 3 of 28 steps, log-SNR below -6.52,
loses the style (Style-Friendly SNR sampler, section 3.1). It was found at 128 x 128 latents; at other sizes it is moved
by SD3's rule, the log of the ratio of positions (Esser et al. 2024, section 5.3.2): a rule, no measurement; mini-sd3's
style is some .41 decided there (docs/noise-calibration.md).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from impasto.bases import cards, loader
from impasto.bases import embedded as mini
from impasto.calibration.emergence import match_resolution
from impasto.config import TrainConfig, flatten
from impasto.errors import UserError
from impasto.families import files
from impasto.families.base import check_multiple
from impasto.files import atomic
from impasto.noise.equivalence import equivalent_flow_law
from impasto.noise.histogram import HIGH, LOW, bars, histogram
from impasto.noise.laws import Law, Truncated, noise_law, truncate_to_schedule
from impasto.noise.schedule import RectifiedFlow, Schedule, VariancePreserving
from impasto.report import plots
from impasto.training.plan import latent_positions

PUBLISHED = -6.52
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
POINTS = 20_000


@dataclass(frozen=True)
class Band:
    """Log-SNRs from low (may be -inf) to high in which style is decided, and how that is known."""

    low: float
    high: float
    source: str


def band(config: TrainConfig, calibration: Path | None, latents: int, base_hash: str | None) -> Band:
    """A base's measured band (`calibration`, or where `calibrate` puts it by default), else the published one.

    The file of the default place counts only at this number of latents, and with these weights where `base_hash` is
    known. Raises UserError when a file that was asked for is none of `impasto noise calibrate`.
    """
    file, other = calibration or default_file(config.base), ""
    if calibration or file.is_file():
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            low, high = (float(found["points"][share]["log_snr"]) for share in ("10%", "90%"))
            measured, measured_hash = int(found["latent_positions"]), str(found["base_hash"])
            at = f"{measured:,} latents of {found['base']}"
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{str(file)!r} is no calibration.json of `impasto noise calibrate`") from None
        if calibration is None and measured != latents:
            other = f"; {file} is left out: measured at {measured:,} latents, not {latents:,}"
        elif calibration is None and base_hash not in (None, measured_hash):
            other = f"; {file} is left out: measured with other weights of {found['base']}"
        else:
            unsure = "" if calibration or base_hash else "; whether with the same weights is not known here"
            return Band(low, high, f"10 to 90 % of the style decided, measured at {at} ({file}){unsure}")
    high = match_resolution(PUBLISHED, latents)
    moved = high - PUBLISHED
    said = f"published for FLUX at 1024 px: below {PUBLISHED}"
    if moved:
        said += f"; moved by {moved:+.2f} to {latents:,} latents, by SD3's rule: `impasto noise calibrate` measures it"
    return Band(-math.inf, high, said + other)


def default_file(base: str) -> Path:
    """Where `calibrate` writes when not told otherwise."""
    return Path("runs/calibration") / Path(base).name / "calibration.json"


def show(config: TrainConfig, calibration: Path | None = None, out: Path | None = None) -> dict[str, Any]:
    """Quantiles, shares, histogram and band of the law that the config names; `out`: an SVG. Raises UserError.

    sigma is a rectified flow's share of noise, t = sigmoid(-lam / 2), of whatever base.
    """
    schedule = loader.schedule(config.base)
    law = truncate_to_schedule(noise_law(config), schedule)
    family = loader.load(config.base, device="cpu", precision="fp32") if Path(config.base).is_dir() else None
    check_multiple(config.data.size, family.unit if family else 8)
    known = family.hash if family else None
    if config.base in mini.names() and default_file(config.base).is_file():
        known = files.folder_hash(mini.ensure(config.base))
    where = band(config, calibration, latent_positions(config.data.size, family), known)
    p = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    lam = law.quantile(p)
    t = RectifiedFlow().timestep(lam)
    named = {key: value for key, value in flatten(config).items() if key == "noise" or key.startswith("noise_")}
    result: dict[str, Any] = {"base": config.base, "recipe": config.recipe, "law": named}
    result |= {"offset_noise": config.noise.offset} if config.noise.offset else {}
    result |= {"truncated": round(law.cut, 4)} if isinstance(law, Truncated) else {}
    result["log_snr"] = {"mean": mean(lam), "std": round(lam.std().item(), 4), "quantiles": at_quantiles(law)}
    if counts := counted(config.base, schedule, law):
        result["counts_as"] = dict(zip(("mean", "std"), counts, strict=True))
    result["sigma"] = {"mean": mean(t), "median": round(t.median().item(), 6)}
    result["sigma"] |= {f"above_{x:g}": mean(t > x) for x in (0.5, 0.9, 0.99)}
    result["sigma"] |= {"quantiles": by_time(result["log_snr"]["quantiles"])}
    result["style_band"] = {
        "low": None if where.low == -math.inf else round(where.low, 3),
        "high": round(where.high, 3),
        "share": mean((lam >= where.low) & (lam <= where.high)),
        "source": where.source,
    }
    result["histogram"] = histogram(law)
    if out is not None:
        picture(law, where, f"{named['noise']} on {config.base}", out)
        result["out"] = str(out)
    return result


def counted(base: str, schedule: Schedule, law: Law) -> tuple[float, float] | None:
    """(mean, std) of the log-SNR that the law counts as on a rectified flow, where the base predicts the noise."""
    from impasto.styles.metadata import prediction

    if not isinstance(schedule, VariancePreserving) or prediction(base, cards.card(base)) != "epsilon":
        return None
    found = equivalent_flow_law(law, *schedule.range)
    return round(found[0], 4), round(found[1], 4)


def mean(values: torch.Tensor) -> float:
    return round(values.double().mean().item(), 4)


def at_quantiles(law: Law) -> dict[str, float]:
    return {str(q): round(law.quantile(torch.tensor(q, dtype=torch.float64)).item(), 4) for q in QUANTILES}


def by_time(quantiles: dict[str, float]) -> dict[str, float]:
    """Those of t from those of the log-SNR: the 5 % of one are the 95 % of the other."""
    times = [RectifiedFlow().timestep(torch.tensor(lam)).item() for lam in quantiles.values()]
    return {str(q): round(t, 6) for q, t in zip(QUANTILES, reversed(times), strict=True)}


def text(result: dict[str, Any]) -> str:
    """For a person: the histogram with the band marked, and the numbers."""
    where, t = result["style_band"], result["sigma"]
    span = (-math.inf if where["low"] is None else where["low"], where["high"])
    named = ", ".join(f"{key} {value}" for key, value in result["law"].items())
    quantiles = ", ".join(f"{float(q):.0%} {value:.2f}" for q, value in result["log_snr"]["quantiles"].items())
    return "\n".join(
        [
            f"{named}, on {result['base']}",
            bars(result["histogram"], band=span),
            f"log-SNR: mean {result['log_snr']['mean']:.2f}, std {result['log_snr']['std']:.2f}; {quantiles}",
            *counting(result),
            f"sigma: mean {t['mean']:.4f}, median {t['median']:.4f}; above .9 {t['above_0.9']:.1%}, "
            f"above .99 {t['above_0.99']:.1%}",
            f"| style: {where['share']:.1%} of the levels lie where it emerges, log-SNR "
            + (f"{span[0]:.2f} to {span[1]:.2f}" if where["low"] is not None else f"below {span[1]:.2f}"),
            f"  ({where['source']})",
        ]
    )


def counting(result: dict[str, Any]) -> list[str]:
    """The line about a base that predicts the noise, where there is one to be said."""
    found = result.get("counts_as")
    return (
        [f"counts as mean {found['mean']:.2f}, std {found['std']:.2f} on SD3 or FLUX (docs/noise.md)"] if found else []
    )


def picture(law: Law, where: Band, title: str, file: Path) -> None:
    """The density over log-SNR, sigma above it, the band behind it, as an SVG. Raises UserError for another suffix."""
    if file.suffix.lower() != ".svg":
        raise UserError(f"--out {str(file)!r} must end in .svg")
    own = law.quantile(torch.linspace(0.001, 0.999, 201, dtype=torch.float64))  # however narrow, or far out, it is
    low, high = float(min(LOW, math.floor(own[0]))), float(max(HIGH, math.ceil(own[-1])))
    grid = torch.cat([torch.linspace(low, high, 401, dtype=torch.float64), own]).sort().values
    density = list(zip(grid.tolist(), law.pdf(grid).tolist(), strict=True))
    top = max(height for _, height in density)
    levels = range(math.ceil(low), math.floor(high) + 1, 2)
    frame = plots.Frame(
        plots.Axis(low, high, "log-SNR (more noise to the left)", tuple((float(lam), str(lam)) for lam in levels)),
        plots.Axis.over([0.0, top], "density"),
    )
    sigmas = tuple((float(lam), f"{1 / (1 + math.exp(lam / 2)):.3f}") for lam in levels)
    edges = [(min(max(end, low), high), frame.y.high) for end in (where.low, where.high)]
    marks = (
        plots.area(frame, edges, [(x, 0.0) for x, _ in edges], 1),
        plots.area(frame, density, [(low, 0.0), (high, 0.0)], 0),
        plots.line(frame, density, 0),
    )
    above = plots.Axis(low, high, "sigma, the share of noise", sigmas)
    text = plots.standalone(plots.svg(frame, title, *marks, above=above, keys=("density", "where style emerges")))
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
