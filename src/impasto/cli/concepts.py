"""`impasto concepts find` and `impasto concepts show`."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import tyro

from impasto.cli.checks import check_bases, check_images
from impasto.cli.console import Result, parse
from impasto.errors import UserError, nearest


def concepts(args: list[str]) -> Result:
    """Find the things that a reference's caption names in the image, or show those that were found."""
    actions = {"find": find, "show": show}
    if not args or args[0] in ("-h", "--help"):
        print("usage: impasto concepts find IMAGE --caption ... --base ... | impasto concepts show FOLDER")
        return {}
    if args[0] not in actions:
        raise UserError(f"unknown action {args[0]!r} of concepts: {nearest(args[0], list(actions))}")
    return actions[args[0]](args[1:])


def find(args: list[str]) -> Result:
    """Find the regions of a reference's concepts."""

    def find(
        image: Annotated[Path, tyro.conf.Positional],
        caption: str,
        base: str = "mini-sd3",
        finder: Literal["boxes", "error", "attention"] | None = None,
        concepts: str | None = None,
        style_words: str | None = None,
        boxes: str | None = None,
        out: Path | None = None,
        overwrite: bool = False,
        device: str = "auto",
        precision: str = "auto",
        seed: int = 0,
    ) -> Result:
        """Find the regions of a reference's concepts; write concepts.json and an overlay, concepts.png.

        Args:
            image: The reference image.
            caption: What it shows and in what style: "a rocket, a teapot and a lion in flat vector style".
            base: The base model that finds them, and will be trained.
            finder: How: error (embedded bases), attention (others), boxes (where --boxes are given).
            concepts: The concepts, separated by semicolons, instead of those of the caption.
            style_words: The caption's style words, where it does not say "in ... style".
            boxes: A box for each thing: "left,top,right,bottom; ...", in pixels.
            out: The folder; IMAGE-concepts beside the image when not given.
            overwrite: Replace a concepts.json that is there: it may have been edited.
            device: auto, cpu, cuda or mps.
            precision: auto, fp32 or bf16.
            seed: Of the noise.
        """
        check_images([image])
        check_bases(base)
        from impasto.data.concepts import FILE, parse_boxes, split_list, write_concepts
        from impasto.data.references import load
        from impasto.files import atomic, writable_folder
        from impasto.regions import find_concepts
        from impasto.regions.overlay import overlay

        folder = out or image.with_name(f"{image.stem}-concepts")
        if (folder / FILE).exists() and not overwrite:
            raise UserError(f"{str(folder / FILE)!r} is there: --overwrite replaces it, --out names another folder")
        found = find_concepts(
            image,
            caption,
            base,
            finder,
            phrases=split_list(concepts),
            style_words=style_words,
            boxes=parse_boxes(boxes),
            device=device,
            precision=precision,
            seed=seed,
        )
        writable_folder(folder)
        write_concepts(folder / FILE, found)
        with atomic(folder / "concepts.png") as temporary:
            overlay(load(image).image, found).save(temporary)
        command = ["impasto", "train", "--recipe", "finestyle", "--base", base, "--image", str(image)]
        command += ["--caption", caption, "--concept-file", str(folder / FILE), "--out", "runs/style"]
        return summary(found, folder) | {"next": shlex.join(command)}

    return parse(find, args, "concepts find")


def show(args: list[str]) -> Result:
    """Show the concepts of a folder."""

    def show(folder: Annotated[Path, tyro.conf.Positional]) -> Result:
        """Validate and show the concepts.json of a folder.

        Args:
            folder: What `impasto concepts find` wrote, or a style folder.
        """
        from impasto.data.concepts import FILE, read_concepts

        return summary(read_concepts(folder / FILE), folder)

    return parse(show, args, "concepts show")


def summary(found, folder: Path) -> Result:
    """What is shown, and printed with --json."""
    rows = [
        {"phrase": c.phrase, "kind": c.kind, "box": c.box, "score": c.score, "prompt": found.sub_prompt(c)}
        for c in found.concepts
    ]
    return {"folder": str(folder), "base": found.base, "finder": found.finder, "style": found.style, "concepts": rows}


def show_concepts(result: Result) -> None:
    """A line for each concept."""
    if not result:
        return
    print(f"{result['folder']}: {result['finder']} on {result['base']}, style {result['style']!r}")
    for row in result["concepts"]:
        where = "the whole image" if row["box"] is None else f"{list(row['box'])}"
        score = "" if row["score"] is None else f", score {row['score']:.3f}"
        print(f"  {row['phrase']} ({row['kind']}): {where}{score}, prompt {row['prompt']!r}")
    if "next" in result:
        print(f"next: {result['next']}")
