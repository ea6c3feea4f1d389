"""The planner: what fits a device, how a run should use it, how long a step will take.

Estimates, for LoRA on a frozen base with cached latents and texts; T tokens of width D in L blocks, batch n:

    weights       2 bytes each in bf16 (4 in fp32); linear layers of blocks in int8 or fp8 1.03, in nf4 .5625
    adapter       per trained weight 4 (itself) + 4 (gradient) + 4 (where it began) + optimiser + 4 with EMA
    activations   A = n 60 T D L bytes in bf16: what autograd keeps of all blocks (twice that in fp32);
                  a U-Net sums 60 T D per transformer layer and 16 T D per resnet over its levels
    with share s of the blocks computed again: (1 - s) A + s n 2 T D L (their inputs) + A / L (the one at work)
    text encoders with --text lora the CLIPs stay: their weights, never quantised nor computed again, their
                  LoRA as the adapter, n 34 T D L of activations (Korthikanti et al. 2022, arXiv 2205.05198, eq. 2
                  without the attention matrix, which is not kept)
    prior         with --prior.weight n counts its pictures as well: both passes are held until the backward one
    shards        of a base sharded over W processes each has 1 / W of its blocks' weights, and two blocks whole
    offload       two blocks' linear layers, and everything that is none
    overhead      1.5 GB (context, workspaces, the allocator's gaps) + 3 % of the rest
    time          n (2 F_lin + 3.5 F_att + s (F_lin + F_att)) / (.5 peak): F_lin = 2 sum of weights x tokens, F_att =
                  4 T^2 D L forward; backward costs as much again (attention 2.5 times), as frozen weights need no
                  gradient; half of the matmul peak is what is sustained. Every picture of the prior, and with
                  DCO of the batch, costs F_lin + F_att more: the base's own prediction
    teacher       of a distillation: its weights, and F_lin + F_att a picture

Before that the autoencoder (.35 GB in fp32 and 2 KB a pixel) encodes the pictures, then the text encoders the captions,
one after the other, with nothing else there; text encoders without room (T5-XXL: 9.5 GB) do so in main memory.

60 bytes is what SimpleTuner's published table shows for SD3-medium at 1024 px (34.6 GiB without, 7.7 GiB with full
checkpointing, 24 blocks, batch 3), and gives SDXL 6.6 GiB, where that table shows 6.5; see docs/training.md. Of a
device that is not in PEAKS the time is not known, and this is stated.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import nn

from impasto.adapters.base import adapter_of
from impasto.adapters.text_encoder import LAYERS, ClipLoRA, build_text
from impasto.data.config import DataConfig
from impasto.devices import GB, SPARE, Device, device
from impasto.errors import UserError
from impasto.execution.apply import NOT_QUANTIZED, ExecutionPlan, check, in_block, no_compiler
from impasto.execution.config import ExecutionConfig
from impasto.families.base import Family
from impasto.optim import optimizers
from impasto.optim.config import OptimConfig

SUSTAINED, WORTH_COMPILING = 0.5, 300
SLOWER = {"none": 1.0, "fp8": 1.15, "int8": 1.3, "nf4": 1.5}  # dequantising, per step
FACTOR = {"none": 1.0, "fp8": 1.03 / 2, "int8": 1.03 / 2, "nf4": 0.5625 / 2}  # of a bf16 weight
TEXT_TOKENS = 77
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


class TrainSettings(Protocol):
    """The part of a TrainConfig that memory and time depend on."""

    @property
    def data(self) -> DataConfig: ...

    @property
    def objective(self) -> Any: ...

    @property
    def prior(self) -> Any: ...

    @property
    def adapter(self) -> Any: ...

    @property
    def text(self) -> Any: ...

    @property
    def optim(self) -> OptimConfig: ...

    @property
    def execution(self) -> ExecutionConfig: ...

    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Size:
    """A base and a run in numbers. Per picture: activations and block inputs in bytes, FLOP of layers and attention.

    checkpoints: whether the model has gradient checkpointing. clip_...: of the text encoders where they are trained;
    their adapter is part of `adapter`.
    """

    weights: int
    block_weights: int
    adapter: int
    blocks: int
    activations: float
    inputs: float
    linear: float
    attention: float
    checkpoints: bool = True
    clip_weights: int = 0
    clip_activations: float = 0.0
    clip_flop: float = 0.0


def meta_model(family: Family) -> nn.Module:
    """The denoiser without its weights, to be read only."""
    return meta_model_of(json.dumps(config_of(family, family.part), sort_keys=True))


@lru_cache(maxsize=4)
def meta_model_of(config: str) -> nn.Module:
    """`meta_model` by its configuration (JSON), made once for an outline and the family itself: SD3.5's table of
    positions takes seconds."""
    import diffusers
    from accelerate import init_empty_weights

    settings = json.loads(config)
    with init_empty_weights():
        return getattr(diffusers, settings["_class_name"]).from_config(settings)


def meta_clips(family: Family) -> list[Any]:
    """The CLIP text encoders without their weights."""
    import transformers
    from accelerate import init_empty_weights

    from impasto.families.files import explain_load_errors

    index = json.loads((family.folder / "model_index.json").read_text(encoding="utf-8"))
    models = []
    for part in family.clip_parts:
        kind = getattr(transformers, index[part][1])
        with explain_load_errors(family.folder, part), init_empty_weights():
            models.append(kind(kind.config_class.from_pretrained(family.folder / part)))
    return models


def config_of(family: Any, part: str) -> dict[str, Any]:
    """What a component's config.json says. Raises UserError when it cannot be read, or names no class."""
    config = family.config(part)
    _ = config["_class_name"]  # checked here: in `meta_model_of` it is JSON
    return config


