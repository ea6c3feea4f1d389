"""The image tokeniser of `mini-muse`: a `VQModel` of factor 4 with 4,096 codes, [n, 3, h, w] in [0, 1].

Encoder: the 16 principal components of 4 x 4 patches, scaled as the packaged autoencoder's (`autoencoder`), so that a
token depends on its patch alone, is easy to model, and does not change while the decoder is trained. Codebook: k-means
of these latents over the pretraining pool, each distinct patch counted at most MOST times. Decoder: trained on the
tokens of the pool, which is made of train styles, by

    mean (x - y)^2 + .2 mean |x - y| + w mean_k |f_k(x) - f_k(y)|, images in [-1, 1],

f_k: the normalised feature maps of a `twin` of the style judge, trained here on the train styles alone; the judges
themselves are not used in training. They measure the result (`coded_scores`). Patches of 8 x 8 with 8,192 codes keep
less: of the style judge's accuracy on held-out images .90 in train styles and .82 in secondary ones, where 4 x 4
patches with 2,048 codes, each decoded as the mean of its cluster, keep .92 and 1.00, with 8,192 codes .96 and 1.00.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import VQModel
from torch import Tensor, nn
from torch.nn import functional as F

from impasto.artworld import load, load_meta
from impasto.artworld.world import over
from impasto.judges.model import Judges, Net, NetConfig
from impasto.judges.training import PLANS, held_out, new_net
from impasto.pretrain.autoencoder import (
    LATENTS,
    gather_pixels,
    pass_through,
    principal_components,
    print_row,
    read_linear_encoder,
    recolour_half,
    write_output,
    zero_branches,
)
from impasto.pretrain.score import judge
from impasto.pretrain.state import Clock, ema_update, load_state, save_state

CODES, CELL = 4096, 4
SIDE = 128 // CELL  # tokens per side
MOST = 24  # copies of a patch that k-means sees: white ground is two thirds of all patches
SAMPLE = 300_000  # patches of k-means
PERCEPTUAL = 0.1  # w
SCORED = 100  # pictures of a style that are scored, at most


def new_image_tokenizer(codes: int = CODES) -> Any:
    """A `VQModel` with random weights."""
    return VQModel(
        latent_channels=LATENTS,
        block_out_channels=(24, 64, 128),  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 3,  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=128,
        num_vq_embeddings=codes,
        vq_embed_dim=LATENTS,
        mid_block_add_attention=False,
        lookup_from_codebook=True,
        scaling_factor=1.0,
    )


@torch.no_grad()
def closed_form_tokenizer(kernel: Tensor, bias: Tensor, codebook: Tensor, seed: int = 0) -> Any:
    """A `VQModel` whose encoder computes conv(2 x - 1, kernel, stride 4) + bias of images x in [0, 1], with a codebook
    [codes, 16] and a random decoder. The encoder's weights are those of `autoencoder.write_encoder` with one stage
    less; the 1 x 1 convolutions around the codebook are identities."""
    torch.manual_seed(seed)  # initial weights only
    vq = new_image_tokenizer(len(codebook))
    encoder: Any = vq.encoder
    zero_branches(encoder)
    pass_through(encoder.conv_in, 3)
    encoder.conv_in.weight.mul_(2)
    encoder.conv_in.bias[:3] = -1.0
    blocks = encoder.down_blocks
    gather_pixels(blocks[0].downsamplers[0].conv)
    pass_through(blocks[1].resnets[0].conv_shortcut, 12)
    fold = kernel.reshape(LATENTS, 3, 2, 2, 2, 2).permute(0, 3, 5, 1, 2, 4)  # latent, dy, dx, colour, y / 2, x / 2
    blocks[1].downsamplers[0].conv.weight[:LATENTS, :12, :2, :2] = fold.reshape(LATENTS, 12, 2, 2)
    blocks[1].downsamplers[0].conv.bias[:LATENTS] = bias
    write_output(encoder)
    for conv in (vq.quant_conv, vq.post_quant_conv):
        conv.weight.copy_(torch.eye(LATENTS)[:, :, None, None])
        conv.bias.zero_()
    vq.quantize.embedding.weight.copy_(codebook)
    return vq.eval()


def read_image_tokenizer(vq: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(kernel, bias, codebook) of a `VQModel` made by `closed_form_tokenizer`; encoding by these is much faster.

    Raises ValueError for an encoder that is not linear.
    """
    weight, bias = read_linear_encoder(lambda x: vq.encode(x / 2 + 0.5).latents, vq.device, CELL)
    return weight, bias, vq.quantize.embedding.weight.detach().float()


