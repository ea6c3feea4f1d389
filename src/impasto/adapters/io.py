"""Style folders: `pytorch_lora_weights.safetensors` as diffusers reads it, written and read without a silent loss."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import Module

from impasto.adapters import text
from impasto.adapters.layouts import ARCHITECTURES
from impasto.errors import UserError
from impasto.families.base import Family, quiet
from impasto.paths import atomic

WEIGHTS = "pytorch_lora_weights.safetensors"
HASH = "modelspec.hash_sha256"
OTHER_LAYOUTS = (
    "lora_unet_",
    "lora_te",
    "lora_transformer_",
    "diffusion_model.",
    "text_encoders.",
    "base_model.model.",
)


def save(family: Family, folder: Path) -> Path:
    """Write the adapters of `family` to `folder`, alpha and all in their metadata; returns the file."""
    from peft.utils import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(family.denoiser, adapter_name="default")
    metadata = family.denoiser.peft_config["default"].to_dict()
    with atomic(folder / WEIGHTS) as file:
        own = {family.part: ({k: v.cpu() for k, v in tensors.items()}, metadata)}
        family.save_adapter(file, own | text.state(family))
        write_tensors(file, *read_file(file))
    return folder / WEIGHTS


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """A safetensors file that knows its own content: `modelspec.hash_sha256`, of the bytes behind the header.

    The same tensors and metadata make the same bytes, and so the same `style_hash`: safetensors itself writes metadata
    in another order each time, so the header (its length in 8 bytes, JSON, spaces up to a multiple of 8) is ours.
    """
    from safetensors.torch import save

    data = memoryview(save(dict(tensors)))
    start = 8 + int.from_bytes(data[:8], "little")
    digest = hashlib.sha256(data[start:]).hexdigest()
    own = {"format": "pt", HASH: f"0x{digest}", "impasto.version": version("impasto")}
    told = {"__metadata__": dict(sorted({**metadata, **own}.items()))} | json.loads(bytes(data[8:start]))
    header = json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with file.open("wb") as stream:
        for part in (len(header).to_bytes(8, "little"), header, data[start:]):
            stream.write(part)


def read_file(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises UserError when it is damaged, or is none: see `check_file`."""
    check_file(file)
    with safe_open(file, "pt") as opened:
        return {key: opened.get_tensor(key) for key in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise UserError that names a tensor with infinities or NaN in it, which would draw black."""
    for name, tensor in tensors.items():
        if not tensor.float().isfinite().all():
            raise UserError(f"tensor {name!r} holds what is no finite number")


def check_file(file: Path) -> None:
    """Raise UserError unless `file` is a whole safetensors file; one of ours has to match the hash that it states."""
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
    except SafetensorError as error:
        with file.open("rb") as stream:
            if stream.read(2) in (b"PK", b"\x80\x02", b"\x80\x04"):
                raise UserError(f"{file} is a pickle under another name: it can run code and is not read") from None
        raise UserError(f"{file} is damaged: {error}") from None
    if "impasto.version" in metadata and HASH in metadata:
        with file.open("rb") as stream:
            stream.seek(int.from_bytes(stream.read(8), "little"), 1)
            if f"0x{hashlib.file_digest(stream, 'sha256').hexdigest()}" != metadata[HASH]:
                raise UserError(f"{file} is damaged: its tensors are not those that were saved, make or copy it again")


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

    For plain LoRA it is `pipe.load_lora_weights` and `pipe.set_adapters`, and nothing is to be passed. Adapters that
    are active, also those that you loaded yourself, stay so, at the strengths that they have. Raises UserError when
    the file is damaged or holds what is no finite number, when it belongs to another base (by its shapes, or as it
    says itself), or when any of its tensors is not used.
    """
    from impasto.adapters.parse import agreed

    file = style_file(folder)
    tensors, metadata = read_file(file)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    with naming(file):
        agreed(metadata, ARCHITECTURES.get(type(pipe).__name__))
        check_finite(tensors)
    check_fits(pipe, shapes, file)
    del tensors
    taken = {known for names in pipe.get_list_adapters().values() for known in names}
    name = next(free for n in count() if (free := f"style{n}") not in taken)
    before = [(layer, dict(layer.scaling)) for layer in lora_layers(pipe)]
    active = list(dict.fromkeys(known for layer, _ in before for known in layer.active_adapters if known in taken))
    with quiet():  # what is missing or unused is said below, as an error
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=name)
    loaded, there = {plain_key(key) for key in adapter_keys(pipe, name)}, {plain_key(key) for key in shapes}
    strengths = dict.fromkeys(active, 1.0) | {name: strength}
    if loaded != there:
        pipe.delete_adapters(name)
        del strengths[name]
    if strengths:
        pipe.set_adapters(list(strengths), list(strengths.values()))
    for layer, scaling in before:  # the strengths as they were, which can differ by layer
        layer.scaling.update(scaling)
    if loaded != there:
        missing, unused = sorted(loaded - there), sorted(there - loaded)
        raise UserError(f"style {str(folder)!r}: missing {missing[:3]}, unused {unused[:3]} of {len(shapes)} tensors")
    return {}