def size_of(model: Any, family: Any, config: TrainSettings, vae_factor: int = 8) -> Size:
    """Size of training `model` (on any device, also meta) as `config` says. family: kinds and modules only."""
    side = config.data.size // vae_factor
    linear, in_blocks = 0.0, 0
    masked, tokens_of, blocks_of = hasattr(model, "mlm_layer"), stream_tokens, stream_blocks
    if hasattr(model, "down_blocks"):
        tokens_of, blocks_of = unet_tokens, unet_blocks
    elif masked:
        tokens_of, blocks_of = masked_tokens, masked_blocks
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            linear += 2 * layer.weight.numel() * tokens_of(name, model, side)
        in_blocks += layer.weight.numel() if in_block(layer, name) else 0
    blocks, activations, inputs, attention = blocks_of(model.config, side)
    total = sum(p.numel() for p in model.parameters())
    trained = adapter_of(config.adapter).count(family, config.adapter, model)
    return Size(total, in_blocks, trained, blocks, activations, inputs, linear, attention, not masked)


def with_clips(size: Size, clips: Sequence[Any], rank: int) -> Size:
    """`size` with text encoders (on any device, also meta) that are trained as well, by a LoRA of this rank."""
    weights, adapter, activations, flop = 0, 0, 0.0, 0.0
    for clip in clips:
        weights += sum(p.numel() for p in clip.parameters())
        c = clip.config
        tokens = min(TEXT_TOKENS, c.max_position_embeddings)
        activations += 34.0 * tokens * c.hidden_size * c.num_hidden_layers
        for name, layer in clip.named_modules():
            if isinstance(layer, nn.Linear):
                flop += 2.0 * layer.weight.numel() * tokens
                trained = name.rpartition(".")[2] in LAYERS
                adapter += rank * (layer.in_features + layer.out_features) if trained else 0
    return replace(
        size, adapter=size.adapter + adapter, clip_weights=weights, clip_activations=activations, clip_flop=flop
    )