def patch_latents(rgb: np.ndarray | Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    """Latents [n, 16, h/4, w/4] of images uint8 [n, h, w, 3], by the encoder's convolution."""
    x = torch.as_tensor(rgb).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.conv2d(x, kernel, bias, stride=CELL)


def nearest_codes(z: Tensor, codebook: Tensor, chunk: int = 512) -> Tensor:
    """Index [n] of the nearest code of z [n, d], by |c|^2 / 2 - z . c."""
    half = codebook.pow(2).sum(1) / 2
    return torch.cat([torch.addmm(half, part, codebook.T, alpha=-1).argmin(1) for part in z.split(chunk)])


def image_tokens(rgb: np.ndarray | Tensor, kernel: Tensor, bias: Tensor, codebook: Tensor) -> Tensor:
    """Token ids int64 [n, h/4, w/4] of images uint8 [n, h, w, 3]. White patches, most of all, are looked up once."""
    z = patch_latents(rgb, kernel, bias)
    flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
    white = patch_latents(torch.full((1, CELL, CELL, 3), 255, device=z.device), kernel, bias)[:, :, 0, 0]
    other = (flat - white).abs().amax(1) > 1e-5
    ids = nearest_codes(white, codebook).repeat(len(flat))
    ids[other] = nearest_codes(flat[other], codebook) if other.any() else ids[other]
    return ids.reshape(len(z), *z.shape[2:])


def distinct_patches(z: Tensor, most: int = MOST) -> Tensor:
    """The rows of z [n, d], those that repeat (to .02) at most `most` times."""
    rounded = (z / 0.02).round().to(torch.int16)
    _, inverse, counts = torch.unique(rounded, dim=0, return_inverse=True, return_counts=True)
    order = torch.argsort(inverse, stable=True)
    starts = torch.cumsum(counts, 0) - counts
    rank = torch.arange(len(z)) - starts[inverse[order]]
    return z[order[rank < most]]


def kmeans(
    z: Tensor, codes: int, rounds: int = 12, seed: int = 0, log: Callable[[dict[str, Any]], None] = print_row
) -> Tensor:
    """Codebook [codes, d] of z [n, d] by Lloyd's algorithm; empty clusters move to the points that fit worst."""
    g = torch.Generator().manual_seed(seed)
    centres = z[torch.randperm(len(z), generator=g)[:codes]].clone()
    for k in range(rounds):
        index = nearest_codes(z, centres)
        count = torch.bincount(index, minlength=codes)
        total = torch.zeros_like(centres).index_add_(0, index, z)
        error = (z - centres[index]).pow(2).sum(1)
        centres = torch.where(count[:, None] > 0, total / count.clamp_min(1)[:, None], centres)
        empty = torch.nonzero(count == 0)[:, 0]
        centres[empty] = z[error.topk(len(empty)).indices] if len(empty) else centres[empty]
        log({"kmeans": k + 1, "error": round(float(error.mean()), 5), "empty": len(empty)})
    return centres


def learn_codebook(rgb: np.ndarray, seed: int = 0) -> dict[str, Tensor]:
    """{"kernel", "bias"} of the encoder and "codebook" [CODES, 16], from images uint8 [n, 128, 128, 3]: k-means on
    SAMPLE distinct patches of a sixth of them."""
    g = torch.Generator().manual_seed(seed)
    kernel, bias = principal_components(torch.from_numpy(rgb), seed, CELL)
    rows = torch.randperm(len(rgb), generator=g)[: len(rgb) // 6 + 1].numpy()
    parts = [patch_latents(rgb[some], kernel, bias) for some in np.array_split(rows, len(rows) // 256 + 1)]
    z = distinct_patches(torch.cat(parts).permute(0, 2, 3, 1).reshape(-1, LATENTS))
    codebook = kmeans(z[torch.randperm(len(z), generator=g)[:SAMPLE]], CODES, seed=seed)
    return {"kernel": kernel, "bias": bias, "codebook": codebook}


def new_twin(classes: int) -> Net:
    """A network of the style judge's form with random weights."""
    plan = PLANS["style"].net
    return new_net(NetConfig(classes, plan.size, plan.stem, plan.widths, plan.depths, plan.pool))


def train_twin(
    rgb: np.ndarray,
    styles: np.ndarray,
    minutes: float,
    seed: int = 0,
    log: Callable[[dict[str, Any]], None] = print_row,
) -> Net:
    """A network of the style judge's form, trained to tell the styles of images uint8 [n, 128, 128, 3] apart.

    Frozen, in channels-last memory. styles: ids [n]. Half of the images are moved by up to 12 pixels and recoloured.
    """
    names, target = np.unique(styles, return_inverse=True)
    torch.manual_seed(seed)  # initial weights only
    net = new_twin(len(names))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.02)
    data, classes = torch.from_numpy(rgb), torch.from_numpy(target)
    clock, step, right = Clock(minutes, timer=time.process_time), 0, 0.0
    with clock:
        while not clock.stop:
            g = torch.Generator().manual_seed(seed * 1_000_003 + step)
            rows = torch.randint(len(data), (32,), generator=g)
            x = data[rows].permute(0, 3, 1, 2).float() / 255
            x = torch.roll(x, torch.randint(-12, 13, (2,), generator=g).tolist(), dims=(2, 3))
            x = recolour_half(x, g).contiguous(memory_format=torch.channels_last)
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (0.01 + 0.99 * (1 - clock.progress))
            with torch.autocast("cpu", torch.bfloat16):
                logits = net(x)
            F.cross_entropy(logits.float(), classes[rows], label_smoothing=0.05).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            right = 0.98 * right + 0.02 * float((logits.argmax(1) == classes[rows]).float().mean())
            step += 1
            if step % 50 == 0:
                log({"twin": step, "accuracy": round(right / (1 - 0.98**step), 3)})
    if clock.terminated:
        raise KeyboardInterrupt("stopped while the twin was trained: the same command starts that part again")
    return net.eval().requires_grad_(False)


def perceptual_loss(twin: Net, x: Tensor, y: Tensor) -> Tensor:
    """Mean over stages of the mean absolute difference of feature maps, each divided by its root mean square over x.

    Images [n, 3, h, w] in [0, 1].
    """
    with torch.no_grad():
        true = twin.maps(x)
    made = twin.maps(y)
    pairs = [(t.float(), m.float()) for t, m in zip(true, made, strict=True)]
    return torch.stack([(m - t).abs().mean() / t.pow(2).mean().sqrt() for t, m in pairs]).mean()


def train_decoder(
    vq: Any,
    encode: Callable[[Tensor], Tensor],
    rgb: np.ndarray,
    twin: Net | None,
    folder: Path,
    minutes: float,
    lr: float = 2e-3,
    batch: int = 8,
    perceptual: float = PERCEPTUAL,
    seed: int = 0,
    log: Callable[[dict[str, Any]], None] = print_row,
) -> Any:
    """Train the decoder for `minutes` of CPU time in all on images uint8 [n, 128, 128, 3]; resumes from `folder`.

    encode: images uint8 -> token ids, see `image_tokens`. Returns `vq` with the decoder's average. Crops of 64 pixels
    on the token grid for the first 60 % of the time, whole images in batches of half the size afterwards; cosine decay.
    Raises KeyboardInterrupt when it is stopped before its time.
    """
    live, average = new_image_tokenizer(2).decoder, vq.decoder.requires_grad_(False)
    live.load_state_dict(average.state_dict())
    live.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(live.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    parts = {"decoder": live, "ema": average, "optimizer": optimizer}
    meta = load_state(folder, parts) or {"step": 0, "seconds": 0.0}
    step, clock, saved = meta["step"], Clock(minutes, meta["seconds"], time.process_time), meta["seconds"]
    codebook, data = vq.quantize.embedding.weight.detach(), torch.from_numpy(rgb)
    sums: list[Tensor] = []
    with clock:
        while not clock.stop:
            rng = np.random.default_rng((seed, step))
            side, n = (64, batch) if clock.progress < 0.6 else (128, batch // 2)
            corners = CELL * rng.integers((128 - side) // CELL + 1, size=(n, 2))
            rows = zip(rng.integers(len(data), size=n), corners.tolist(), strict=True)
            cut = torch.stack([data[i, top : top + side, left : left + side] for i, (top, left) in rows])
            x = (cut.permute(0, 3, 1, 2).float() / 255).contiguous(memory_format=torch.channels_last)
            z = codebook[encode(cut)].permute(0, 3, 1, 2)
            for group in optimizer.param_groups:
                warm = min(1.0, (step + 1) / 50)
                group["lr"] = lr * warm * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * clock.progress)))
            with torch.autocast("cpu", torch.bfloat16):
                y = live(z.contiguous(memory_format=torch.channels_last))
                seen = perceptual_loss(twin, x, y) if twin is not None else torch.zeros(())
            error = 2 * (y.float() - x)
            loss = error.pow(2).mean() + 0.2 * error.abs().mean() + perceptual * seen
            loss.backward()
            nn.utils.clip_grad_norm_(live.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            ema_update(average.parameters(), live.parameters(), min(0.998, (1 + step) / (10 + step)))
            sums.append(torch.stack([error.detach().pow(2).mean(), seen.detach().float()]))
            if step % 100 == 0:
                mse, far = torch.stack(sums).mean(0).tolist()
                row = {"step": step, "minutes": round(clock.seconds / 60, 2), "side": side}
                log({**row, "psnr": round(6.0206 - 10 * float(np.log10(mse)), 2), "perceptual": round(far, 4)})
                sums = []
            if clock.seconds - saved > 120:
                save_state(folder, parts, {"step": step, "seconds": clock.seconds})
                saved = clock.seconds
    save_state(folder, parts, {"step": step, "seconds": clock.seconds})
    if clock.terminated:
        raise KeyboardInterrupt(f"stopped at step {step}: the same command continues")
    return vq.eval()


@torch.no_grad()
def decode_tokens(vq: Any, tokens: Tensor, batch: int = 32) -> np.ndarray:
    """uint8 [n, h, w, 3] of token ids [n, h/4, w/4]."""
    out = []
    for ids in tokens.split(batch):
        shape = (*ids.shape, vq.config.vq_embed_dim)
        y = vq.decode(ids.long(), force_not_quantize=True, shape=shape).sample.clamp(0, 1)
        out.append((y * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(out)


def coded_scores(vq: Any, seed: int = 1) -> dict[str, Any]:
    """The judges' means on true images of train and of secondary styles, on the same images coded, the ratio of the
    two ("style_share", "top5_share"), and the share of the codes that the train styles' images use.

    The images are those on which the judges were not trained, which of train styles the decoder was not either.
    """
    meta, world = load_meta(), load()
    kernel, bias, codes = read_image_tokenizer(vq)
    judges, rng = Judges.load(), np.random.default_rng(seed)
    held = held_out(world)[0]
    train, secondary = (
        np.flatnonzero(np.isin(world.style_id, meta["split"][f"{name}_styles"])) for name in ("train", "secondary")
    )
    groups = {"train": train[held[train]], "secondary": secondary[held[secondary]]}
    found: dict[str, Any] = {}
    for name, rows in groups.items():
        of_style = [rng.permutation(rows[world.style_id[rows] == s])[:SCORED] for s in np.unique(world.style_id[rows])]
        some = np.concatenate(of_style)
        true = over(world.rgba[some], (255, 255, 255))
        coded = decode_tokens(vq, image_tokens(true, kernel, bias, codes))
        error = ((true.astype(np.float32) - coded) / 255) ** 2
        before, after = (judge(judges, x, world.style_id[some], world.concept_id[some]) for x in (true, coded))
        found[name] = {
            "pictures": len(some),
            "true": before,
            "coded": after,
            "psnr": float((-10 * np.log10(error.mean((1, 2, 3)).clip(1e-8))).mean()),
            "style_share": after["style_accuracy"] / before["style_accuracy"],
            "top5_share": after["concept_top5"] / before["concept_top5"],
        }
    used = torch.zeros(len(codes), dtype=torch.bool)
    for some in np.array_split(train, len(train) // 256 + 1):
        used[image_tokens(over(world.rgba[some], (255, 255, 255)), kernel, bias, codes).flatten()] = True
    return found | {"codes": len(codes), "codes_used": float(used.float().mean())}