def lora_layers(pipe: Any) -> list[Any]:
    """Layers of the pipeline's parts that carry adapters."""
    from peft.tuners.lora import LoraLayer

    parts = [part for part in pipe.components.values() if isinstance(part, Module)]
    return [layer for part in parts for layer in part.modules() if isinstance(layer, LoraLayer)]


def check_fits(pipe: Any, shapes: dict[str, tuple[int, ...]], file: Path) -> None:
    """Raise UserError unless every tensor is half of a LoRA on a layer that this pipeline has, in its width."""
    wrong = []
    if any(key.startswith(OTHER_LAYOUTS) for key in shapes):
        raise UserError(f"style {str(file)!r} is in another tool's layout: `impasto import {file} --out ...` reads it")
    for key, shape in shapes.items():
        part, _, rest = key.partition(".")
        layer, half, _ = rest.rpartition(".lora_")
        width = layer_width(getattr(pipe, part, None), layer)
        side = 0 if rest.endswith("_A.weight") else 1  # A has the inputs as columns, B the outputs as rows
        if not (half and width and len(shape) > 1 and shape[1 - side] == width[side]):
            wrong.append(key)
    if wrong or not shapes:
        of = f"{len(wrong)} of {len(shapes)} tensors do not fit, {wrong[0]!r} first" if wrong else "it is empty"
        raise UserError(f"style {str(file)!r} was not trained for this base: {of}")


def layer_width(model: Any, layer: str) -> tuple[int, int] | None:
    """(in, out) of a linear or convolution layer, seen through adapters that it carries; None when there is none."""
    if not hasattr(model, "text_model"):  # transformers 5 has CLIP's layers without it, files of all tools with it
        layer = layer.removeprefix("text_model.")
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        return None
    module = getattr(module, "base_layer", module)
    for rows, columns in (("in_features", "out_features"), ("in_channels", "out_channels")):
        if hasattr(module, rows) and hasattr(module, columns):
            return getattr(module, rows), getattr(module, columns)
    return None


def plain_key(key: str) -> str:
    """A tensor's name without CLIP's "text_model.", which is in files but not in every model."""
    return key.replace(".text_model.", ".", 1)


def adapter_keys(pipe: Any, name: str) -> Iterable[str]:
    """Names under which the pipeline's parts hold the tensors of adapter `name`, as in a file."""
    from peft.utils import get_peft_model_state_dict

    for part, models in pipe.get_list_adapters().items():
        if name in models:
            tensors = get_peft_model_state_dict(getattr(pipe, part), adapter_name=name)
            yield from (f"{part}.{key}" for key in tensors)
