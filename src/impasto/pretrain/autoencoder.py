"""The embedded autoencoder: an `AutoencoderKL` of factor 8 with 16 channels and a closed-form encoder.

Encoder: the 16 principal components of 8 x 8 x 3 patches (train styles, half of them recoloured), each divided by the
square root of its standard deviation, so that coarse components keep more variance and noise hides fine ones first. It
is written into the weights of a diffusers encoder (`write_encoder`). Such latents are easy to model, need no training,
and do not change while the decoder is trained further. They are centred, so `shift_factor` is 0 and the autoencoder
works with `StableDiffusionPipeline` (which ignores it) and SD3.

Decoder: trained on mean (x - y)^2 + .1 mean |x - y|, images in [-1, 1], from the latents of the train styles alone.
Metric: PSNR = -10 log10 mean (x - y)^2, images in [0, 1]. Baseline: the linear decoder of the same latents.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from impasto.pretrain.state import Clock, ema_update, load_state, save_state

PATCH, LATENTS, CROP = 8, 16, 64
GROUPNORM_CONSTANT = 100.0  # makes a GroupNorm nearly linear: |x| <= 10 changes its scale by less than .3 %


def new_autoencoder() -> Any:
    """An `AutoencoderKL` of 2.6M parameters: [n, 3, h, w] in [-1, 1] <-> [n, 16, h/8, w/8].

    No attention, so any multiple of 8 works. Typed Any, since its stubs take every output for a tuple.
    """
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=LATENTS,
        block_out_channels=(16, 32, 64, 128),  # pyright: ignore[reportArgumentType]
        down_block_types=("DownEncoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        up_block_types=("UpDecoderBlock2D",) * 4,  # pyright: ignore[reportArgumentType]
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
        scaling_factor=1.0,
    )


def recolour_half(x: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Change the colours of half of the images [n, 3, h, w] in [0, 1]: permute, invert, scale and shift channels."""
    n = len(x)
    order = torch.argsort(torch.rand(n, 3, generator=g), dim=1)
    y = x.gather(1, order[:, :, None, None].expand_as(x))
    y = torch.where(torch.rand(n, 1, 1, 1, generator=g) < 0.4, 1 - y, y)
    low = 0.5 * torch.rand(n, 3, 1, 1, generator=g) * (torch.rand(n, 1, 1, 1, generator=g) < 0.5)
    high = 1 - 0.5 * torch.rand(n, 3, 1, 1, generator=g) * (torch.rand(n, 1, 1, 1, generator=g) < 0.5)
    y = low + (high - low) * y
    return torch.where(torch.rand(n, 1, 1, 1, generator=g) < 0.5, y, x)


