"""Loading styles into diffusers pipelines, without a silent loss."""

import re
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.nn import Module

from impasto.adapters import token
from impasto.adapters.base import Adapter
from impasto.adapters.token import Token
from impasto.bases.style_defaults import checked
from impasto.errors import UserError
from impasto.families.base import quiet
from impasto.interop.lora.layouts import ARCHITECTURES
from impasto.interop.lora.read import check_finite
from impasto.interop.lora.write import OLDER_TEXT_HALVES, same_kernel
from impasto.inversion import noise_file
from impasto.inversion.mix import mix
from impasto.noise.random import generator
from impasto.sampling.samplers import DEFAULT, set_scheduler, start_at
from impasto.styles.parts import NOISE, STYLE_JSON, TOKEN, Part, adapter_kinds, part_files, read_parts, read_style_json
from impasto.styles.weights import naming, read_file, style_file, write_tensors

IN_LAYOUT = re.compile(r"(unet|transformer|text_encoder(_\d)?)\.(?!base_model\.).+\.lora_[AB]\.weight")
"""Tensor names of diffusers' layout."""


def load_style(pipe: Any, folder: Path | str, strength: float = 1.0) -> dict[str, Any]:
    """Put a style into a plain diffusers pipeline, on top of those that are there.

    Adapters that are active, also those that you loaded yourself, stay so, at their strengths.

    Args:
        pipe: A diffusers pipeline of the style's base.
        folder: A style folder, or a file of a LoRA.
        strength: Of the adapters.

    Returns:
        Extra arguments of the pipeline's call: {} for adapters alone. Of a style with inversion noise: `latents` (one
        image), steps, guidance scale and size as its `style.json` states them; its scheduler is set.

    Raises:
        UserError: When a file is damaged or holds NaN or infinite values, when it belongs to another base (by its
            shapes, or as it states itself), or when any of its tensors is not used.
    """
    load_weights(pipe, folder, strength)
    return call_arguments(pipe, Path(folder))


def load_weights(pipe: Any, folder: Path | str, strength: float = 1.0) -> list[Token]:
    """`load_style` of adapters and learned tokens alone; returns the tokens."""
    folder, kinds, tokens = Path(folder), adapter_kinds(), []
    for part in read_parts(folder) if folder.is_dir() else [Part("lora", "")]:
        file = folder / part.file if folder.is_dir() else style_file(folder)
        if not file.is_file():
            style_file(folder)  # raises
            raise UserError(f"style {str(folder)!r} lacks {part.file}, which its {STYLE_JSON} lists")
        if part.kind == TOKEN:
            tokens.append(token.load(pipe, file))
        elif part.kind != NOISE:
            load_adapter(kinds[part.kind], pipe, file, strength)
    return tokens


def call_arguments(pipe: Any, folder: Path) -> dict[str, Any]:
    """The arguments that `load_style` returns. Sets the scheduler."""
    noises = [noise_file.read(file) for file in part_files(folder, NOISE)]
    if not noises:
        return {}
    own, size = checked(read_style_json(folder).get("sampling", {}), str(folder / STYLE_JSON)), noises[0].info.size
    if (name := own.get("sampler", DEFAULT)) != DEFAULT:
        set_scheduler(pipe, name)
    if own.get("until") is not None:
        pipe.scheduler = start_at(pipe.scheduler, own["until"])
    latents = mix([one.noise for one in noises], [1 / len(noises)] * len(noises), generator(0, 0, "mix of noises"))
    latents = latents.to(pipe.device, pipe.dtype)
    if hasattr(pipe, "_pack_latents"):  # FLUX: tokens of 2 x 2 latents
        latents = pipe._pack_latents(latents, *latents.shape)
    call = {"latents": latents, "height": size, "width": size, "num_inference_steps": noises[0].info.steps}
    return call | ({"guidance_scale": own["guidance"]} if "guidance" in own else {})


