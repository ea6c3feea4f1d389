"""How the denoiser is run: what trades time for memory, or memory for time. All but `quantize` leave the result alone.

    quantize       the frozen base in 8 or 4 bits: nf4 (bitsandbytes), int8 and fp8 (torchao, weights only)
    offload        the linear layers of the frozen base's blocks in main memory, each fetched when it computes
                   (diffusers' group offloading)
    checkpointing  a share of the blocks keeps only its input and is computed again in the backward pass
    compile        the repeated blocks by torch.compile, each kind once
    attention      another of diffusers' attention backends

What lies before the first layer with an adapter needs no flag: nothing there asks for a gradient, so autograd keeps
nothing of it, and late `--targets` (transformer_blocks.20.attn.to_q) are cheap by themselves.
"""

import copy
import math
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from impasto import devices
from impasto.errors import UserError, extra
from impasto.execution.config import ExecutionConfig
from impasto.families.base import Family, component_bytes, quiet

QUANTIZED = {
    "nf4": ("bitsandbytes", "4-bit NormalFloat (Dettmers et al. 2023, arXiv 2305.14314)"),
    "int8": ("torchao", "8-bit integers, one scale per output channel"),
    "fp8": ("torchao", "8-bit floats (e4m3), one scale per tensor or row"),
}
NOT_QUANTIZED = ("none", "auto")
FORWARD_ONLY = ("sage", "aiter")  # attention kernels without a backward pass


@dataclass(frozen=True)
class ExecutionPlan:
    """What is used; see the module's docstring. why: one line each, for people."""

    checkpointing: float = 0.0
    compile: bool = False
    attention: str = "auto"
    offload: bool = False
    quantize: str = "none"
    why: tuple[str, ...] = ()


def check(config: ExecutionConfig, device: str, shards: int = 1) -> None:
    """Raise UserError where a flag cannot be had on `device`, or with a base sharded over so many processes."""
    kind = device.split(":")[0]
    if shards > 1 and (config.offload == "on" or config.quantize not in NOT_QUANTIZED):
        flag = "--offload on" if config.offload == "on" else f"--quantize {config.quantize}"
        raise UserError(f"{flag} does not work with a base sharded over processes: leave one of them out")
    check_quantized(config.quantize, device)
    if config.offload == "on" and kind != "cuda":
        raise UserError(f"--offload on is for CUDA: on {kind} the base lies in main memory already")
    if config.offload == "on" and config.checkpointing not in (None, 1.0):
        raise UserError("--offload on saves nothing unless all blocks are computed again: --checkpointing 1")
    if config.offload == "on" and config.quantize not in NOT_QUANTIZED:
        raise UserError("--offload on and --quantize exclude each other: a quantised base fits, or use one of them")
    if config.compile == "on" and (reason := no_compiler(kind)):
        raise UserError(f"--compile on cannot be had here: {reason}")
    if config.attention.startswith(FORWARD_ONLY):
        raise UserError(f"--attention {config.attention} has no backward pass: it is for drawing, not for training")


def check_quantized(kind: str, device: str) -> None:
    """Raise UserError where a base cannot be had in fewer bits: the package is missing, or has nothing for `device`."""
    if kind in NOT_QUANTIZED:
        return
    package = QUANTIZED[kind][0]
    extra(package, "quant", f"--quantize {kind}")
    if device.startswith("mps"):
        raise UserError(f"--quantize {kind} does not run on mps: {package} has no kernels for it")


def no_compiler(device: str) -> str | None:
    """Why torch.compile cannot work on a device, None when it can."""
    if device == "cuda":
        return None if find_spec("triton") else "triton is not installed"
    if device != "cpu":
        return f"torch.compile does not train on {device}"
    return None if shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++") else "there is no C++ compiler"


def load_denoiser(running: ExecutionPlan, family: Family, sharded: bool = False) -> None:
    """Before an adapter is added: the base, quantised on the way to the device, or kept off it; one that will be
    sharded (`training.workers.Workers.shard`) stays in main memory."""
    if running.quantize == "none" and not running.offload and not sharded:
        return
    model = load_on(family, "cpu")
    if running.quantize != "none":
        quantize(model, running.quantize, family.dtype)
        model.to(family.device)
    if running.offload:
        offload(model, family.device)


def apply_execution(running: ExecutionPlan, family: Family, adapter: dict[str, nn.Parameter]) -> None:
    """After the adapter was added: everything else. Raises UserError where the base does not have it."""
    for p in adapter.values():  # an offloaded base took them to main memory
        p.data = p.data.to(family.device)
    if running.attention != "auto":
        attention(family.denoiser, running.attention)
    if running.checkpointing:
        checkpoint(family.denoiser, running.checkpointing, whole=running.offload)
    if running.compile:
        compile_blocks(family.denoiser)


def load_on(family: Family, device: str) -> Any:
    """The denoiser, read onto `device` when it was not read yet."""
    with placed(family, device):
        return family.denoiser


@contextmanager
def placed(family: Family, device: str) -> Iterator[None]:
    """What is read of the base in here lies on `device`."""
    own, family.device = family.device, device
    try:
        yield
    finally:
        family.device = own


def in_main_memory(family: Family) -> AbstractContextManager[None]:
    """Where a GPU will generate, what is read in here waits in CPU RAM for `place_pipeline`."""
    return placed(family, "cpu") if family.device.startswith("cuda") else nullcontext()


