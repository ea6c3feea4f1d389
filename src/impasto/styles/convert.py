"""What users do with style files: export and import for other tools, merge, resize.

A style is a folder of `impasto train` (or of these functions), or a LoRA file of any tool. Everything that is written
states alpha = rank or an alpha per layer, so that no reader can get its strength wrong, and is written atomically.
"""

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from impasto.bases.cards import check_name
from impasto.errors import UserError, nearest
from impasto.files import atomic, writable_folder
from impasto.interop.lora.layouts import DENOISER, LAYOUTS, PIPELINES
from impasto.interop.lora.read import PEFT, check_architecture, read
from impasto.interop.lora.write import ADAPTER_METADATA, Adapter, write
from impasto.styles import combine
from impasto.styles.load import check_fits
from impasto.styles.metadata import (
    About,
    about,
    architecture_of,
    describe,
    known_card,
    layers_per_block,
    linear_projection,
)
from impasto.styles.parts import NOISE, TOKEN, part_files, read_parts
from impasto.styles.weights import WEIGHTS, naming, read_file, style_file, write_tensors

Result = dict[str, Any]


def export_style(
    style: Path | str,
    format: str = "diffusers",
    out: Path | None = None,
    *,
    private: bool = False,
    base: str | None = None,
    overwrite: bool = False,
) -> Result:
    """Write a style's LoRA as one file in another tool's layout; returns what was written.

    Learned tokens are written beside it, as textual inversion embeddings; inversion noise stays in the style folder.

    out: `runs/neon-kohya.safetensors` beside the folder `runs/neon` when not given. private: leave out everything that
    names a path of this machine. base: for a file that does not tell it. Raises UserError on bad input.
    """
    if format not in LAYOUTS:
        raise UserError(f"unknown format {format!r}: {nearest(format, LAYOUTS)}")
    adapter, stated = open_style(style, base=base)
    here = stated.file.parent.resolve() if stated.file.name == WEIGHTS else stated.file
    out = out or here.with_name(f"{stated.name}-{format}.safetensors")
    if out.is_dir() or out.suffix != ".safetensors":
        raise UserError(f"--out {str(out)!r} must be a file whose name ends in .safetensors")
    check_out(out, overwrite)
    writable_folder(out.parent, out)
    tensors, config = write(adapter, format, layers_per_block=layers_per_block(base or stated.base))
    with atomic(out) as file:
        write_tensors(file, tensors, describe(adapter, stated, private=private) | config)
    more = export_tokens(Path(style), out)
    return summary(adapter, out, format=format, tensors=len(tensors), bytes=out.stat().st_size, **more)


def export_tokens(style: Path, out: Path) -> Result:
    """Copy the learned tokens of a style folder beside `out`; {} for a style without tokens and noise."""
    files, more = part_files(style, TOKEN), {}
    for file in files:
        target = out.with_name(f"{out.stem}-{file.name}")
        with atomic(target) as copy:
            shutil.copyfile(file, copy)
        more.setdefault("embeddings", []).append(str(target))
    if part_files(style, NOISE):
        note = "the inversion noise stays in the style folder: other tools start from their own noise"
        more["notes"] = [note]
    return more


def check_lora_alone(style: Path | str, command: str) -> None:
    """Raise UserError where a style has parts that a command would lose."""
    kinds = {part.kind for part in read_parts(Path(style))} if Path(style).is_dir() else set()
    if lost := sorted(kinds & {TOKEN, NOISE}):
        raise UserError(
            f"style {str(style)!r} has a part of the kind {' and '.join(lost)}, which {command} would lose: impasto "
            "export writes its LoRA, and impasto mix joins styles of instastyle"
        )


def import_style(
    file: Path | str,
    out: Path,
    *,
    base: str | None = None,
    architecture: str | None = None,
    denoiser_only: bool = False,
    lora_only: bool = False,
    overwrite: bool = False,
) -> Result:
    """Turn a LoRA file of any tool into a style folder; returns what was written.

    base: the model it is for; when that is a folder here, every layer is looked up in it. architecture: where neither
    the file nor the base tells, or the file tells another. denoiser_only: leave out text encoders. lora_only: leave out
    bundled embeddings. Raises UserError on bad input.
    """
    leave_out = {"denoiser_only": denoiser_only, "lora_only": lora_only}
    adapter, stated = open_style(file, base=base, architecture=architecture, **leave_out)
    checked = check_base(adapter, base, Path(file))
    how = f"Imported from `{Path(file).name}`."
    write_folder(adapter, stated, out, base or stated.base, how, overwrite)
    return summary(adapter, out, base=base or stated.base, checked=checked)