def load_inactive(pipe: Any, folder: Path, strength: float, name: str) -> None:
    """Put a style of one adapter of the denoiser into a pipeline as adapter `name`, which is not active: what was
    active stays so. Raises UserError as `load_style`, and for a style of more parts, or that replaces the base."""
    kinds, parts = adapter_kinds(), read_parts(folder) if folder.is_dir() else [Part("lora", "")]
    adapter = kinds.get(parts[0].kind)
    if len(parts) > 1 or adapter is None or adapter.replaces_base:
        raise UserError(
            f"{str(folder)!r} is more than one adapter of the denoiser: as a content it has to be that alone"
        )
    file = folder / parts[0].file if folder.is_dir() and (folder / parts[0].file).is_file() else style_file(folder)
    before = {layer: list(layer.active_adapters) for layer in tuner_layers(pipe)}
    load_adapter(adapter, pipe, file, strength, name)
    for layer in tuner_layers(pipe):
        layer._active_adapter = before.get(layer, [])
    where = [part for part, names in pipe.get_list_adapters().items() if name in names]
    if any(part.startswith("text_encoder") for part in where):
        raise UserError(
            f"{str(folder)!r} trains a text encoder as well: as a content it has to be the denoiser's alone"
        )


def load_adapter(adapter: Adapter, pipe: Any, file: Path, strength: float, name: str | None = None) -> None:
    """Put the denoiser's adapter into a pipeline, as adapter `name`; a free one by default."""
    if adapter.load is None:
        load_lora(pipe, file, strength, name)
        return
    tensors, metadata = read_file(file)
    with naming(file):
        check_finite(tensors)
        adapter.load(pipe, tensors, metadata, name or free_name(pipe), strength)


def free_name(pipe: Any) -> str:
    """A name that no adapter of the pipeline has."""
    taken = {known for names in pipe.get_list_adapters().values() for known in names}
    return next(free for n in count() if (free := f"style{n}") not in taken)


def load_lora(pipe: Any, file: Path, strength: float, name: str | None = None) -> None:
    """`pipe.load_lora_weights` and `pipe.set_adapters`, with the checks of `load_style`."""
    from impasto.interop.lora.read import check_architecture

    tensors, metadata = read_file(file)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    with naming(file):
        check_architecture(metadata, ARCHITECTURES.get(type(pipe).__name__))
        check_finite(tensors)
    fitted = check_fits(pipe, shapes, file)
    taken = {known for names in pipe.get_list_adapters().values() for known in names}
    name = name or free_name(pipe)
    before = [(layer, dict(layer.scaling)) for layer in tuner_layers(pipe)]
    active = list(dict.fromkeys(known for layer, _ in before for known in layer.active_adapters if known in taken))
    error = ""
    try:
        with quiet(), TemporaryDirectory() as folder:  # what is missing or unused is an error below
            source = file
            if fitted != shapes:
                source = Path(folder) / file.name
                write_tensors(source, {key: tensor.reshape(fitted[key]) for key, tensor in tensors.items()}, metadata)
            pipe.load_lora_weights(str(source.parent), weight_name=source.name, adapter_name=name)
    except Exception as raised:
        error = f"diffusers cannot load it: {str(raised).strip().splitlines()[0]}"
    else:
        loaded, there = {plain_key(key) for key in adapter_keys(pipe, name)}, {plain_key(key) for key in shapes}
        if loaded != there:
            missing, unused = sorted(loaded - there), sorted(there - loaded)
            error = f"missing {missing[:3]}, unused {unused[:3]} of {len(shapes)} tensors"
    strengths = dict.fromkeys(active, 1.0) | ({} if error else {name: strength})
    if error and any(name in names for names in pipe.get_list_adapters().values()):
        pipe.delete_adapters(name)
    if strengths:
        pipe.set_adapters(list(strengths), list(strengths.values()))
    for layer, scaling in before:  # the strengths as they were, which can differ by layer
        layer.scaling.update(scaling)
    if error:
        raise UserError(f"style {str(file)!r}: {error}")


def set_strength(pipe: Any, strength: float, but: Sequence[str] = ()) -> None:
    """Set the strength of all adapters of a pipeline but those with these names, as `load_weights` does."""
    for layer in tuner_layers(pipe):
        for name in layer.scaling:
            if name not in but:
                layer.set_scale(name, strength)


