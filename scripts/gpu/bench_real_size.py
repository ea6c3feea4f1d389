"""Seconds and memory of a LoRA step on a model of SD3.5-large's size, with random weights: no download.

    python bench_real_size.py --out bench.json [--sizes 512 1024] [--seconds 150] [--tiny]

For every size in pixels, with and without gradient checkpointing, eager and with the repeated block compiled: seconds
per step (median), peak memory, and the share of the device's matrix rate. One step is what impasto does: rectified-flow
loss on a batch of one, LoRA of rank 32 in fp32 on the attention of both streams, bf16 base weights, AdamW. The count of
operations is that of a step without checkpointing (frozen weights get no gradient), so that recomputing does not count
as work. Latents are size / 8, text is 77 + 256 tokens, as in the pipeline's default call.
"""

import argparse
import gc
import json
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch.utils.flop_counter import FlopCounterMode

PEAK = 790e12  # bf16 matrix product of 8192^3 on random data, measured on an H200 of this workplace (KINDS.md)
TEXT_TOKENS = 77 + 256
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
LARGE = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 38,
    "attention_head_dim": 64,
    "num_attention_heads": 38,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 2432,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}
TINY = LARGE | {
    "sample_size": 8,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 24,
    "pos_embed_max_size": 32,
}


def make_model(config: dict[str, Any], device: str, rank: int, dtype: torch.dtype = torch.float32) -> Any:
    """Random bf16 weights made on the device itself, frozen, with a LoRA in `dtype`."""
    from peft import LoraConfig

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model: Any = SD3Transformer2DModel(**config)
    finally:
        torch.set_default_dtype(before)
    model.requires_grad_(False).train()
    lora = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(TARGETS))
    model.add_adapter(lora)
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.to(dtype)
    return model


def inputs(config: dict[str, Any], pixels: int, device: str) -> dict[str, torch.Tensor]:
    """One noisy latent, its noise level, and the text, in bf16."""
    kind = {"device": device, "dtype": torch.bfloat16}
    side = pixels // 8
    return {
        "hidden_states": torch.randn(1, config["in_channels"], side, side, **kind),
        "timestep": torch.tensor([500.0], device=device),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, config["joint_attention_dim"], **kind),
        "pooled_projections": torch.randn(1, config["pooled_projection_dim"], **kind),
    }


def backward(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Loss and its gradient."""
    kind = batch["hidden_states"].device.type
    with nullcontext() if kind == "meta" else torch.autocast(kind, torch.bfloat16):
        v = model(**batch, return_dict=False)[0]
        loss = (v.float() - batch["hidden_states"].float()).pow(2).mean()
    loss.backward()
    return loss.detach()


def operations(config: dict[str, Any], pixels: int, rank: int) -> int:
    """Floating-point operations of forward and backward, counted on shapes alone."""
    model = make_model(config, "meta", rank, torch.bfloat16)  # one type: there is no autocast without a device
    with FlopCounterMode(display=False) as counter:
        backward(model, inputs(config, pixels, "meta"))
    return counter.get_total_flops()


def measure(model: Any, config: dict[str, Any], pixels: int, device: str, steps: int, limit: float) -> dict[str, Any]:
    """Median seconds per step after two for warming up; peak memory in GB."""
    cuda = device.startswith("cuda")
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    batch = inputs(config, pixels, device)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds, first, loss, begun = [], 0.0, 0.0, time.monotonic()
    for i in range(steps + 2):
        start = time.monotonic()
        loss = float(backward(model, batch))  # waits for the device
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
    return {
        "seconds": statistics.median(seconds),
        "steps": len(seconds),
        "first": first,
        "memory_gb": memory,
        "loss": loss,
    }


def main(args: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure every variant there is time for; print a table; write JSON after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=150.0, help="no new variant begins after so long")
    parser.add_argument("--compile", choices=("both", "no"), default="both")
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--tiny", action="store_true", help="a tiny config, 64 px by default: for the CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    o = parser.parse_args(args)
    config = TINY if o.tiny else LARGE
    sizes = [64] if o.tiny and o.sizes == [512, 1024] else o.sizes
    torch.manual_seed(0)
    begun = time.monotonic()
    counts = {pixels: operations(config, pixels, o.rank) for pixels in sizes}
    model = make_model(config, o.device, o.rank)
    parameters = sum(p.numel() for p in model.parameters())
    device = torch.cuda.get_device_name() if o.device.startswith("cuda") else "cpu"
    print(f"{device}, torch {torch.__version__}: {parameters / 1e9:.2f}e9 weights, ready after "
          f"{time.monotonic() - begun:.0f} s")  # fmt: skip
    rows: list[dict[str, Any]] = []
    variants = [(c, k, p) for c in ((False, True) if o.compile == "both" else (False,)) for k in (False, True)
                for p in sizes]  # fmt: skip
    compiled = False
    for compile_it, checkpointing, pixels in variants:
        row: dict[str, Any] = {"pixels": pixels, "checkpointing": checkpointing, "compiled": compile_it}
        left = o.seconds - (time.monotonic() - begun)
        if left <= 0:
            rows.append({**row, "skipped": "no time left"})
            continue
        if compile_it and not compiled:
            for block in model.transformer_blocks:  # one compilation serves all but the last
                block.compile(backend=o.backend)
            compiled = True
        if checkpointing:
            model.enable_gradient_checkpointing()
        else:
            model.disable_gradient_checkpointing()
        try:
            row |= measure(model, config, pixels, o.device, o.steps, max(5.0, left / 2))
            row["operations"] = counts[pixels]
            row["share_of_peak"] = counts[pixels] / row["seconds"] / PEAK
        except Exception as error:  # out of memory, or the compiler: the next variant is measured all the same
            row["failed"] = f"{type(error).__name__}: {error}"[:300]
            for p in model.parameters():
                p.grad = None
        gc.collect()
        if o.device.startswith("cuda"):
            torch.cuda.empty_cache()
        rows.append(row)
        print(describe(row), flush=True)
        if o.out:
            o.out.parent.mkdir(parents=True, exist_ok=True)
            o.out.write_text(json.dumps({"device": device, "torch": torch.__version__, "rank": o.rank, "config": config,
                                         "parameters": parameters, "rows": rows}, indent=1))  # fmt: skip
    return rows


def describe(row: dict[str, Any]) -> str:
    """One line of the table."""
    name = f"{row['pixels']:5} px  checkpointing {'yes' if row['checkpointing'] else 'no ':3}  "
    name += f"compiled {'yes' if row['compiled'] else 'no ':3}"
    if "seconds" not in row:
        return f"{name}  {row.get('failed') or row.get('skipped')}"
    memory = f"{row['memory_gb']:6.1f} GB" if row["memory_gb"] is not None else "   -"
    return f"{name}  {row['seconds']:8.4f} s/step  {memory}  {100 * row['share_of_peak']:5.1f} % of 790 TFLOP/s"


if __name__ == "__main__":
    main()