def _sample_crops(rgb: torch.Tensor, n: int, crop: int, g: torch.Generator) -> torch.Tensor:
    """`n` random crops [n, 3, crop, crop] in [-1, 1]; a third are whole images resized to `crop`."""
    pick = torch.randint(len(rgb), (n,), generator=g)
    x = rgb[pick].permute(0, 3, 1, 2).float() / 255
    if crop < x.shape[-1]:
        small = F.interpolate(x[: n // 3], size=(crop, crop), mode="area")
        top, left = (torch.randint(x.shape[-1] - crop + 1, (2, n), generator=g)).tolist()
        cut = [x[i, :, top[i] : top[i] + crop, left[i] : left[i] + crop] for i in range(n // 3, n)]
        x = torch.cat([small, torch.stack(cut)])
    else:
        shift = torch.randint(-12, 13, (2,), generator=g).tolist()
        x = torch.roll(x, shift, dims=(2, 3))
    return recolour_half(x, g) * 2 - 1


def principal_components(rgb: torch.Tensor, seed: int = 0, patch: int = PATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """(kernel [16, 3, 8, 8], bias [16]) of the latents z = conv(x, kernel, stride 8) + bias of unit overall variance;
    of other patches than 8 x 8 likewise.

    z_k = (v_k . (patch - mean)) / sqrt(s_k) / c, with v_k the k-th principal direction, s_k its standard deviation and
    c one number for all channels. Images uint8 [n, h, w, 3].
    """
    g = torch.Generator().manual_seed(seed)
    x = torch.cat([_sample_crops(rgb, 96, CROP, g) for _ in range(64)])
    patches = F.unfold(x, patch, stride=patch).transpose(1, 2).reshape(-1, 3 * patch * patch).double()
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    v = vectors[:, -LATENTS:].flip(1)  # columns, largest first
    v = v * torch.sign(v.sum(0) + 1e-12)
    s = values[-LATENTS:].flip(0).sqrt()
    weight = v / s.sqrt()
    scale = ((patches - mean) @ weight).pow(2).mean().sqrt()
    weight = weight / scale
    bias = -(mean @ weight)
    return weight.T.reshape(LATENTS, 3, patch, patch).float(), bias.float()


@torch.no_grad()
def write_encoder(vae: Any, kernel: torch.Tensor, bias: torch.Tensor) -> None:
    """Make `vae`'s encoder compute z = conv(x, kernel, stride 8) + bias; its log-variance is -30 (deterministic).

    Residual branches are zero, so that the image passes through the main path: three strided convolutions gather 2 x 2
    neighbours each, keeping 12, 32 and 32 channels (of the 48 of a 4 x 4 patch, the 32 that the kernel uses most). The
    last norm and SiLU are cancelled: every z enters as +z and -z, silu(z) - silu(-z) = z, beside constants of
    +-GROUPNORM_CONSTANT, which make GroupNorm's divisor independent of the image. The encoder is linear to within .3 %;
    its output is by definition the latent.
    """
    encoder: Any = vae.encoder
    zero_branches(encoder)
    blocks = encoder.down_blocks
    pass_through(encoder.conv_in, 3)
    gather_pixels(blocks[0].downsamplers[0].conv)
    pass_through(blocks[1].resnets[0].conv_shortcut, 12)
    # 4 x 4 pixels, 48 numbers -> the 32 directions that the kernel's four quarters span best
    quarters = kernel.reshape(LATENTS, 3, 2, 4, 2, 4).permute(2, 4, 0, 1, 3, 5).reshape(4 * LATENTS, 48)
    _, _, directions = torch.linalg.svd(quarters.double(), full_matrices=False)
    basis = directions[:32].float()  # [32, 48], index (colour, y, x)
    fold = basis.reshape(32, 3, 2, 2, 2, 2)  # colour, y2, y1, x2, x1 with y = 2 y2 + y1
    blocks[1].downsamplers[0].conv.weight[:, :12, :2, :2] = fold.permute(0, 3, 5, 1, 2, 4).reshape(32, 12, 2, 2)
    pass_through(blocks[2].resnets[0].conv_shortcut, 32)
    # 8 x 8 pixels -> 16 latents
    parts = (quarters @ basis.T).reshape(2, 2, LATENTS, 32)  # [y half, x half, latent, direction]
    blocks[2].downsamplers[0].conv.weight[:LATENTS, :32, :2, :2] = parts.permute(2, 3, 0, 1)
    blocks[2].downsamplers[0].conv.bias[:LATENTS] = bias
    write_output(encoder)
    encoder.conv_out.bias[LATENTS:] = -30.0


def zero_branches(encoder: Any) -> None:
    """Set all weights to 0 but those inside residual branches, which remain trainable."""
    for name, parameter in encoder.named_parameters():
        if ".norm" not in name and ".conv1." not in name:
            parameter.zero_()


def pass_through(conv: torch.nn.Conv2d, n: int) -> None:
    """Make `conv` hand on its first n channels."""
    for i in range(n):
        conv.weight[i, i, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1.0


def gather_pixels(conv: torch.nn.Conv2d) -> None:
    """Make a strided `conv` gather 2 x 2 pixels into 12 channels, ordered (dy, dx, colour)."""
    for dy in range(2):
        for dx in range(2):
            for c in range(3):
                conv.weight[6 * dy + 3 * dx + c, c, dy, dx] = 1.0


def write_output(encoder: Any) -> None:
    """Make the last block of 128 channels and what follows it hand on 16 latents: 8 groups of 16 channels, in each two
    latents as +z, -z, and six constants of each sign."""
    widen, last = encoder.down_blocks[-1].resnets[0].conv_shortcut, encoder.conv_out
    for group in range(8):
        for j in range(2):
            z, at = 2 * group + j, 16 * group + 2 * j
            widen.weight[at, z] = 1.0
            widen.weight[at + 1, z] = -1.0
            last.weight[z, at, 1, 1], last.weight[z, at + 1, 1, 1] = 1.0, -1.0
        widen.bias[16 * group + 4 : 16 * group + 10] = GROUPNORM_CONSTANT
        widen.bias[16 * group + 10 : 16 * group + 16] = -GROUPNORM_CONSTANT
    encoder.conv_norm_out.weight.fill_(GROUPNORM_CONSTANT * 0.75**0.5)


def read_encoder(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(kernel, bias) of an encoder made by `write_encoder`, from its impulse response.

    Encoding by this convolution is some hundred times faster. Raises ValueError for an encoder that is not linear.
    """
    return read_linear_encoder(lambda x: vae.encode(x).latent_dist.mean, vae.device)


@torch.no_grad()
def read_linear_encoder(
    encode: Callable[[torch.Tensor], torch.Tensor], device: torch.device, patch: int = PATCH
) -> tuple[torch.Tensor, torch.Tensor]:
    """`read_encoder` of images [n, 3, h, w] in [-1, 1] -> latents [n, 16, h / patch, w / patch]."""
    unit = torch.eye(3 * patch * patch).reshape(-1, 3, patch, patch)
    x = torch.cat([torch.zeros(1, 3, patch, patch), unit]).to(device)
    z = encode(x)[:, :, 0, 0]
    kernel, bias = (z[1:] - z[0]).T.reshape(LATENTS, 3, patch, patch), z[0]
    probe = torch.rand(2, 3, CROP, CROP, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    off = float((encode(probe) - F.conv2d(probe, kernel, bias, stride=patch)).abs().max())
    if off > 0.02:
        raise ValueError(f"this encoder is not linear: it differs from its impulse response by {off:.3f}")
    return kernel, bias


@torch.no_grad()
def linear_psnr(rgb: np.ndarray, kernel: torch.Tensor, bias: torch.Tensor) -> np.ndarray:
    """PSNR in dB of each image uint8 [n, h, w, 3] with the best *linear* decoder of the latents."""
    weight = kernel.reshape(LATENTS, -1).double()
    inverse = torch.linalg.pinv(weight)
    x = torch.from_numpy(rgb).permute(0, 3, 1, 2).double() / 127.5 - 1
    patches = F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)
    z = patches @ weight.T + bias.double()
    y = ((z - bias.double()) @ inverse.T).clamp(-1, 1)
    return (-10 * torch.log10(((patches - y) / 2).pow(2).mean((1, 2)).clamp_min(1e-8))).numpy()


@torch.no_grad()
def psnr(vae: Any, rgb: np.ndarray, batch: int = 32) -> np.ndarray:
    """PSNR in dB of each image, uint8 [n, h, w, 3], from posterior mean and decoder, clamped, not rounded."""
    out = []
    for start in range(0, len(rgb), batch):
        x = torch.from_numpy(rgb[start : start + batch]).to(vae.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
        out.append(-10 * torch.log10(((x - y) / 2).pow(2).mean((1, 2, 3)).clamp_min(1e-8)))
    return torch.cat(out).cpu().numpy()


def print_row(row: dict[str, Any]) -> None:
    """Print a row of the training log as JSON."""
    print(json.dumps(row), flush=True)


def train_decoder(
    vae: Any,
    kernel: torch.Tensor,
    bias: torch.Tensor,
    rgb: np.ndarray,
    folder: Path,
    total_minutes: float,
    probe: np.ndarray | None = None,
    lr: float = 2e-3,
    seed: int = 0,
    device: str = "cpu",
    batch: int = 8,
    log: Callable[[dict[str, Any]], None] = print_row,
) -> Any:
    """Train the decoder on images uint8 [n, 128, 128, 3] for `total_minutes` in all; resumes from `folder`.

    The first 70 % of the time uses 64-px crops (`batch`), the rest whole images (half the batch). Cosine decay. Returns
    `vae` with the EMA decoder, on the CPU. probe: validation images whose mean PSNR is logged every 500 steps.
    """
    vae.to(device)
    kernel, bias = kernel.to(device), bias.to(device)
    live = new_autoencoder().decoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = vae.decoder
    live.load_state_dict(ema.state_dict())
    optimizer = torch.optim.AdamW(live.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    parts = {"decoder": live, "ema": ema, "optimizer": optimizer}
    meta = load_state(folder, parts, device) or {"step": 0, "seconds": 0.0}
    step, clock = meta["step"], Clock(total_minutes, meta["seconds"])
    data, saved = torch.from_numpy(rgb).to(device), meta["seconds"]
    with clock, torch.device(device):
        while not clock.stop:
            g = torch.Generator(device).manual_seed(seed * 1_000_003 + step)
            crop, n = (CROP, batch) if clock.progress < 0.7 else (128, batch // 2)
            x = _sample_crops(data, n, crop, g)
            z = F.conv2d(x, kernel, bias, stride=PATCH)
            x = x.to(memory_format=torch.channels_last)
            for group in optimizer.param_groups:
                warm = min(1.0, (step + 1) / 100)
                group["lr"] = lr * warm * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * clock.progress)))
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                y = live(z.to(memory_format=torch.channels_last))
            error = y.float() - x
            mse = error.pow(2).mean()
            (mse + 0.1 * error.abs().mean()).backward()
            torch.nn.utils.clip_grad_norm_(live.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            ema_update(ema.parameters(), live.parameters(), min(0.998, (1 + step) / (10 + step)))
            if step % 100 == 0:
                train = round(6.0206 - 10 * float(torch.log10(mse.detach())), 2)
                row = {"step": step, "minutes": round(clock.seconds / 60, 2), "crop": crop, "train_psnr": train}
                if probe is not None and step % 500 == 0:
                    row["probe_psnr"] = round(float(psnr(vae, probe).mean()), 2)
                log(row)
            if clock.seconds - saved > 300:
                save_state(folder, parts, {"step": step, "seconds": clock.seconds})
                saved = clock.seconds
    save_state(folder, parts, {"step": step, "seconds": clock.seconds})
    return vae.to("cpu").eval()
