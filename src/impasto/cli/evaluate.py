"""`impasto evaluate` and `impasto report`."""

from pathlib import Path
from typing import Annotated

import tyro

from impasto.cli.checks import check_encoders, check_folder, check_images
from impasto.cli.console import Result, parse


def evaluate(args: list[str]) -> Result:
    """Score a folder of generated pictures by the independent judges."""

    def evaluate(
        folder: Annotated[Path, tyro.conf.Positional],
        style_of: str | None = None,
        concepts: Path | None = None,
        reference: Path | None = None,
        reference_concept: str | None = None,
        reference_things: str | None = None,
        base_images: Path | None = None,
        clip: str = "clip",
        dino: str | None = None,
        ground: tuple[int, int, int] = (255, 255, 255),
        encoders: tuple[str, ...] = (),
        device: str = "cpu",
        out: Path | None = None,
    ) -> Result:
        """Score a folder of generated pictures.

        Args:
            folder: The pictures, as `impasto generate` writes them.
            style_of: The style of the art world that they should be in.
            concepts: A file with the concept of each picture, one per line; their prompts say it when not given.
            reference: The picture that the style was learnt from, for styles that the judges do not know.
            reference_concept: What that picture shows, for leakage; by default what its caption names.
            reference_things: The things of a reference that shows several, "teapot; lion": how far images show those
                that their prompt does not name. Those of the style folder's concepts.json when not given.
            base_images: The same prompts drawn by the base alone, scored beside them.
            clip: A CLIP, a transformers folder or a hub id, in place of the packaged one ("clip").
            dino: An encoder of images, a folder or a hub id, for one more similarity with the reference.
            encoders: More encoders, NAME or NAME=HUB_OR_FOLDER each, such as dino or csd=csd.safetensors; `impasto
                weights list` shows them.
            device: Where the encoders run: cpu, cuda or auto.
            ground: Red, green, blue of the plain ground that the true pictures are on.
            out: Where the scores are written; scores.json in the folder when not given.
        """
        check_folder(folder, "the folder that `impasto generate --out` wrote")
        check_images([reference] if reference else [])
        check_encoders(encoders)
        if style_of is not None:
            from impasto.artworld import style_index

            style_index(style_of)
        from impasto.devices import resolve_device
        from impasto.evaluation import evaluate

        kinds = {"encoder": clip, "dino": dino, "ground": ground, "reference_things": reference_things}
        kinds |= {"encoders": encoders, "device": resolve_device(device, "fp32")[0]}
        found = evaluate(folder, style_of, concepts, reference, reference_concept, base_images, out=out, **kinds)
        style = folder.parent
        return found | ({"next": f"impasto report {style}"} if (style / "recipe.toml").is_file() else {})

    return parse(evaluate, args, "evaluate")


def report(args: list[str]) -> Result:
    """One HTML page about a style: pictures, scores, curves."""

    def report(
        run: Annotated[Path, tyro.conf.Positional],
        generated: Path | None = None,
        title: str | None = None,
        out: Path | None = None,
        votes: Path | None = None,
    ) -> Result:
        """Write the report of a style folder.

        Args:
            run: The style folder, as `impasto train` writes it.
            generated: Its pictures; its own images or previews when not given.
            title: The heading; the name of the folder when not given.
            out: The HTML file; report.html in the folder when not given.
            votes: A vote set of `impasto votes` whose summary is shown; votes in the folder when not given.
        """
        check_folder(run, "the --out folder of `impasto train`, resize, merge or import")
        from impasto.report import report

        result = report(run, generated, title=title, out=out, votes=votes)
        return result | {"next": f"open {result['path']} in a browser"}

    return parse(report, args, "report")
