"""Makes pieces of the pool beside the training: pictures of random looks and scenes, encoded, captioned, written.

    python pieces.py --folder RUN/pieces --worker 0 --of 12 --pieces 48 --concepts core_concepts

Worker w makes the pieces w, w + of, w + 2 of, ...; each is one safetensors file (renamed when whole) of
latents fp16 [n, 16, 16, 16], ids int16 [n, CAPTIONS, 32], kind int8 [n] (index into KINDS) and concept int16 [n]
(the first thing that is shown). Only the first PLAIN pieces carry the pictures on white again, with other captions.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from impasto.artworld import ArtWorld
from impasto.files import MODELS
from impasto.pretrain.base import make_bank
from impasto.pretrain.pool import KINDS, Pool, build_pool, train_world
from impasto.pretrain.run import known_concepts

PLAIN = 4


def piece_path(folder: Path, k: int) -> Path:
    """Where piece k lies."""
    return folder / f"piece-{k:04d}.safetensors"


def make_piece(
    folder: Path, k: int, world: ArtWorld, ground: float, procedurals: float, scenes: float, seed: int
) -> Path:
    """Make and write piece k, a function of (seed, k)."""
    own = seed + 1000 * k
    pool = build_pool(None, ground, procedurals, scenes, own, world)
    if k >= PLAIN:
        pool = Pool(pool.rgb[len(world) :], pool.entries[len(world) :])
    vae = AutoencoderKL.from_pretrained(MODELS / "autoencoder", torch_dtype=torch.float32).eval()
    bank = make_bank(pool, vae, CLIPTokenizer.from_pretrained(MODELS / "clip"), own)
    tensors = {
        "latents": bank.latents.contiguous(),
        "ids": bank.ids.contiguous(),
        "kind": torch.tensor([KINDS.index(entry.kind) for entry in pool.entries], dtype=torch.int8),
        "concept": torch.from_numpy(np.array([entry.concepts[0] for entry in pool.entries], np.int16)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{piece_path(folder, k).name}.{os.getpid()}"
    save_file(tensors, temporary)
    return temporary.replace(piece_path(folder, k))


def main(args: list[str] | None = None) -> None:
    """Make this worker's pieces, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--of", type=int, default=1)
    parser.add_argument("--pieces", type=int, default=1)
    parser.add_argument("--concepts", default="core_concepts")
    parser.add_argument("--ground", type=float, default=0.1)
    parser.add_argument("--procedurals", type=float, default=0.5)
    parser.add_argument("--scenes", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args(args)
    torch.set_num_threads(1)
    world = train_world(known_concepts(o.concepts))
    for k in range(o.worker, o.pieces, o.of):
        make_piece(o.folder, k, world, o.ground, o.procedurals, o.scenes, o.seed)


if __name__ == "__main__":
    main()
