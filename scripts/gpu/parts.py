"""The parts that bases share, retrained on a GPU: the decoder of the autoencoder, and the small CLIP.

    python parts.py decoder --run RUN --minutes 4      # the latents stay as they are: no base is touched
    python pretrain.py --clip-minutes 2.5 ...          # a CLIP binds the bases: it is made right before one

The decoder's objective is that of impasto.pretrain.autoencoder, here on 64-px crops in the first 70 % of the time and
whole pictures in the rest, `--batch` and a quarter of it at a time, on the device. It begins with the packaged one.
RUN/export holds the whole autoencoder, fp16, with its manifest; `unpack.py` scores it on the held-out styles, whose
pictures never travel, and puts it into the package.
"""

import argparse
import copy
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import kit
import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from impasto.artworld.world import over
from impasto.bases import embedded as mini
from impasto.files import MODELS, cache_dir
from impasto.pretrain import autoencoder as ae
from impasto.pretrain import clip as contrastive
from impasto.pretrain.base import Denoiser
from impasto.pretrain.parts import VALIDATION
from impasto.pretrain.pool import build_pool, train_world

PROMPTS = ("rocket, flat minimal vector sticker without outlines", "a penguin on a navy background", "")


@torch.no_grad()
def fingerprint(net: Denoiser, model: Any, tower: Any, tokenizer: CLIPTokenizer) -> list[float]:
    """What a base says to three prompts at three noise levels, weights rounded to fp16: 48 numbers.

    They depend on every weight of the denoiser, the text tower and the tokeniser; two machines agree to about 1e-3.
    """
    rounded = copy.deepcopy(model).half().float().eval()
    device = next(rounded.parameters()).device
    cond = net.text(copy.deepcopy(tower).half().float(), contrastive.tokens(tokenizer, list(PROMPTS)).to(device))
    x = torch.randn(3, 16, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
    t = torch.tensor([200.0, 500.0, 800.0], device=device)
    v = rounded(x, timestep=t, return_dict=False, **cond)[0]
    return [round(float(f), 5) for f in v[:, :, 5, 7].flatten()]


def encoder_hash(folder: Path) -> str:
    """What the latents depend on: the encoder's weights and the scaling factor, as a digest of their bytes."""
    digest = hashlib.sha256()
    weights = load_file(next(iter(sorted(folder.glob("*.safetensors")))))
    for name in sorted(n for n in weights if n.startswith("encoder.")):
        digest.update(name.encode() + weights[name].numpy().tobytes())
    digest.update(str(json.loads((folder / "config.json").read_text())["scaling_factor"]).encode())
    return digest.hexdigest()


def text_hash(folder: Path) -> str:
    """What a base hears: the tokeniser and the text half of a small CLIP, as a digest of their bytes."""
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes())
    for name, value in sorted(mini.text_weights(folder).items()):
        digest.update(name.encode() + value.half().numpy().tobytes())
    return digest.hexdigest()


def make_clip(minutes: float, folder: Path, batch: int, device: str, seed: int) -> None:
    """Train a small CLIP from nothing, text tower too, into the package *of the kit's copy*; no other is touched."""
    kit_folder = os.environ.get("IMPASTO_GPU_KIT", "")
    if not kit_folder or Path(kit_folder).resolve() not in MODELS.resolve().parents:
        raise kit.KitError(f"a new CLIP is written to the kit's own copy of the package only, not to {MODELS}")
    tokenizer = CLIPTokenizer.from_pretrained(MODELS / "clip")
    pool = build_pool(None, ground=0.15, procedurals=0.5, scenes=0.25, seed=101 + seed)
    plain = len({entry.concepts[0] for entry in pool.entries if entry.kind == "plain"})
    batch = min(batch, 8 * plain)  # half of a batch: four pictures each of batch / 8 different things
    model: Any = contrastive.train_clip(pool, tokenizer, folder, minutes, batch, seed=101 + seed, device=device)
    model.cpu().half().save_pretrained(MODELS / "clip")


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """(the train styles' pictures over white, which of them impasto.pretrain.parts keeps out of the training)."""
    world = train_world()
    path = cache_dir() / kit.WORLD
    row = kit.read_world(path)["row"]
    if len(row) != len(world):  # a whole art world: the rows of its train styles
        data = kit.read_world(path)
        row = data["row"][np.isin(data["style_id"], np.unique(world.style_id))]
    return over(world.rgba, (255, 255, 255)), row % VALIDATION == 7


def decoder(o: argparse.Namespace) -> Path:
    """Train the decoder, compare it with the one before on the validation pictures, export; returns the folder."""
    rgb, kept = pictures()
    vae: Any = AutoencoderKL.from_pretrained(MODELS / "autoencoder", torch_dtype=torch.float32).eval()
    probe = rgb[kept][: o.probe]
    before = float(ae.psnr(vae, probe).mean())
    train, (kernel, bias) = np.ascontiguousarray(rgb[~kept]), ae.read_encoder(vae)
    o.run.mkdir(parents=True, exist_ok=True)
    with (o.run / "log.jsonl").open("a") as log:

        def write(row: dict[str, Any]) -> None:
            log.write(json.dumps(row) + "\n")
            log.flush()

        settings = {"lr": o.lr, "seed": o.seed, "device": o.device, "batch": o.batch, "log": write}
        vae = ae.train_decoder(vae, kernel, bias, train, o.run / "state", o.minutes, **settings)
    state = json.loads((o.run / "state" / "state.json").read_text())
    done = {"step": state["step"], "seconds": round(state["seconds"], 1), "batch": o.batch}
    export = o.run / "export" / "001"
    export.mkdir(parents=True, exist_ok=True)
    vae = vae.half()
    save_file({k: v.contiguous() for k, v in vae.state_dict().items()}, export / "autoencoder.safetensors")
    after = float(ae.psnr(vae.float(), probe).mean())
    manifest = {
        "kind": "decoder",
        "training": done,
        "encoder": encoder_hash(MODELS / "autoencoder"),
        "validation_psnr": {"before": before, "after": after},
        "files": kit.describe(export),
    }
    kit.write_json(export / "manifest.json", manifest)
    (export / "log.jsonl").write_text((o.run / "log.jsonl").read_text())
    kit.write_json(o.run / "done.json", {"export": export.name, **manifest["validation_psnr"]})
    print(json.dumps({k: manifest[k] for k in ("training", "validation_psnr")}), flush=True)
    return export


def options(args: list[str] | None = None) -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("decoder",))
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--probe", type=int, default=64, help="validation pictures that before and after are told on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(args)


if __name__ == "__main__":
    try:
        decoder(options())
    except kit.KitError as error:
        sys.exit(f"parts.py: {error}")