def merge_styles(
    styles: Sequence[str], out: Path, *, rank: int | None = None, base: str | None = None, overwrite: bool = False
) -> Result:
    """Add styles up, each with its weight ("runs/neon:0.7"); returns what was written.

    Exact: the ranks add up. rank: resize the sum to it, and state the error. Raises UserError on bad input.
    """
    from impasto.styles.weights import split_strength

    if len(styles) < 2:
        raise UserError("give two styles or more, each with its weight: runs/neon:0.7 runs/ink:0.5")
    split = [split_strength(style) for style in styles]
    parts = [(path, 1.0 if weight is None else weight) for path, weight in split]
    for path, _ in parts:
        check_lora_alone(path, "merge")
    opened = [open_style(path, base=base) for path, _ in parts]
    hashes = {stated.inputs.get("base_sha256") or stated.metadata.get("impasto.base_sha256") for _, stated in opened}
    notes = ["the styles were trained on different bases"] if len(hashes - {None}) > 1 else []
    adapter = combine.merge([adapter for adapter, _ in opened], [weight for _, weight in parts])
    loss = None
    if rank is not None and rank < combine.ranks(adapter)[-1]:
        adapter, loss = combine.resize(adapter, rank)
    stated = merged(parts, opened)
    how = f"Merged: {stated.metadata['modelspec.merged_from']}."
    write_folder(adapter, stated, out, base or stated.base, how, overwrite)
    return summary(adapter, out, base=base or stated.base, **error(loss), **({"notes": notes} if notes else {}))


def resize_style(
    style: Path | str, rank: int, out: Path, *, base: str | None = None, overwrite: bool = False
) -> Result:
    """The best approximation of a style at a lower rank, into a folder; returns what was written and the error.

    Raises UserError on bad input.
    """
    check_lora_alone(style, "resize")
    whole, stated = open_style(style, base=base)
    adapter, loss = combine.resize(whole, rank)
    how = f"`{stated.name}` at rank {rank}, {loss.total:.1%} of its update lost."
    write_folder(adapter, stated, out, base or stated.base, how, overwrite)
    return summary(adapter, out, before=combine.ranks(whole), **error(loss))


def open_style(
    style: Path | str,
    *,
    base: str | None = None,
    architecture: str | None = None,
    denoiser_only: bool = False,
    lora_only: bool = False,
) -> tuple[Adapter, About]:
    """The layers of a style folder or file in any layout, and what else is known of it; `base` as its base where it
    tells none.

    Raises UserError that names the file, when it is damaged, no LoRA, or none that can be read.
    """
    file = style_file(style)
    if Path(style).is_dir() and (kind := read_parts(Path(style))[0].kind) != "lora":
        raise UserError(
            f"style {str(style)!r} is a {kind} adapter: export, merge and resize are for LoRA; load it with "
            f"impasto.load_style(pipe, folder), or make a LoRA of it: impasto distill --teacher {style} --adapter lora"
        )
    if base is not None:
        check_name(base)
    if architecture is not None and architecture not in PIPELINES:
        raise UserError(f"unknown architecture {architecture!r}: {nearest(architecture, list(PIPELINES))}")
    tensors, metadata = read_file(file)
    stated = about(file, metadata)
    of_peft = any(PEFT in key for key in tensors) and not any(key.endswith(".alpha") for key in tensors)
    if of_peft and ADAPTER_METADATA not in metadata:
        metadata |= peft_metadata(file)
    with naming(file):
        known = architecture or check_architecture(metadata, architecture_of(base or stated.base))
        adapter = read(
            tensors,
            metadata,
            architecture=known,
            layers_per_block=layers_per_block(base or stated.base),
            linear_projection=linear_projection(base or stated.base),
            denoiser_only=denoiser_only,
            lora_only=lora_only,
        )
    if base and not stated.base:
        stated = replace(stated, metadata=stated.metadata | {"impasto.base": base})
    return adapter, stated


def peft_metadata(file: Path) -> dict[str, str]:
    """What peft says of its own files (alpha, rsLoRA, DoRA), in `adapter_config.json` beside them, as diffusers says
    it in a file's metadata. Without that file {}, and a warning. UserError when it cannot be read."""
    config = file.parent / "adapter_config.json"
    if not config.is_file():
        message = f"{file} says no alpha, nor does {config.name} beside it: taken as the rank (a strength of 1)"
        warnings.warn(message, stacklevel=3)
        return {}
    try:
        stated = json.loads(config.read_text(encoding="utf-8")).items()
    except (ValueError, AttributeError, RecursionError):
        raise UserError(f"{config} is damaged: it is not a JSON object") from None
    return {ADAPTER_METADATA: json.dumps({f"{part}.{k}": v for part in set(DENOISER.values()) for k, v in stated})}


