"""`impasto export`, `import`, `merge` and `resize`."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import tyro

from impasto.cli.checks import check_bases, check_styles
from impasto.cli.console import Result, parse
from impasto.errors import UserError


def usable(result: Result) -> Result:
    """With the command that generates with the style folder that was written."""
    base = result.get("base")
    if base is None:
        from impasto.styles.metadata import read_about

        base = read_about(Path(result["out"])).base or "BASE"
    command = ["impasto", "generate", "--base", base, "--style", result["out"], "--prompt", "a cat"]
    return result | {"next": shlex.join(command)}


def export(args: list[str]) -> Result:
    """Write a style as one file for diffusers, kohya's tools or ComfyUI, or put it on the Hub."""

    def export(
        style: Annotated[Path, tyro.conf.Positional],
        format: Literal["diffusers", "kohya", "comfyui"] = "diffusers",
        out: Path | None = None,
        step: int | None = None,
        private: bool = False,
        base: str | None = None,
        overwrite: bool = False,
        push_to_hub: str | None = None,
        hub_private: bool = False,
    ) -> Result:
        """Write a style as one safetensors file that another tool loads, with its metadata.

        Args:
            style: The style folder, or a LoRA file in any layout.
            format: The layout, see docs/files.md.
            out: The file; NAME-FORMAT.safetensors beside the style folder when not given.
            step: The checkpoint of this step instead of the finished style.
            private: Leave out of the metadata whatever names a path of this machine.
            base: The base model, for a file that does not tell it.
            overwrite: Replace the file when it is there.
            push_to_hub: Write no file, but put it with its card and pictures into the Hub's repository owner/name.
            hub_private: Make that repository a private one, where it is new.
        """
        if (out and push_to_hub) or (hub_private and not push_to_hub):
            raise UserError("--out and --push-to-hub exclude each other; --hub-private goes with --push-to-hub")
        if not push_to_hub:  # its name is checked first
            check_styles([style])
        check_bases(base)
        if step is not None or "@" in style.name:
            from impasto.training.checkpoint_style import checkpoint_style, resolve_checkpoint

            style = Path(resolve_checkpoint(str(style))) if step is None else checkpoint_style(style, step)
        if push_to_hub:
            from impasto.styles.hub import publish

            return publish(style, push_to_hub, format, base=base, private=hub_private)
        from impasto.styles.convert import export_style

        return export_style(style, format, out, private=private, base=base, overwrite=overwrite)

    return parse(export, args, "export")


def import_(args: list[str]) -> Result:
    """Turn a LoRA file of another tool into a style folder."""

    def import_(
        file: Annotated[Path, tyro.conf.Positional],
        out: Path,
        base: str | None = None,
        architecture: Literal["flux", "sd3", "sdxl", "sd15"] | None = None,
        denoiser_only: bool = False,
        lora_only: bool = False,
        overwrite: bool = False,
    ) -> Result:
        """Turn a LoRA file of kohya's tools, ComfyUI or diffusers into a style folder.

        Args:
            file: The safetensors file.
            out: The style folder.
            base: The base model that it is for; every layer is looked up in it when it is a folder here.
            architecture: Where neither the file nor the base tells, or the file tells another.
            denoiser_only: Leave out the LoRAs of the text encoders.
            lora_only: Leave out textual-inversion embeddings that are bundled with the LoRA.
            overwrite: Replace the folder when it is there.
        """
        check_styles([file])
        check_bases(base)
        from impasto.styles.convert import import_style

        options = {"base": base, "architecture": architecture, "denoiser_only": denoiser_only, "lora_only": lora_only}
        return usable(import_style(file, out, **options, overwrite=overwrite))

    return parse(import_, args, "import")


def merge(args: list[str]) -> Result:
    """Add styles up, each with a weight."""

    def merge(
        styles: Annotated[tuple[str, ...], tyro.conf.Positional],
        out: Path,
        rank: int | None = None,
        base: str | None = None,
        overwrite: bool = False,
    ) -> Result:
        """Add styles up: exact, the ranks add up.

        Args:
            styles: Style folders or files, each with its weight after a colon: runs/neon:0.7 runs/ink@100:0.5.
            out: The style folder of the sum.
            rank: Resize the sum to this rank; the error is shown.
            base: The base model, for files that do not tell it.
            overwrite: Replace the folder when it is there.
        """
        if len(styles) < 2:
            raise UserError("give two styles or more, each with its weight: runs/neon:0.7 runs/ink:0.5")
        check_styles(styles)
        check_bases(base)
        from impasto.styles.convert import merge_styles
        from impasto.training.checkpoint_style import resolve_checkpoint

        chosen = list(map(resolve_checkpoint, styles))
        return usable(merge_styles(chosen, out, rank=rank, base=base, overwrite=overwrite))

    return parse(merge, args, "merge")


def resize(args: list[str]) -> Result:
    """Cut a style down to a lower rank."""

    def resize(
        style: Annotated[Path, tyro.conf.Positional],
        rank: int,
        out: Path,
        base: str | None = None,
        overwrite: bool = False,
    ) -> Result:
        """The best approximation of a style at a lower rank, and the error that it costs.

        Args:
            style: The style folder, or a LoRA file in any layout.
            rank: The new rank; layers that have less keep it.
            out: The style folder of the result.
            base: The base model, for a file that does not tell it.
            overwrite: Replace the folder when it is there.
        """
        check_styles([style])
        check_bases(base)
        from impasto.styles.convert import resize_style

        return usable(resize_style(style, rank, out, base=base, overwrite=overwrite))

    return parse(resize, args, "resize")