def streams(config: Mapping[str, Any], side: int) -> tuple[int, int]:
    """(picture tokens, text tokens) of a transformer: patches of 2 x 2 latents; 77 + 256 or, in FLUX, 512 of text."""
    return (side // 2) ** 2, 512 if "num_single_layers" in config else TEXT_TOKENS + 256


def stream_tokens(name: str, model: Any, side: int) -> int:
    """Tokens that a transformer's layer sees: modulation one, the text's layers the text, joint blocks all."""
    picture, text = streams(model.config, side)
    if "norm" in name or "time" in name:
        return 1
    if "single_transformer_blocks" in name:
        return picture + text
    return text if "add_" in name or "context" in name else picture


def stream_blocks(config: Mapping[str, Any], side: int) -> tuple[int, float, float, float]:
    """(blocks, activations, inputs, attention FLOP) of a transformer with a picture's and a text's stream."""
    tokens, width = sum(streams(config, side)), config["num_attention_heads"] * config["attention_head_dim"]
    blocks = config["num_layers"] + config.get("num_single_layers", 0)
    return blocks, 60.0 * tokens * width * blocks, 2.0 * tokens * width * blocks, 4.0 * tokens**2 * width * blocks


def masked_side(config: Mapping[str, Any], side: int) -> int:
    """Places per side of the layers of a transformer of masked tokens, of `side` tokens per side."""
    return side // 2 if config["downsample"] else side


def masked_tokens(name: str, model: Any, side: int) -> int:
    """Positions that a layer of a transformer of masked tokens sees: modulation one, the text's layers the text, the
    first and last layers every token."""
    if "norm" in name or "cond_embed" in name:
        return 1
    if "attn2.to_k" in name or "attn2.to_v" in name or "kv_mapper" in name or name == "encoder_proj":
        return TEXT_TOKENS
    return side**2 if name.startswith(("embed.", "mlm_layer.")) else masked_side(model.config, side) ** 2


def masked_blocks(config: Mapping[str, Any], side: int) -> tuple[int, float, float, float]:
    """The same of a transformer of masked tokens, with the logits of all codes, in float32 for the loss as well."""
    tokens, width, outer = masked_side(config, side) ** 2, config["hidden_size"], config["block_out_channels"]
    layers, ends = config["num_hidden_layers"], 2 * config["num_res_blocks"]
    logits = 10.0 * side**2 * config["codebook_size"]
    activations = 60.0 * tokens * width * layers + (60.0 + 16.0) * tokens * outer * ends + logits
    attention = 4.0 * tokens * (tokens + TEXT_TOKENS) * (width * layers + outer * ends)
    return layers + 2 * ends, activations, 2.0 * tokens * (width * layers + 2 * outer * ends), attention


def unet_tokens(name: str, model: Any, side: int) -> int:
    """Positions that a U-Net's layer sees, by its level; keys and values of the text see that."""
    if "attn2.to_k" in name or "attn2.to_v" in name:
        return TEXT_TOKENS
    if "time" in name or "add_embedding" in name:
        return 1
    levels = len(model.config["block_out_channels"])
    part, *rest = name.split(".")
    level = {"down_blocks": lambda i: i, "up_blocks": lambda i: levels - 1 - i}.get(part)
    deep = levels - 1 if part == "mid_block" else level(int(rest[0])) if level and rest else 0
    return (side >> deep) ** 2


def unet_blocks(config: Mapping[str, Any], side: int) -> tuple[int, float, float, float]:
    """The same of a U-Net: blocks are its resnets and transformer layers."""
    widths, n = config["block_out_channels"], config["layers_per_block"]
    depth = config.get("transformer_layers_per_block", 1)
    depths = [depth] * len(widths) if isinstance(depth, int) else list(depth)
    blocks, activations, inputs, attention = 0, 0.0, 0.0, 0.0
    for level, (width, deep) in enumerate(zip(widths, depths, strict=True)):
        last = level == len(widths) - 1
        tokens, resnets = (side >> level) ** 2, 2 * n + 1 + 2 * last
        layers = (2 * n + 1) * deep if "Attn" in config["down_block_types"][level] else 0
        layers += deep if last and config.get("mid_block_type", "UNetMidBlock2DCrossAttn") else 0
        blocks += resnets + layers
        activations += tokens * width * (60.0 * layers + 16.0 * resnets)
        inputs += 2.0 * tokens * width * (layers + resnets)
        attention += 4.0 * tokens**2 * width * layers
    return blocks, activations, inputs, attention


def memory(
    size: Size, config: TrainSettings, running: ExecutionPlan, precision: str = "bf16", shards: int = 1
) -> float:
    """Bytes at the peak of a step, by the module's formulas."""
    unit, s = (1.0 if precision == "bf16" else 2.0), running.checkpointing
    rest, teacher = (size.weights - size.block_weights) * 2 * unit, size.weights * 2 * unit
    if adapter_of(config.adapter).replaces_base:  # they are the adapter
        size = replace(size, weights=0, block_weights=0)
        rest = 0.0
    rest += config.objective.teachers * teacher
    blocks = size.block_weights * 2 * unit * (FACTOR[running.quantize] / (unit if running.quantize != "none" else 1))
    if running.offload or shards > 1:
        blocks = (0.0 if running.offload else blocks / shards) + 2 * blocks / size.blocks
    per_weight = 12 + optimizers.choice(config.optim.optimizer).state_bytes + (4 if config.optim.ema else 0)
    kept = (1 - s) * size.activations + s * size.inputs + (size.activations / size.blocks if s else 0)
    activations = (config.optim.batch + prior_pictures(config)) * kept + config.optim.batch * size.clip_activations
    rest += size.clip_weights * 2 * unit
    return 1.03 * (rest + blocks + size.adapter * per_weight + unit * activations) + 1.5 * GB


def prior_pictures(config: TrainSettings) -> int:
    """Pictures of the base that go through beside a batch, see `objectives.prior`."""
    return min(config.prior.batch, config.optim.batch) if config.prior.weight else 0


def seconds(size: Size, config: TrainSettings, running: ExecutionPlan, of: Device) -> float | None:
    """Seconds of an optimiser step, None on a device that is not known. Offloading adds the way over PCIe (20 GB/s),
    there and back."""
    if of.peak is None:
        return None
    s, n, prior = running.checkpointing, config.optim.batch, prior_pictures(config)
    extra = config.objective.extra_forwards
    forward = size.linear + size.attention
    flop = (n + prior) * (2 * size.linear + 3.5 * size.attention + s * forward) + n * 2 * size.clip_flop
    compared = prior if config.prior.target == "prediction" else 0
    flop += (compared + n * extra) * forward
    passes = (1 + s) * (1 + (prior > 0)) + (compared > 0) + extra
    moved = passes * 2 * 2 * size.block_weights / 20e9 if running.offload else 0.0
    return config.optim.accumulate * (flop / (SUSTAINED * of.peak) * SLOWER[running.quantize] + moved)


def candidates(config: ExecutionConfig, of: Device, shards: int = 1) -> list[ExecutionPlan]:
    """What may be chosen, best first: the base as it is before a quantised one, that before one that is fetched over
    and over; within each the fewest blocks computed again. What a flag says is not varied; a base that is sharded
    stays as it is."""
    fp8 = of.kind == "cuda" and torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
    known = ["fp8" if fp8 else "int8"] * bool(find_spec("torchao")) + ["nf4"] * bool(find_spec("bitsandbytes"))
    kinds = ["none", *(known if shards == 1 else [])] if config.quantize == "auto" else [config.quantize]
    shares = SHARES if config.checkpointing is None else (config.checkpointing,)
    found = (
        [ExecutionPlan(share, quantize=kind) for kind in kinds for share in shares] if config.offload != "on" else []
    )
    may = config.offload != "off" and shards == 1
    if may and config.quantize in NOT_QUANTIZED and config.checkpointing in (None, 1.0):
        found.append(ExecutionPlan(1.0, offload=True))
    return [replace(running, attention=config.attention) for running in found]


def choose(config: TrainSettings, of: Device, size: Size | None, precision: str, shards: int = 1) -> ExecutionPlan:
    """How to run on a device. size: None when the base is not here. shards: over how many processes the base is
    sharded. Raises UserError where a flag cannot be had."""
    flags = config.execution
    if adapter_of(config.adapter).replaces_base:
        flags = replace(flags, quantize="none", offload="off")
    check(flags, of.kind, shards)
    if size is not None and not size.checkpoints:
        if flags.checkpointing or flags.offload == "on":
            raise UserError("this base has no gradient checkpointing: leave out --checkpointing and --offload")
        flags = replace(flags, checkpointing=0.0, offload="off")
    asked = ExecutionPlan(
        flags.checkpointing or 0.0,
        flags.compile == "on",
        flags.attention,
        flags.offload == "on",
        "none" if flags.quantize == "auto" else flags.quantize,
    )
    if flags.offload == "on":
        asked = replace(asked, checkpointing=1.0)
    if of.free is None or size is None:
        why = f"on {of.kind} nothing is traded for memory" if of.free is None else "the base is not here yet"
        return replace(asked, why=(f"{why}: only what the flags say",))
    options = candidates(flags, of, shards)
    needs = [memory(size, config, running, precision, shards) for running in options]
    fitting = [i for i, need in enumerate(needs) if need <= SPARE * of.free]
    chosen = fitting[0] if fitting else len(options) - 1
    best, room = options[chosen], of.free / GB
    split = f", sharded over {shards} processes" if shards > 1 else ""
    why = [f"{describe(best)}{split}: about {needs[chosen] / GB:.0f} of {room:.0f} GB ({of.name})"]
    plain = options[0]
    if best != plain:
        why.append(f"{describe(plain)} would take about {needs[0] / GB:.0f} GB")
    if not fitting:
        why.append("that does not fit by the estimate: a smaller --size or --batch would")
    step = seconds(size, config, best, of)
    if step is None:
        why.append(f"how long a step takes on {of.name} is not known")
    else:
        minutes = step * config.optim.steps / 60
        why.append(f"a step takes about {step:.2g} s, {config.optim.steps} steps {minutes:.2g} min")
    long = flags.compile == "auto" and step is not None and step * config.optim.steps > WORTH_COMPILING
    worth = long and not best.offload and no_compiler(of.kind) is None
    if worth:
        why.append("compiled, as the run is longer than 5 minutes")
    return replace(best, compile=worth or flags.compile == "on", why=tuple(why))


def describe(running: ExecutionPlan) -> str:
    """What it trades, in words."""
    share = f"{running.checkpointing:.0%} of the blocks" if running.checkpointing else "no block"
    parts = [f"{share} computed again"]
    parts += [f"the base in {running.quantize}"] if running.quantize != "none" else []
    return ", ".join([*parts, *(["the base in main memory"] if running.offload else [])])


def choose_execution(
    config: TrainSettings, family: Family | None, name: str, precision: str, shards: int = 1
) -> ExecutionPlan:
    """`choose` for the device called `name`; the base's size is looked at only where it can matter."""
    of = device(name)
    size = None
    if of.free is not None and family is not None:
        factor = 2 ** (len(config_of(family, family.autoencoder_part)["block_out_channels"]) - 1)
        size = size_of(meta_model(family), family, config, factor)
        if isinstance(text := build_text(config), ClipLoRA):
            size = with_clips(size, meta_clips(family), text.rank)
    return choose(config, of, size, precision, shards)


def oom_hint_prepare(config: TrainSettings) -> str:
    """What to change when memory ran out while pictures and captions were prepared."""
    size = f", or with another --out try --size {config.data.size // 2}" if config.data.size > 256 else ""
    return f"that was while encoding pictures and captions, not training: free the device of other programs{size}"


def oom_hint_train(config: TrainSettings, running: ExecutionPlan, device: str = "") -> str:
    """What to change when memory ran out, cheapest first: what the run goes on with (config.FREE), and what makes it
    another one. device: where the base may lie in main memory beside it, see `running.check`."""
    free = ["--checkpointing 1"] if running.checkpointing < 1 else []
    may = device.startswith("cuda") and running.quantize == "none" and not running.offload
    free += ["--offload on"] if may and not free else []
    tips = [f"--batch 1 (it is {config.optim.batch}; --accumulate makes up for it)"] if config.optim.batch > 1 else []
    tips += ["--optimizer adamw8bit"] if config.optim.optimizer in ("adamw", "prodigy") else []
    tips += ["--quantize nf4"] if running.quantize != "nf4" and not running.offload else []
    tips += [f"--size {config.data.size // 2}"] if config.data.size > 256 else []
    hints = [f"the same command with {free[0]} goes on"] if free else []
    hints += [f"with another --out try {', or '.join(tips[:3])}"] if tips else []
    return "; ".join(hints) or "this device is too small for this base"
