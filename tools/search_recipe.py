"""The search for the recipe `impasto`: one factor at a time, then combinations, on the *secondary* held-out styles.

    python tools/search_recipe.py run --base mini-sd15            # cells into runs/recipe-search-<base>; resumes
    python tools/search_recipe.py run --base mini-sd15 --references 4 --only start flip "style words"
    python tools/search_recipe.py report                          # docs/results/recipe-search/

Every variant is a recipe: style-friendly-128px with PLAIN and the settings of the variant; "start" has no others.
`impasto compare` runs them, all with the base's own number of steps, on references of the secondary styles; the prompts
are free concepts, neither evaluation nor reference concepts. Variants are read by style at equal text
(`evaluation.equal_text`), the text of "start" at its own strength. The primary styles are not used. PLAIN is ordinary
guidance at strength 1, so that factors of training and of sampling are separate.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from impasto.artworld import free_concepts, load_meta, spread
from impasto.compare.comparison import TABLE, compare
from impasto.config import merge, read_recipe, to_paths
from impasto.files import atomic
from impasto.training.run_folder import toml_line

OUT = Path("docs/results/recipe-search")
REFERENCES = {"symbola": "guitar", "icon-park": "tomato", "game-icons": "bus", "ph": "castle"}
PROMPTS = 8
PLAIN = {"sampling.strength": 1.0, "sampling.style_guidance": 0.0, "sampling.negative": ""}
ORDINARY = {"method.lambda1": 0.0, "method.lambda2": 3.0, "method.lambda_base": 0.0, "method.null": "empty"}
"""Guidance 4, as the embedded bases have it, in the terms of style and semantics."""
NO_CROPS = {"method": "finestyle", "concept_share": 0.01}
WORDS = {"sampling.negative": "style words"}
STYLE_AND_SEMANTICS = {**NO_CROPS, "method.lambda1": 3.0, "method.lambda2": 2.0, "method.lambda_base": 3.0}
TEXT = {"text": "lora"}
SECOND_ROUND = {"method": "styledrop", "method.images": 4, "method.lambda_a": 0.0, "method.lambda_b": 3.0}
GUIDED_SECOND_ROUND = {**SECOND_ROUND, "method.lambda_a": 2.0}
VARIANTS: dict[str, dict[str, Any]] = {
    "start": {},
    # the noise law; style-friendly-128px has a mean of -1.84
    "law -6": {"noise.mean": -6.0},
    "law -3.5": {"noise.mean": -3.5},
    "uniform levels": {"noise": "uniform"},
    # data
    "crops": {"method": "finestyle", "concept_jitter": 0.0, **ORDINARY},
    "crops at several scales": {"crops": 16, "crop_scale": 0.5},
    "flip": {"flip": True},
    # what keeps the base
    "dco 100": {"objective": "dco", "objective.beta": 100.0},
    "prior": {"prior.weight": 1.0, "prior.batch": 4},
    # adapter, optimiser
    "ema": {"ema": 0.98},
    "cosine rate": {"schedule": "cosine"},
    "rank 4": {"rank": 4},
    "styleinject": {"adapter": "styleinject", "adapter.rank": 8, "adapter.n": 4, "adapter.targets": ("to_q", "to_v")},
    "text encoder": TEXT,
    # sampling
    "style words": WORDS,
    "style guidance, words": {"sampling.style_guidance": 2.0, **WORDS},
    "style and semantics": STYLE_AND_SEMANTICS,
    # strength and style guidance of each style, chosen by its own scores at the end
    "advice": {"evaluate.every": 150},
    # a second round on its own images, chosen by the small CLIP
    "second round": SECOND_ROUND,
}
COMBINED: dict[str, dict[str, Any]] = {
    "flip, text encoder": {"flip": True, **TEXT},
    "flip, style and semantics": {"flip": True, **STYLE_AND_SEMANTICS},
    "text encoder, style and semantics": {**TEXT, **STYLE_AND_SEMANTICS},
    "all three": {"flip": True, **TEXT, **STYLE_AND_SEMANTICS},
    "guided second round": GUIDED_SECOND_ROUND,
    "flip, text encoder, guided second round": {"flip": True, **TEXT, **GUIDED_SECOND_ROUND},
}
"""Of the factors that paid on mini-sd15, and the second round with StyleDrop's own style guidance."""