def place_pipeline(pipe: Any, family: Family, pixels: int) -> None:
    """Put a whole pipeline, styles and all, where it will draw so many pixels at once: on the GPU if it holds it; else
    part by part as they are used, or layer by layer, which a warning says. See `devices.inference_placement`."""

    if not family.device.startswith("cuda"):
        return
    sizes = component_bytes(pipe)
    free = torch.cuda.mem_get_info(family.device)[0]
    apply_placement(pipe, family.device, how := devices.inference_placement(sizes, pixels, free))
    if how != "whole":
        warnings.warn(
            f"the base takes {sum(sizes) / 1e9:.0f} GB and {free / 1e9:.0f} are free: it goes through the device "
            f"{how[3:]} by {how[3:]}, which is slower; --quantize int8 or nf4 makes it smaller",
            stacklevel=3,
        )


def apply_placement(pipe: Any, device: str, how: str) -> None:
    """how: "whole", "by part" (diffusers' model offloading) or "by layer" (its group offloading)."""
    with quiet():
        if how == "whole":
            pipe.to(device)
        elif how == "by part":
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.enable_group_offload(torch.device(device), torch.device("cpu"), offload_type="leaf_level")


def quantize(model: nn.Module, kind: str, dtype: torch.dtype) -> None:
    """The linear layers of the blocks in fewer bits; embedders, final layers, norms and convolutions stay, and all of
    it where `kind` is one of NOT_QUANTIZED."""
    if kind in NOT_QUANTIZED:
        return
    if QUANTIZED[kind][0] == "torchao":
        torchao = extra("torchao.quantization", "quant", f"--quantize {kind}")
        how = torchao.Int8WeightOnlyConfig() if kind == "int8" else torchao.Float8WeightOnlyConfig()
        torchao.quantize_(model, how, filter_fn=lambda layer, name: in_block(layer, name))
        return
    bnb = extra("bitsandbytes", "quant", f"--quantize {kind}")
    for name, layer in list(model.named_modules()):
        if in_block(layer, name):
            size = layer.in_features, layer.out_features
            new = bnb.nn.Linear4bit(*size, compute_dtype=dtype, quant_type=kind, device="meta")  # of no weights yet
            new.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type=kind)
            new.bias = layer.bias
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, new)


def in_block(layer: nn.Module, name: str) -> bool:
    """Whether it is a linear layer of a repeated block: somewhere above it is a number."""
    return type(layer) is nn.Linear and any(part.isdigit() for part in name.split(".")[:-1])


def offload(model: Any, device: str) -> None:
    """Each linear layer of the blocks goes to `device` for its forward pass and back; everything else stays there.

    A backward pass finds what it needs of them: autograd keeps the transposed weight, a tensor of its own, from the
    checkpointed forward that precedes that. Norms and convolutions keep the parameter itself, which by then would be
    back in main memory; they are small.
    """
    from diffusers.hooks import apply_group_offloading

    layers = [layer for name, layer in model.named_modules() if in_block(layer, name)]
    fetched = {id(p) for layer in layers for p in layer.parameters()}
    for tensor in [*model.parameters(), *model.buffers()]:
        if id(tensor) not in fetched:
            tensor.data = tensor.data.to(device)
    with quiet():
        for layer in layers:
            apply_group_offloading(layer, torch.device(device), torch.device("cpu"), "leaf_level")


class PartialCheckpointing:
    """Computes a share of the blocks again in the backward pass, evenly spread over the order of their first call.

    whole: to their end, also where nothing more is needed of it: a layer that is left in the middle of its forward pass
    would not go back to main memory.
    """

    def __init__(self, share: float, whole: bool = False) -> None:
        self.share, self.whole, self.order = share, whole, {}

    def chosen(self, i: int) -> bool:
        """Whether block i is: `floor((i + 1) share) > floor(i share)`."""
        return math.floor((i + 1) * self.share + 1e-9) > math.floor(i * self.share + 1e-9)

    def __call__(self, block: nn.Module, *args: Any) -> Any:
        from torch.utils.checkpoint import checkpoint

        if self.chosen(self.order.setdefault(block, len(self.order))):
            return checkpoint(block, *args, use_reentrant=False, early_stop=not self.whole)
        return block(*args)


def checkpoint(model: Any, share: float, whole: bool = False) -> None:
    """Gradient checkpointing of a share of the blocks. Raises UserError when the model has none."""
    if not getattr(model, "_supports_gradient_checkpointing", False):
        raise UserError(f"{type(model).__name__} has no gradient checkpointing: --checkpointing 0")
    model.enable_gradient_checkpointing(PartialCheckpointing(share, whole))


def compile_blocks(model: Any, **options: Any) -> None:
    """diffusers' regional compilation; for a model that names no repeated blocks, those of its lists of blocks."""
    if getattr(model, "_repeated_blocks", None):
        model.compile_repeated_blocks(**options)
        return
    for block in repeated(model):
        block.compile(**options)


def repeated(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a model: what its lists of modules hold."""
    for blocks in model.children():
        if isinstance(blocks, nn.ModuleList):
            yield from blocks


def check_attention(model: nn.Module, name: str) -> None:
    """Raise UserError where `attention` would; `model`, which may be on the meta device, stays as it is."""
    if name == "auto":
        return
    from diffusers.models.attention_dispatch import attention_backend

    with attention_backend():  # afterwards the active one is that of before
        attention(copy.deepcopy(model), name)


def attention(model: Any, name: str) -> None:
    """One of diffusers' attention backends. Raises UserError for a base whose attention does not ask for one, and
    where it is unknown or not installed."""
    processors = [layer.processor for layer in model.modules() if hasattr(layer, "processor")]
    if not any(hasattr(processor, "_attention_backend") for processor in processors):
        raise UserError(
            f"--attention {name} has no effect on {type(model).__name__}: its attention is torch's own, which picks "
            "the fastest kernel itself; leave it out"
        )
    try:
        with quiet():
            model.set_attention_backend(name)
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        raise UserError(f"--attention {name} cannot be had: {str(error).strip().splitlines()[0]}") from None
