"""Processes that extend the pool while a base trains: for a GPU, which sees a pool faster than one process renders it.

Each writes chunks of new pictures (coloured grounds, procedural styles, scenes), encoded and captioned, as safetensors:
latents fp16 [n, 16, 16, 16], ids int16 [n, CAPTIONS, 32], kind int8 [n] (index into KINDS).
"""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from impasto.artworld import ArtWorld
from impasto.files import MODELS, atomic
from impasto.pretrain.base import Bank, Latents, make_bank
from impasto.pretrain.pool import KINDS, build_pool, train_world

GROUND, PROCEDURALS, SCENES = 0.05, 0.4, 0.1
"""New pictures of a chunk, in units of the plain pictures' number: 4,800 of 835 concepts in 30 s of one core."""
CHUNKS = 400


def make_chunk(folder: Path, k: int, world: ArtWorld, seed: int, net: Any = None) -> Path:
    """Render, encode and write chunk k, a function of (seed, k). net: a `base.Denoiser`, whose latents they are; those
    of `base.Latents` by default."""
    net = net or Latents()
    own = seed + 1000 * (k + 1)
    pool = build_pool(None, GROUND, PROCEDURALS, SCENES, own, world, plain=False)
    vae = net.load_autoencoder(MODELS / net.autoencoder)
    bank = make_bank(pool, vae, CLIPTokenizer.from_pretrained(MODELS / "clip"), own, encode=net.encode)
    kind = torch.tensor([KINDS.index(entry.kind) for entry in pool.entries], dtype=torch.int8)
    path = folder / f"chunk-{k:04d}.safetensors"
    with atomic(path) as temporary:
        save_file({"latents": bank.latents.contiguous(), "ids": bank.ids.contiguous(), "kind": kind}, temporary)
    return path


def _work(folder: Path, numbers: Sequence[int], concepts: Sequence[int] | None, seed: int, net: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    os.nice(5)
    torch.set_num_threads(1)
    world = train_world(concepts)
    for k in numbers:
        make_chunk(folder, k, world, seed, net)


class PoolWorkers:
    """`n` processes, worker w makes the chunks w, w + n, w + 2n, ... below CHUNKS. A context: its end ends them."""

    def __init__(self, n: int, folder: Path, concepts: Sequence[int] | None, seed: int, net: Any = None) -> None:
        self.folder, self.collected = folder, set[str]()
        context = multiprocessing.get_context("spawn")
        jobs = [(folder, range(w, CHUNKS, n), concepts, seed, net) for w in range(n)]
        self.processes: list[BaseProcess] = [context.Process(target=_work, args=job, daemon=True) for job in jobs]

    def __enter__(self) -> "PoolWorkers":
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.processes:
            self.folder.mkdir(parents=True)
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.terminate()
            process.join()
        shutil.rmtree(self.folder, ignore_errors=True)

    def collect(self, bank: Bank) -> int:
        """Append the chunks that are new to `bank`; returns their number of pictures.

        Raises RuntimeError where all workers failed before the first chunk (their tracebacks are on stderr).
        """
        new = [p for p in sorted(self.folder.glob("chunk-*.safetensors")) if p.name not in self.collected]
        if not new and not self.collected and self.processes and all(p.exitcode for p in self.processes):
            raise RuntimeError(f"all {len(self.processes)} pool workers failed: see above")
        before = len(bank.latents)
        if new:
            files = [load_file(path) for path in new]
            bank.extend(*(torch.cat([file[name] for file in files]) for name in ("latents", "ids", "kind")))
        self.collected |= {path.name for path in new}
        return len(bank.latents) - before
