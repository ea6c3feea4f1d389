"""Seconds and memory of a LoRA step on models of real size with random weights: FLUX.1-dev, SD3.5-large. No download.

    python benchmarks/real_size.py --out bench.json [--models flux-dev sd35-large] [--sizes 512 1024] [--seconds 530]

For every size in pixels, with and without gradient checkpointing, eager and with the repeated blocks compiled: seconds
per step (median), peak memory, and the share of the device's matrix rate. One step is what impasto does: rectified-flow
loss on a batch of one, LoRA of rank 32 in fp32 on the family's attention layers (the paper's lists), bf16 base weights,
AdamW. The count of operations is that of a step without checkpointing (frozen weights get no gradient), so that
recomputing does not count as work. Latents are size / 8; text is what the pipelines make of a prompt: 512 T5 tokens
(FLUX), 77 + 256 (SD3.5). Sizes and layers are the package's own (`bases/configs`, `families/*.py`).

It ends by itself: no variant begins without the time that it may need, and at --seconds an alarm stops what runs.
"""

import argparse
import gc
import json
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

PEAK = 790e12  # FLOP/s: bf16 matrix product of 8192^3 on random data, measured on an H200
CONFIGS = Path(__file__).resolve().parents[1] / "src" / "impasto" / "bases" / "configs"
GOALS = {("flux-dev", 512): 0.14, ("flux-dev", 1024): 0.5}  # seconds: 1.5 times the estimate of docs, on 500 TFLOP/s
EAGER, COMPILED = 15.0, 75.0  # seconds that a variant may need on an H200: none begins with less
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """A denoiser: its diffusers configuration, and the text tokens that its pipeline gives it."""

    name: str
    config: dict[str, Any]

    @property
    def flux(self) -> bool:
        return self.config["_class_name"] == "FluxTransformer2DModel"

    @property
    def text_tokens(self) -> int:
        return 512 if self.flux else 77 + 256

    @property
    def targets(self) -> list[str]:
        """Endings of the layers that get a LoRA: the family's kind "attention"."""
        from impasto.families import flux, sd3

        return list((flux if self.flux else sd3).KINDS["attention"])

    def blocks(self, model: Any) -> list[Any]:
        """What is compiled: the repeated blocks."""
        return [*model.transformer_blocks, *(model.single_transformer_blocks if self.flux else ())]


def read_size(name: str) -> Size:
    """A name of `bases/configs`, or the path of another denoiser's config.json."""
    file = Path(name) if name.endswith(".json") else CONFIGS / name / "transformer" / "config.json"
    return Size(name if file.is_relative_to(CONFIGS) else file.stem, json.loads(file.read_text()))


def make_model(size: Size, device: str, rank: int, dtype: torch.dtype = torch.float32) -> Any:
    """Random bf16 weights made on the device itself, frozen, with a LoRA in `dtype`."""
    import diffusers
    from peft import LoraConfig

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model: Any = getattr(diffusers, size.config["_class_name"]).from_config(size.config)
    finally:
        torch.set_default_dtype(before)
    model.requires_grad_(False).train()
    lora = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=size.targets)
    model.add_adapter(lora)
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.to(dtype)
    return model


def inputs(size: Size, pixels: int, device: str) -> dict[str, Tensor]:
    """The denoiser's arguments for one noisy latent, its noise level, and the text, in bf16."""
    kind: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    config, side = size.config, pixels // 8
    batch = {
        "encoder_hidden_states": torch.randn(1, size.text_tokens, config["joint_attention_dim"], **kind),
        "pooled_projections": torch.randn(1, config["pooled_projection_dim"], **kind),
    }
    if not size.flux:
        latent = torch.randn(1, config["in_channels"], side, side, **kind)
        return batch | {"hidden_states": latent, "timestep": torch.tensor([500.0], device=device)}
    rows = side // 2  # a token is 2 x 2 latents
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(rows), indexing="ij")
    batch["hidden_states"] = torch.randn(1, rows * rows, config["in_channels"], **kind)
    batch["timestep"] = torch.tensor([0.5], device=device)
    if config["guidance_embeds"]:
        batch["guidance"] = torch.ones(1, device=device)
    batch["txt_ids"] = torch.zeros(size.text_tokens, 3, device=device)
    batch["img_ids"] = torch.stack([torch.zeros_like(row), row, column], -1).view(-1, 3).float().to(device)
    return batch


