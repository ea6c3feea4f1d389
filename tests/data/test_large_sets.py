"""Sets that do not fit in memory: rows stay in their cache files, and a batch reads its own."""

import hashlib
import json
import os
import struct
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from impasto.bases.loader import load
from impasto.config import make_config
from impasto.data import items, prepare
from impasto.data.advice import alike
from impasto.data.cache import DiskRows, place
from impasto.data.draws import Draws, split_batch
from impasto.data.prepare import prepare_items
from impasto.errors import UserError
from impasto.noise.laws import build_law

COUNT = 4_000
LATENT, TEXT = (4, 72, 72), (1, 77, 320)  # 81 and 96 KiB: 726 MB of the whole set
BOUND = 150e6  # bytes of resident memory that reading, preparing and drawing may add
LAW = build_law("uniform")


def resident():
    """Bytes of resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def write(key, name, shape, dtype, values):
    """A cache file whose tensor begins with `values`; the rest are zeros that take no room on the disk."""
    file, text = place(key)
    data = struct.pack(f"<{len(values)}{'f' if dtype == 'F32' else 'q'}", *values)
    size = torch.Size(shape).numel() * (4 if dtype == "F32" else 8)
    entry = {"dtype": dtype, "shape": list(shape), "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": {"key": text}, name: entry}).encode()
    header += b" " * (-len(header) % 8)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(header)) + header + data)
        out.truncate(8 + len(header) + size)


class Cached:
    """A family of which everything is in the cache."""

    hash, precision, text_lengths = "cached", "fp32", {77: 1.0}

    def free(self, *parts):
        pass


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_4000_pairs_are_read_batch_by_batch_in_flat_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "prepared").mkdir(parents=True)
    folder = tmp_path / "style"
    folder.mkdir()
    for i in range(COUNT):
        content = f"image {i}".encode()
        (folder / f"{i:05}.png").write_bytes(content)
        facts = {"facts of": hashlib.sha256(content).hexdigest()}
        write(facts, "facts", (6,), "I64", [256, 256, i * 0x9E3779B97F4A7C15 % 2**63])
    lines = ({"file_name": f"{i:05}.png", "text": f"{i} in ink style"} for i in range(COUNT))
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = make_config(image=(folder,), size=256, batch=32)
    family, before, peak = Cached(), resident(), [0]

    def measure(*_):
        peak.append(resident() - before)

    started = time.perf_counter()
    found = items.read(config.data, config.base, {}, lambda phase, done, total: done % 1000 or measure())
    read = time.perf_counter()
    assert "nearly the same" not in alike(found, config.data)
    advised = time.perf_counter()
    for i, one in enumerate(found):
        write(prepare.view_key(family, one, one.views[0]), "x", LATENT, "F32", [i])
        write(prepare.text_entry(family, one.caption, 77)[0], "text", TEXT, "F32", [i])
    written = time.perf_counter()
    prepared = prepare_items(family, found, progress=lambda phase, done, total: done % 1000 or measure())
    ready = time.perf_counter()
    draws = Draws(config, LAW, prepared.to("cpu"), "cpu")
    for step in range(100):
        batch, _, _ = draws(step, 0)
        marks = batch.x[:, 0, 0, 0]
        assert torch.equal(batch.cond["text"][:, 0, 0], marks)
        assert [int(prompt.split()[0]) for prompt in batch.prompts] == marks.tolist()
        measure()
    seconds = {"read": read - started, "advise": advised - read, "prepare": ready - written}
    seconds["step"] = (time.perf_counter() - ready) / 100
    print({name: round(value, 3) for name, value in seconds.items()}, f"peak {max(peak) / 1e6:.0f} MB")
    assert len(found) == COUNT and max(peak) < BOUND


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four images of two shapes, two of them with masks."""
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "style").mkdir()
    for i, size in enumerate([(16, 16), (40, 12), (33, 30), (64, 64)]):
        Image.effect_noise(size, 90 + i).convert("RGB").save(tmp_path / "style" / f"{i}.png")
        (tmp_path / "style" / f"{i}.txt").write_text(f"a {['rocket', 'cat', 'star', 'face'][i]} in ink style")
        if i % 2:
            Image.linear_gradient("L").resize(size).save(tmp_path / "style" / f"{i}.mask.png")
    return tmp_path / "style"


def prepared_of(folder, family, **changes):
    config = make_config(image=(folder,), size=16, batch=6, mask="files", crops=2, caption_dropout=0.3, **changes)
    found = items.read(config.data, config.base, {"bucket_step": 8})
    return Draws(config, LAW, prepare_items(family, found, dropout=True, teacher=family), "cpu")


def test_large_set_has_the_draws_of_a_small_one(tiny_sd3, folder, monkeypatch):
    family = load(str(tiny_sd3), device="cpu")
    small = prepared_of(folder, family)
    monkeypatch.setattr("impasto.data.prepare.ON_DEVICE", 10)
    large = prepared_of(folder, family)
    assert isinstance(small.prepared.x, list) and isinstance(large.prepared.x, DiskRows)
    assert large.prepared.to("meta") is large.prepared
    for step in range(8):
        (a, lam_a, own), (b, lam_b, _) = small(step, 0), large(step, 0)
        assert torch.equal(a.x, b.x) and torch.equal(a.eps, b.eps) and torch.equal(lam_a, lam_b)
        assert (a.mask is None) == (b.mask is None) and (a.mask is None or torch.equal(a.mask, b.mask))
        assert a.prompts == b.prompts and a.cond.keys() == b.cond.keys()
        for one, two in ((a.cond, b.cond), (a.teacher_cond, b.teacher_cond)):
            assert all(torch.equal(one[name], two[name]) for name in one)
        assert small.at_once(step, 2) == large.at_once(step, 2)
        assert len(list(split_batch((b, lam_b, own), 2))) == 3


def test_large_set_looks_up_shapes_without_reading(tiny_sd3, folder, monkeypatch):
    family = load(str(tiny_sd3), device="cpu")
    monkeypatch.setattr("impasto.data.prepare.ON_DEVICE", 10)
    draws = prepared_of(folder, family)
    read = []
    monkeypatch.setattr("impasto.data.cache.Stored.read", lambda self: read.append(self))
    assert len(draws.buckets) == 2 and draws.at_once(1, 2) >= 1 and read == []


def test_large_set_whose_cache_file_is_removed_names_it(tiny_sd3, folder, monkeypatch):
    family = load(str(tiny_sd3), device="cpu")
    monkeypatch.setattr("impasto.data.prepare.ON_DEVICE", 10)
    draws = prepared_of(folder, family)
    for row in draws.prepared.x.stored:
        (folder.parent / "cache" / "prepared" / f"{row.digest}.safetensors").unlink()
    with pytest.raises(UserError, match=r"\.safetensors' was removed or damaged while it was in use: start again"):
        draws(1, 0)