def replaces_base(style: Path) -> bool:
    """Whether a style replaces weights of the base: its strength is fixed when it is loaded."""
    kinds = adapter_kinds()
    parts = read_parts(style) if style.is_dir() else []
    return any(part.kind in kinds and kinds[part.kind].replaces_base for part in parts)


def tuner_layers(pipe: Any) -> list[Any]:
    """Layers of the pipeline's parts that carry adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    parts = [part for part in pipe.components.values() if isinstance(part, Module)]
    return [layer for part in parts for layer in part.modules() if isinstance(layer, BaseTunerLayer)]


def check_fits(pipe: Any, shapes: dict[str, tuple[int, ...]], file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes in which the pipeline takes the tensors, see `fitted_shape`. Raises UserError unless every tensor is
    half of a LoRA in diffusers' layout, on a layer that this pipeline has, in its width and kernel."""
    if other := [key for key in shapes if not IN_LAYOUT.fullmatch(peft_key(key))]:
        raise UserError(
            f"style {str(file)!r} is in another tool's layout: `impasto import {file} --out ...` reads it, or states "
            f"why not ({other[0]!r} first)"
        )
    fitted = {key: fitted_shape(pipe, key, shape) for key, shape in shapes.items()}
    wrong = [key for key, shape in fitted.items() if shape is None]
    if wrong or not shapes:
        of = f"{len(wrong)} of {len(shapes)} tensors do not fit, {wrong[0]!r} first" if wrong else "it is empty"
        raise UserError(f"style {str(file)!r} was not trained for this base: {of}")
    return {key: shape for key, shape in fitted.items() if shape is not None}


def fitted_shape(pipe: Any, key: str, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape in which the pipeline takes a half of a LoRA: a 1x1 convolution and a matrix are the same map. None
    when it has no such layer, or one of another width or kernel."""
    part, _, rest = peft_key(key).partition(".")
    layer, _, half = rest.rpartition(".lora_")
    size = layer_size(getattr(pipe, part, None), layer)
    if size is None or len(shape) < 2:
        return None
    columns, rows, kernel = size
    own = (shape[0], columns, *kernel) if half == "A.weight" else (rows, shape[1], *(1 for _ in kernel))
    return own if shape[:2] == own[:2] and same_kernel(shape[2:], own[2:]) else None


def layer_size(model: Any, layer: str) -> tuple[int, int, tuple[int, ...]] | None:
    """(in, out, kernel) of a linear layer, kernel (), or a convolution, seen through adapters that it carries; None
    when there is none."""
    if not hasattr(model, "text_model"):  # transformers 5 has CLIP's layers without it, files of all tools with it
        layer = layer.removeprefix("text_model.")
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        return None
    module = getattr(module, "base_layer", module)
    for rows, columns in (("in_features", "out_features"), ("in_channels", "out_channels")):
        if hasattr(module, rows) and hasattr(module, columns):
            return getattr(module, rows), getattr(module, columns), tuple(getattr(module, "kernel_size", ()))
    return None


def peft_key(key: str) -> str:
    """A tensor's name with peft's names of the halves, see `write.OLDER_TEXT_HALVES`."""
    for older, half in zip(OLDER_TEXT_HALVES, ("lora_A", "lora_B"), strict=True):
        key = key.replace(f".{older}.", f".{half}.")
    return key


def plain_key(key: str) -> str:
    """`peft_key` without CLIP's "text_model.", which is in files but not in every model."""
    return peft_key(key).replace(".text_model.", ".", 1)


def adapter_keys(pipe: Any, name: str) -> Iterable[str]:
    """Names under which the pipeline's parts hold the tensors of adapter `name`, as in a file."""
    from peft.utils import get_peft_model_state_dict

    for part, models in pipe.get_list_adapters().items():
        if name in models:
            tensors = get_peft_model_state_dict(getattr(pipe, part), adapter_name=name)
            yield from (f"{part}.{key}" for key in tensors)
