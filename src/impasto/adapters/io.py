"""Style folders: `pytorch_lora_weights.safetensors` as diffusers reads it, written and read without a silent loss."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from impasto.errors import UserError
from impasto.families.base import Family
from impasto.paths import atomic

WEIGHTS = "pytorch_lora_weights.safetensors"


def save(family: Family, folder: Path) -> Path:
    """Write the adapter of `family.denoiser` to `folder`, alpha and all in its metadata; returns the file."""
    from peft.utils import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(family.denoiser, adapter_name="default")
    metadata = family.denoiser.peft_config["default"].to_dict()
    with atomic(folder / WEIGHTS) as file:
        family.save_adapter(file, {k: v.cpu() for k, v in tensors.items()}, metadata)
    return folder / WEIGHTS


def style_file(path: Path | str) -> Path:
    """The weights of a style: the file itself, or the one in its folder. Raises UserError when there is none."""
    path = Path(path)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        state = path / "state"
        why = "its training has not finished (the same command goes on)" if state.is_dir() else f"no {WEIGHTS} there"
        raise UserError(f"style {str(path)!r} cannot be loaded: {why if path.is_dir() else 'no such file or folder'}")
    if file.suffix != ".safetensors":
        raise UserError(f"style {str(path)!r} is not a safetensors file: other formats can run code and are not read")
    return file


def style_hash(path: Path | str) -> str:
    """sha256 of a style's weights."""
    with style_file(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_style(pipe: Any, folder: Path | str, strength: float = 1.0) -> dict[str, Any]:
    """Put a style into a plain diffusers pipeline, on top of those that are there; returns the call's extra arguments.

    For plain LoRA it is `pipe.load_lora_weights` and `pipe.set_adapters`, and nothing is to be passed. Raises
    UserError when the file is damaged, when it belongs to another base, or when any of its tensors is not used.
    """
    file = style_file(folder)
    shapes = read_shapes(file)
    check_fits(pipe, shapes, file)
    styles: dict[str, float] = pipe.__dict__.setdefault("impasto_styles", {})
    name = f"style{len(styles)}"
    pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    loaded = set(adapter_keys(pipe, name))
    if loaded != set(shapes):
        missing, unused = sorted(loaded - set(shapes)), sorted(set(shapes) - loaded)
        pipe.delete_adapters(name)
        raise UserError(f"style {str(folder)!r}: missing {missing[:3]}, unused {unused[:3]} of {len(shapes)} tensors")
    styles[name] = strength
    pipe.set_adapters(list(styles), list(styles.values()))
    return {}


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a safetensors file."""
    try:
        with safe_open(file, "pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{file} is damaged: {error}") from None


def check_fits(pipe: Any, shapes: dict[str, tuple[int, ...]], file: Path) -> None:
    """Raise UserError unless every tensor is half of a LoRA on a layer that this pipeline has, in its width."""
    wrong = []
    for key, shape in shapes.items():
        part, _, rest = key.partition(".")
        layer, half, _ = rest.rpartition(".lora_")
        width = layer_width(getattr(pipe, part, None), layer)
        ok = half and width and (shape[1] == width[0] if rest.endswith("_A.weight") else shape[0] == width[1])
        if not ok:
            wrong.append(key)
    if wrong or not shapes:
        of = f"{len(wrong)} of {len(shapes)} tensors do not fit, {wrong[0]!r} first" if wrong else "it is empty"
        raise UserError(f"style {str(file)!r} was not trained for this base: {of}")


def layer_width(model: Any, layer: str) -> tuple[int, int] | None:
    """(in, out) of a linear layer, seen through the adapters it may already carry; None when there is none."""
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        return None
    module = getattr(module, "base_layer", module)
    width = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return width if None not in width else None  # type: ignore[return-value]


def adapter_keys(pipe: Any, name: str) -> Iterable[str]:
    """Names under which the pipeline's parts hold the tensors of adapter `name`, as in a file."""
    from peft.utils import get_peft_model_state_dict

    for part, models in pipe.get_list_adapters().items():
        if name in models:
            tensors = get_peft_model_state_dict(getattr(pipe, part), adapter_name=name)
            yield from (f"{part}.{key}" for key in tensors)