def write_inputs(base: str, folder: Path, references: int) -> tuple[list[str], Path]:
    """(recipe files of all variants, the references file) in `folder`."""
    recipes = folder / "recipes"
    recipes.mkdir(parents=True, exist_ok=True)
    files = []
    for name, settings in (VARIANTS | COMBINED).items():
        paths = merge(read_recipe("style-friendly-128px"), to_paths({**PLAIN, **settings}))
        file = recipes / f"{name}.toml"
        file.write_text("".join(f"{toml_line(key, value)}\n" for key, value in paths.items()), encoding="utf-8")
        files.append(str(file))
    file = folder / "references.json"
    file.write_text(json.dumps(references_of(references), indent=1) + "\n", encoding="utf-8")
    return files, file


def references_of(count: int) -> list[dict[str, Any]]:
    """References of the first `count` secondary styles, with prompts of free concepts, as `compare --references` reads
    them."""
    labels, free = [concept["label"] for concept in load_meta()["concepts"]], free_concepts()
    rows = []
    for i, (style, label) in enumerate(list(REFERENCES.items())[:count]):
        prompts = [f"{labels[concept]}, {{style}}" for concept in spread(free[i:], PROMPTS)]
        rows.append({"style": style, "concept": label, "prompts": prompts})
    return rows


def run(base: str, references: int, only: list[str], workers: int) -> None:
    folder = Path("runs") / f"recipe-search-{base}"
    files, file = write_inputs(base, folder, references)
    chosen = [one for one in files if not only or Path(one).stem in only]
    settings: dict[str, Any] = {"row": "start", "precision": "bf16", "skip": True, "workers": workers}
    compare(chosen, folder, base, references=file, progress=show, **settings)


def show(phase: str, done: int = 0, total: int | None = None, note: str = "") -> None:
    if total:
        print(f"{phase} {done}/{total} {note}", flush=True)


def report() -> None:
    """Table and cells of both bases, in OUT."""
    OUT.mkdir(parents=True, exist_ok=True)
    lines = [__doc__.splitlines()[0] if __doc__ else "", "", "`python tools/search_recipe.py report`", ""]
    for table in sorted(Path("runs").glob(f"recipe-search-*/{TABLE}")):
        base = table.parent.name.removeprefix("recipe-search-")
        content = json.loads(table.read_text(encoding="utf-8"))
        with atomic(OUT / f"{base}.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        lines += [f"## {base}", "", f"Read at the text of start at strength 1, {content['text']:.3f}.", ""]
        lines += [
            "| variant | cells | style at equal text | at strength | style / text at 1 | training, s |",
            "|---|---|---|---|---|---|",
        ]
        lines += [line_of(row) for row in content["rows"]] + [""]
    with atomic(OUT / "README.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def line_of(row: dict[str, Any]) -> str:
    read, own = row["equal_text"], row["scores"]
    error = "" if read["error"] is None else f" +- {read['error']:.3f}"
    style = f"{read['style']:.3f}{error}" if read["reaches"] else "does not reach it"
    strength = f"{read['strength']:.2f}" if read["reaches"] else ""
    at_1 = f"{own['style']['mean']:.3f} / {own['text']['mean']:.3f}"
    return f"| {row['recipe']} | {row['cells']} | {style} | {strength} | {at_1} | {row['train_seconds']:.0f} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--base", default="mini-sd3")
    parser.add_argument("--references", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    report() if given.what == "report" else run(given.base, given.references, given.only, given.workers)
