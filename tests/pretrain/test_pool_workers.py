"""The pool that grows during training: chunks, the processes that write them, and a bank that takes them in."""

import random
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file

from impasto.artworld import cache_dir, load_meta
from impasto.artworld.build import encode_webp
from impasto.artworld.world import DATA_NAME
from impasto.bases import embedded as mini
from impasto.files import MODELS
from impasto.pretrain import pool_workers, run
from impasto.pretrain.base import CAPTIONS, Bank, draw
from impasto.pretrain.pool import KINDS, Pool, train_world
from impasto.pretrain.state import Clock


@pytest.fixture
def small_world(tmp_path, monkeypatch):
    """An art world of 20 things in each train style, in a cache of its own: discs in different colours."""
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    split, webp, styles, concepts = load_meta()["split"], [], [], []
    for style in split["train_styles"]:
        for concept in split["core_everywhere"][:20]:
            image = Image.new("RGBA", (128, 128))
            ImageDraw.Draw(image).ellipse((16, 20, 110, 100), fill=(37 * concept % 256, 91 * style % 256, 90, 255))
            rgba = np.array(image)
            webp.append(np.frombuffer(encode_webp(rgba * (rgba[..., 3:] > 0)), np.uint8))
            styles.append(style)
            concepts.append(concept)
    cache_dir().mkdir(parents=True)
    tensors = {
        "webp": np.concatenate(webp),
        "offset": np.cumsum([0, *map(len, webp)]).astype(np.int64),
        "style_id": np.array(styles, np.int16),
        "concept_id": np.array(concepts, np.int16),
    }
    save_arrays(tensors, cache_dir() / DATA_NAME)
    return train_world()


def empty_bank(n: int = 0) -> Bank:
    entries = Pool(np.empty(0, np.uint8), ())
    entries.rows["plain"] = np.arange(n)
    ids = torch.zeros(n, CAPTIONS, 32, dtype=torch.int16)
    return Bank(torch.zeros(n, 16, 16, 16).half(), ids, torch.full((32,), 9, dtype=torch.int16), entries)


def test_make_chunk_is_a_function_of_seed_and_number(small_world, tmp_path):
    paths = [pool_workers.make_chunk(tmp_path / name, k, small_world, 0) for name, k in (("a", 0), ("b", 0), ("b", 1))]
    first, again, other = (load_file(path) for path in paths)
    n = len(small_world)
    counts = [int((first["kind"] == k).sum()) for k in range(len(KINDS))]
    assert counts == [0, round(0.05 * n), round(0.4 * n), round(0.1 * n)]
    assert first["latents"].shape[1:] == (16, 16, 16) and first["ids"].shape[1:] == (CAPTIONS, 32)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["latents"], other["latents"])


def test_bank_extend_draws_new_pictures_by_kind():
    bank = empty_bank(4)
    kind = torch.tensor([KINDS.index("procedural")] * 3 + [KINDS.index("scene")], dtype=torch.int8)
    bank.extend(torch.ones(4, 16, 16, 16).half(), torch.ones(4, CAPTIONS, 32, dtype=torch.int16), kind)
    assert {name: list(rows) for name, rows in bank.pool.rows.items() if len(rows)} == {
        "plain": [0, 1, 2, 3], "procedural": [4, 5, 6], "scene": [7],
    }  # fmt: skip
    x0, ids, _, _ = draw(bank, 2000, 0, 0, {"plain": 0.5, "procedural": 0.5})
    new = x0[:, 0, 0, 0] == 1
    assert float(new.float().mean()) == pytest.approx(0.5, abs=0.05)
    assert set(ids[new, 0].tolist()) == {1, 9} and set(ids[~new, 0].tolist()) == {0, 9}


def test_pool_workers_write_chunks_that_are_collected_once(small_world, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_workers, "CHUNKS", 1)
    bank = empty_bank()
    with pool_workers.PoolWorkers(1, tmp_path / "chunks", None, 0) as workers:
        end = time.monotonic() + 120
        while not (n := workers.collect(bank)) and time.monotonic() < end:
            time.sleep(0.1)
        assert n == len(bank.latents) > 0 and workers.collect(bank) == 0
    assert not (tmp_path / "chunks").exists() and not workers.processes[0].is_alive()


def test_pool_workers_that_all_fail_raise(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_workers, "_work", random.Random)  # a TypeError in the process: too many arguments
    with pool_workers.PoolWorkers(1, tmp_path / "chunks", None, 0) as workers:
        workers.processes[0].join(60)
        with pytest.raises(RuntimeError, match="all 1 pool workers failed"):
            workers.collect(empty_bank())


def test_pretrain_with_workers_begins_with_plain_pictures(small_world, tmp_path, monkeypatch):
    class FewSteps(Clock):
        steps = 0

        @property
        def stop(self) -> bool:
            self.steps += 1
            return self.steps > 3

    started = []

    class Started(pool_workers.PoolWorkers):
        def __init__(self, n, *rest):
            started.append(n)
            super().__init__(0, *rest)

    for part in ("autoencoder", "clip"):
        shutil.copytree(MODELS / part, tmp_path / "models" / part)
    for module in (run, mini):
        monkeypatch.setattr(module, "MODELS", tmp_path / "models")
    monkeypatch.setattr(run, "Clock", FewSteps)
    monkeypatch.setattr(run, "PoolWorkers", Started)
    done = run.pretrain("mini-sd3", 1, device="cpu", size="1x1", batch=4, score=0, folder=tmp_path / "run", workers=2)
    first = (tmp_path / "run" / "log.jsonl").read_text().splitlines()[0]
    assert started == [2] and done["pictures"] == 12
    assert f'"plain": {len(small_world)}, "ground": 0, "procedural": 0, "scene": 0' in first