def check_base(adapter: Adapter, base: str | None, file: Path) -> bool:
    """Look every layer up in the base, by its configs alone; False when the base is not here. UserError on a misfit."""
    from impasto.bases.cards import embedded
    from impasto.bases.loader import locate

    if base is None or not (Path(base).is_dir() or base in embedded()):
        return False
    folder = locate(base)
    shapes = {}
    for layer, lora in adapter.layers.items():
        shapes[f"{layer}.lora_A.weight"], shapes[f"{layer}.lora_B.weight"] = (
            tuple(lora.down.shape),
            tuple(lora.up.shape),
        )
    check_fits(SimpleNamespace(**{part: skeleton(folder, part) for part in adapter.components}), shapes, file)
    return True


def skeleton(folder: Path, component: str) -> Any:
    """A part of a diffusers folder without its weights."""
    from importlib import import_module

    import torch

    library, name = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get(component, [None, None])
    if name is None:
        return None
    cls = getattr(import_module(library), name)
    with torch.device("meta"):
        if component in DENOISER.values():
            return cls.from_config(cls.load_config(folder / component))
        return cls(cls.config_class.from_pretrained(folder / component))


def write_folder(adapter: Adapter, stated: About, out: Path, base: str | None, how: str, overwrite: bool) -> None:
    """A style folder: the weights in diffusers' layout, and a model card that says where they come from.

    One that is there already keeps its weights until the new ones are written, and whatever else lies in it.
    """
    from impasto.styles.card import made_card, trained_size

    check_out(out, overwrite)
    tensors, config = write(adapter, "diffusers")
    metadata = describe(adapter, stated) | {"modelspec.title": out.resolve().name}
    metadata.pop("impasto.base_local", None)  # of another base, it may be
    metadata |= stated_base(base, stated.local(base))
    writable_folder(out)
    known, size = known_card(base, adapter.architecture), trained_size(stated)
    with atomic(out / "README.md") as card, atomic(out / WEIGHTS) as file:  # both are whole before either is there
        write_tensors(file, tensors, metadata | config)
        card.write_text(
            made_card(
                *(out.resolve().name, how, str(out), base, known, adapter.architecture, stated.trigger, size),
                prompt=next(iter(stated.captions), None),
            ),
            encoding="utf-8",
        )


def stated_base(base: str | None, local: bool) -> dict[str, str]:
    """What a file's metadata says of its base: nothing where none is known."""
    return ({"impasto.base": base} if base else {}) | ({"impasto.base_local": "true"} if local else {})


def check_out(out: Path, overwrite: bool) -> None:
    """Raise UserError when `out` is there already, or lies in a style folder, where diffusers would guess wrong."""
    there = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    if there and not overwrite:
        raise UserError(f"--out {str(out)!r} is there already: give another name, or --overwrite")
    if out.is_dir() and any(out.iterdir()) and not (out / WEIGHTS).is_file():
        raise UserError(f"--out {str(out)!r} is a folder that is no style: it is not overwritten")
    if (out / "recipe.toml").is_file():
        raise UserError(f"--out {str(out)!r} holds a training run: it is not overwritten")
    if out.name != WEIGHTS and (out.parent / WEIGHTS).is_file():
        raise UserError(
            f"--out {str(out)!r} lies in a style folder, where diffusers would find two files: choose another"
        )


def merged(parts: Sequence[tuple[Path, float]], opened: Sequence[tuple[Adapter, About]]) -> About:
    """What a sum of styles is known by: the base and the size that they share, all their captions."""
    from impasto.styles.card import trained_size

    bases = {stated.base for _, stated in opened if stated.base}
    names = ", ".join(f"{stated.name}:{weight:g}" for (_, stated), (_, weight) in zip(opened, parts, strict=True))
    captions = list(dict.fromkeys(caption for _, stated in opened for caption in stated.captions))
    metadata = {"modelspec.merged_from": names, "impasto.captions": json.dumps(captions, ensure_ascii=False)}
    if len(bases) == 1:
        base = bases.pop()
        metadata |= stated_base(base, any(stated.local(base) for _, stated in opened))
    sizes = {trained_size(stated) for _, stated in opened}
    if len(sizes) == 1 and (size := sizes.pop()):
        metadata["ss_resolution"] = f"({size}, {size})"
    return About(opened[0][1].file, metadata=metadata)


def summary(adapter: Adapter, out: Path, **more: Any) -> Result:
    """What a command prints."""
    known = {"architecture": adapter.architecture, "components": adapter.components, "layers": len(adapter.layers)}
    return {"out": str(out), **known, "ranks": combine.ranks(adapter)} | more


def error(loss: combine.Loss | None) -> Result:
    """The relative Frobenius error of a resize, {} when there was none."""
    if loss is None:
        return {}
    return {"error": round(loss.total, 6), "error_mean": round(loss.mean, 6), "error_max": round(loss.worst, 6)} | {
        "worst_layer": loss.worst_layer
    }