def backward(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Loss and its gradient."""
    kind = batch["hidden_states"].device.type
    with nullcontext() if kind == "meta" else torch.autocast(kind, torch.bfloat16):
        v = model(**batch, return_dict=False)[0]
        loss = (v.float() - batch["hidden_states"].float()).pow(2).mean()
    loss.backward()
    return loss.detach()


def operations(size: Size, pixels: int, rank: int) -> int:
    """Floating-point operations of forward and backward, counted on shapes alone."""
    model = make_model(size, "meta", rank, torch.bfloat16)  # one type: there is no autocast without a device
    with FlopCounterMode(display=False) as counter:
        backward(model, inputs(size, pixels, "meta"))
    return counter.get_total_flops()


def measure(model: Any, batch: dict[str, Tensor], steps: int, limit: float) -> Row:
    """Median seconds per step after two for warming up; peak memory in GB. Stops early after `limit` seconds."""
    cuda = batch["hidden_states"].device.type == "cuda"
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds, first, loss, begun = [], 0.0, 0.0, time.monotonic()
    for i in range(steps + 2):
        start = time.monotonic()
        loss = float(backward(model, batch))  # waits for the device, as the training's log does
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        took = time.monotonic() - start
        first = first or took
        if i >= 2:
            seconds.append(took)
        if seconds and time.monotonic() - begun > limit:
            break
    memory = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
    return {"seconds": statistics.median(seconds), "steps": len(seconds), "first": first, "memory_gb": memory,
            "loss": loss}  # fmt: skip


class OutOfTimeError(Exception):
    """The alarm went off."""


class Clock:
    """Seconds that are left of a budget."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    @contextmanager
    def alarm(self) -> Iterator[None]:
        """Raise OutOfTimeError inside when the budget ends; needs the main thread, else it does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ring(*_: Any) -> None:
            raise OutOfTimeError

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, max(0.001, self.left))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def variants(sizes: Sequence[int], compile_too: bool) -> list[Row]:
    """In the order in which they are measured: eager first, each without checkpointing first."""
    return [
        {"pixels": pixels, "checkpointing": checkpointing, "compiled": compiled}
        for compiled in ((False, True) if compile_too else (False,))
        for checkpointing in (False, True)
        for pixels in sizes
    ]


def bench(size: Size, o: argparse.Namespace, clock: Clock, done: Callable[[Row], None]) -> None:
    """Measure every variant of one model that there is time for; `done` is called with each row."""
    todo = [{"model": size.name} | variant for variant in variants(o.sizes, o.compile == "both")]
    model: Any = None
    compiled = False
    try:
        with clock.alarm():
            counts = {pixels: operations(size, pixels, o.rank) for pixels in o.sizes}
            begun = time.monotonic()
            model = make_model(size, o.device, o.rank)
            weights = sum(p.numel() for p in model.parameters())
            print(f"{size.name}: {weights / 1e9:.2f}e9 weights, made in {time.monotonic() - begun:.0f} s", flush=True)
            while todo:
                row = todo[0]
                if clock.left < (COMPILED if row["compiled"] else EAGER) * o.patience:
                    break
                if row["compiled"] and not compiled:
                    for block in size.blocks(model):  # blocks of one kind share what is compiled
                        block.compile(backend=o.backend, dynamic=False)
                    compiled = True
                row |= one(model, size, row, o, clock, counts[row["pixels"]])
                done(todo.pop(0))
    except OutOfTimeError:
        pass
    for row in todo:
        done(row | {"skipped": "no time left"})
    del model
    clear(o.device)


def one(model: Any, size: Size, row: Row, o: argparse.Namespace, clock: Clock, count: int) -> Row:
    """What one variant measured, or why it failed: out of memory, or the compiler; the next one begins all the same."""
    if row["checkpointing"]:
        model.enable_gradient_checkpointing()
    else:
        model.disable_gradient_checkpointing()
    try:
        found = measure(model, inputs(size, row["pixels"], o.device), o.steps, max(5.0, clock.left / 4))
        found |= {"operations": count, "share_of_peak": count / found["seconds"] / PEAK}
    except OutOfTimeError:
        raise
    except Exception as error:
        found = {"failed": f"{type(error).__name__}: {error}"[:300]}
    for p in model.parameters():
        p.grad = None
    clear(o.device)
    return found


def clear(device: str) -> None:
    """Give memory back."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def describe(row: Row) -> str:
    """One line of the table."""
    name = f"{row['model']:12} {row['pixels']:5} px  checkpointing {'yes' if row['checkpointing'] else 'no ':3}  "
    name += f"compiled {'yes' if row['compiled'] else 'no ':3}"
    if "seconds" not in row:
        return f"{name}  {row.get('failed') or row.get('skipped')}"
    memory = f"{row['memory_gb']:6.1f} GB" if row["memory_gb"] is not None else "   -"
    goal = GOALS.get((row["model"], row["pixels"]))
    against = f"  goal {goal} s: {'met' if row['seconds'] <= goal else 'missed'}" if goal else ""
    return f"{name}  {row['seconds']:8.4f} s  {memory}  {100 * row['share_of_peak']:5.1f} % of 790 TFLOP/s{against}"


def options(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", nargs="+", default=["flux-dev", "sd35-large"], metavar="NAME",
                        help="of bases/configs, or a denoiser's config.json")  # fmt: skip
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=530.0, help="all of it, imports excepted")
    parser.add_argument(
        "--share", type=float, default=0.62, help="of the time that is left, for each model but the last"
    )
    parser.add_argument("--patience", type=float, default=1.0, help="times the seconds a variant must have to begin")
    parser.add_argument("--compile", choices=("both", "no"), default="both")
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> list[Row]:
    """Measure every variant there is time for; print a table; write JSON after each row."""
    o = options(args)
    whole = Clock(o.seconds)
    torch.manual_seed(0)
    if o.compile == "both":
        from torch._dynamo import config as dynamo

        dynamo.recompile_limit = 32  # one entry per size, checkpointing, and place in the model
    device = torch.cuda.get_device_name() if o.device.startswith("cuda") else "cpu"
    sizes = [read_size(name) for name in o.models]
    rows: list[Row] = []
    told = {"device": device, "torch": torch.__version__, "rank": o.rank, "peak": PEAK, "rows": rows}
    told["configs"] = {size.name: size.config for size in sizes}
    print(f"{device}, torch {torch.__version__}")

    def done(row: Row) -> None:
        rows.append(row)
        print(describe(row), flush=True)
        if o.out:
            o.out.parent.mkdir(parents=True, exist_ok=True)
            o.out.write_text(json.dumps(told, indent=1))

    for size in sizes:
        last = size is sizes[-1]
        bench(size, o, Clock(whole.left if last else whole.left * o.share), done)
    return rows


if __name__ == "__main__":
    main()
