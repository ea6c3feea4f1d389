"""The kit for a lent GPU, on the CPU with small stand-ins: pack, train, bring back, unpack."""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

import impasto.files
from impasto.artworld import load, load_meta
from impasto.artworld.build import encode_webp
from impasto.pretrain import base, score
from impasto.pretrain.mmdit import MMDiT

SCRIPTS = Path(__file__).parents[2] / "scripts" / "gpu"
sys.path.insert(0, str(SCRIPTS))
import kit  # noqa: E402
import muon  # noqa: E402
import pack  # noqa: E402
import parts  # noqa: E402
import pieces  # noqa: E402
import pretrain  # noqa: E402
import unpack  # noqa: E402


def little_world(path: Path, concepts: int = 4) -> kit.Arrays:
    """The train styles and a held-out one, `concepts` things each (half are core), as a data file of the art world."""
    meta = load_meta()
    styles = [*meta["split"]["train_styles"], meta["split"]["heldout_styles"][0]]
    things = (
        meta["split"]["core_everywhere"][: concepts // 2]
        + [c for c in range(len(meta["concepts"])) if c not in meta["split"]["core_everywhere"]][
            : concepts - concepts // 2
        ]
    )
    webp, style_id, concept_id = [], [], []
    for style in styles:
        for concept in things:
            image = Image.new("RGBA", (128, 128))
            colour = ((37 * concept) % 256, (91 * style) % 256, 90, 255)
            ImageDraw.Draw(image).ellipse((16 + concept % 20, 20, 110, 100 + style % 10), fill=colour)
            rgba = np.array(image)
            rgba[rgba[..., 3] == 0] = 0
            webp.append(np.frombuffer(encode_webp(rgba), np.uint8))
            style_id.append(style)
            concept_id.append(concept)
    data = {
        "webp": np.concatenate(webp),
        "size": np.array([len(w) for w in webp]),
        "style_id": np.array(style_id, np.int16),
        "concept_id": np.array(concept_id, np.int16),
        "row": np.arange(len(webp), dtype=np.int32),
    }
    kit.write_world(path, data, {})
    return data


@pytest.fixture
def world(tmp_path, monkeypatch) -> kit.Arrays:
    """A little art world in a cache of its own."""
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    return little_world(tmp_path / "cache" / kit.WORLD)


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A copy of the package's shared parts, in the place of the package wherever it is looked up."""
    original, models = impasto.files.MODELS, tmp_path / "package" / "models"
    for part in ("autoencoder", "clip"):
        shutil.copytree(original / part, models / part)
    for module in list(sys.modules.values()):
        if getattr(module, "MODELS", None) == original:
            monkeypatch.setattr(module, "MODELS", models)
    monkeypatch.setattr(pack, "STASH", tmp_path / "stash")
    return models


def test_a_file_comes_back_in_parts_or_not_at_all(tmp_path):
    sent = tmp_path / "sent"
    sent.mkdir()
    content = np.random.default_rng(0).bytes(2500)
    (sent / "weights.bin").write_bytes(content)
    (sent / "small.txt").write_text("small")
    files = kit.describe(sent, 1000)
    assert sorted(p.name for p in sent.iterdir()) == ["small.txt", *(f"weights.bin.part{i}" for i in range(3))]
    assert kit.assemble(sent, files, tmp_path / "whole") == []
    assert (tmp_path / "whole" / "weights.bin").read_bytes() == content
    (sent / "small.txt").write_text("smaLl")
    (sent / "weights.bin.part1").unlink()
    wrong = kit.assemble(sent, files, tmp_path / "again")
    assert [line.split()[0] for line in wrong] == ["small.txt", "weights.bin.part1"]
    assert not (tmp_path / "again").exists()


def test_the_packed_world_is_the_train_styles_in_loads_that_join(tmp_path, world):
    everything = load()
    train = load_meta()["split"]["train_styles"]
    room = int(world["size"][np.isin(world["style_id"], train)].sum() * 0.4)
    folders = pack.pack_world(tmp_path / "gpu", "all", tmp_path / "cache" / kit.WORLD, room, room)
    assert [f.name for f in folders] == ["cache", "cache-2", "cache-3"]
    for folder in folders:
        part = load(path=folder / kit.WORLD)  # each load is a data file like any other
        assert len(part) and set(part.style_id) <= set(train)
        assert json.loads((folder / "artworld" / "meta.json").read_text())["pictures"] == len(part)
    core = load_meta()["split"]["core_everywhere"]
    assert np.isin(load(path=folders[0] / kit.WORLD).concept_id, core).all()  # the core goes first
    joined = tmp_path / "joined" / kit.WORLD
    note = kit.join_worlds([f / kit.WORLD for f in reversed(folders)], joined)
    whole, rows = load(path=joined), np.flatnonzero(np.isin(everything.style_id, train))
    assert note["pictures"] == len(whole) == 48
    assert np.array_equal(whole.rgba, everything.rgba[rows])
    assert np.array_equal(whole.concept_id, everything.concept_id[rows])
    assert np.array_equal(kit.read_world(joined)["row"], rows)  # so that the validation pictures are the same ones
    with pytest.raises(kit.KitError, match="loads"):
        kit.join_worlds([f / kit.WORLD for f in folders[:2]], joined)
    again = pack.pack_world(tmp_path / "other", "core_everywhere", tmp_path / "cache" / kit.WORLD, 10**6, 10**6)
    assert len(load(path=again[0] / kit.WORLD)) == 24
    with pytest.raises(kit.KitError, match="several packings"):
        kit.join_worlds([again[0] / kit.WORLD, folders[1] / kit.WORLD], joined)
    with pytest.raises(kit.KitError, match="no room"):
        pack.plan(world["size"], [np.arange(3)], 1, 10**6)


def repository(folder: Path) -> Path:
    """A git repository with one tracked, one untracked and one ignored file."""
    folder.mkdir()
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    (folder / "models").mkdir()
    (folder / "models" / "weights.bin").write_bytes(b"w" * 3000)
    (folder / ".gitignore").write_text(".gpu/\n")
    (folder / "new.txt").write_text("not added yet")
    (folder / ".gpu" / "cache-2").mkdir(parents=True)
    (folder / ".gpu" / "cache-2" / "x").write_bytes(b"x" * 500)
    (folder / ".gpu" / "whl").mkdir()
    subprocess.run(["git", "add", "models", ".gitignore"], cwd=folder, check=True)
    return folder.resolve()


def test_what_travels_is_told_and_weights_are_stashed_safely(tmp_path, capsys, monkeypatch):
    root, side = repository(tmp_path / "repo"), tmp_path / "side"
    assert pack.tree_files(root) == {".gitignore": 6, "models/weights.bin": 3000, "new.txt": 13}
    assert pack.calls(root, root / ".gpu") == [("load", [".gpu/cache-2"]), ("start", [".gpu/whl"]), ("attach", [])]
    assert pack.show_sizes(root, root / ".gpu")
    monkeypatch.setattr(pack, "LIMIT", pack.MARGIN + 3200)
    assert not pack.show_sizes(root, root / ".gpu") and "too much" in capsys.readouterr().out

    weights = root / "models" / "weights.bin"
    pack.stash(root, ["models"], side)
    assert not weights.exists() and "models/weights.bin" not in pack.tree_files(root)
    with pytest.raises(kit.KitError, match="already holds"):
        pack.stash(root, ["new.txt"], side)
    weights.write_bytes(b"made anew")
    with pytest.raises(kit.KitError, match="made anew"):
        pack.unstash(root, side)
    assert weights.read_bytes() == b"made anew" and (side / "files" / "models" / "weights.bin").exists()
    weights.unlink()
    pack.unstash(root, side)
    assert weights.read_bytes() == b"w" * 3000 and not side.exists()
    status = subprocess.run(["git", "status", "--short"], cwd=root, capture_output=True, text=True, check=True).stdout
    assert [line[:2] for line in status.splitlines()] == ["A ", "A ", "??"]
    for bad in ("nothing", "../repo/../side"):
        with pytest.raises(kit.KitError):
            pack.stash(root, [bad], side)


def test_a_wheel_whose_needs_are_not_there_is_named(tmp_path):
    def wheel(name: str, *needs: str) -> Path:
        path = tmp_path / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            lines = ["Metadata-Version: 2.1", *(f"Requires-Dist: {need}" for need in needs), "", "text"]
            archive.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join(lines))
        return path

    good = [wheel("one", "numpy>=2", "two_parts", 'tyro; extra == "cli"'), wheel("two_parts")]
    assert pack.unmet(good) == []
    bad = pack.unmet([wheel("three", "tyro>=1", "safetensors>=9", 'old; python_version < "3.10"')])
    assert len(bad) == 2 and "tyro" in bad[0] and "0.8.0 would be there" in bad[1]


def test_a_wheel_is_slimmed_to_the_device(tmp_path):
    wheel = tmp_path / "bitsandbytes-1.0-py3-none-any.whl"
    names = ["b/a.py", "b/lib_cpu.so", f"b/lib_{pack.CUDA}.so", "b/lib_cuda118.so", "b/lib_rocm70.so"]
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.writestr(name, name)
        archive.writestr("b-1.0.dist-info/RECORD", "".join(f"{name},sha256=x,1\n" for name in names))
    pack.slim(wheel)
    with zipfile.ZipFile(wheel) as archive:
        assert archive.namelist() == [*names[:3], "b-1.0.dist-info/RECORD"]
        assert archive.read("b/a.py") == b"b/a.py"
        record = archive.read("b-1.0.dist-info/RECORD").decode()
    assert record.count("\n") == 3 and "rocm" not in record and "cuda118" not in record


def test_packaged_bases_travel_in_the_start_and_wheels_before(tmp_path):
    root, side, out = tmp_path / "root", tmp_path / "side", tmp_path / "root" / ".gpu"
    for place, name in ((root, pack.DENOISERS[0]), (side / "files", pack.DENOISERS[1])):
        (place / name).mkdir(parents=True)
        (place / name / "x.safetensors").write_bytes(b"x")
    pack.pack_models(out / "models", ["mini-sd3", "mini-sd15"], root, side)
    found = {str(p.relative_to(out)) for p in out.rglob("*.safetensors")}
    assert found == {"models/mini-sd3/transformer/x.safetensors", "models/mini-sd15/unet/x.safetensors"}
    for name in ("whl", "cache", "cache-2", "cache-3"):
        (out / name).mkdir()
    assert pack.calls(root, out) == [
        ("load", [".gpu/cache-2", ".gpu/whl"]),
        ("load", [".gpu/cache-3"]),
        ("start", [".gpu/cache", ".gpu/models"]),
        ("attach", []),
    ]
    pack.pack_models(out / "models", [], root, side)
    assert pack.calls(root, out)[2] == ("start", [".gpu/cache", ".gpu/whl"])
    with pytest.raises(kit.KitError, match="unknown base"):
        pack.pack_models(out / "models", ["mini"], root, side)
    shutil.rmtree(side)
    with pytest.raises(kit.KitError, match="neither in the tree nor stashed"):
        pack.pack_models(out / "models", ["mini-sd15"], root, side)


def test_stacked_muon_is_muon():
    models = [MMDiT().new((6, 3)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    blocks = [m.transformer_blocks[0] for m in models]
    plain, stacked = (
        torch.optim.Muon(
            [p for p in b.parameters() if p.ndim == 2], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
        )
        for b in blocks
    )
    stacked = muon.StackedMuon.like(stacked)
    begin = [p.detach().clone() for p in blocks[0].parameters()]
    for step in range(2):
        g = torch.Generator().manual_seed(step)
        for p, q in zip(*(b.parameters() for b in blocks), strict=True):
            p.grad = torch.randn(p.shape, generator=g)
            q.grad = p.grad.clone()
        plain.step()
        stacked.step()
    moved = 0
    for start, p, q in zip(begin, *(b.parameters() for b in blocks), strict=True):
        if p.ndim == 2:
            moved += 1
            assert (
                torch.dist(p.detach(), q.detach()) < 0.02 * torch.dist(p.detach(), start) > 0
            )  # bfloat16, in another order of sums
    assert moved == 14
    stacked.load_state_dict(plain.state_dict())  # one state fits both
    with pytest.raises(ValueError, match="match_rms_adamw"):
        muon.StackedMuon.like(torch.optim.Muon([torch.nn.Parameter(torch.ones(2, 2))]))


def test_pieces_are_drawn_by_kind_and_by_favour(tmp_path):
    kinds = torch.tensor([0] * 6 + [2] * 3, dtype=torch.int8)
    for k in range(2):
        tensors = {
            "latents": torch.full((9, 16, 16, 16), float(k)).half(),
            "ids": torch.full((9, base.CAPTIONS, 32), 7, dtype=torch.int16),
            "kind": kinds,
            "concept": torch.arange(9, dtype=torch.int16),
        }
        save_file(tensors, pieces.piece_path(tmp_path, k))
    bank = pretrain.Pieces(tmp_path, "cpu", {"plain": 0.75, "procedural": 0.25, "scene": 0.5}, {0}, 4.0)
    assert bank.refresh() and not bank.refresh()
    assert bank.counts() == {"plain": 12, "ground": 0, "procedural": 6, "scene": 0}
    share = torch.diff(bank.cdf, prepend=torch.zeros(1))
    assert float(share[:6].sum() + share[9:15].sum()) == pytest.approx(0.75)
    assert float(share[0] / share[1]) == pytest.approx(4.0) and float(share[0] / share[9]) == pytest.approx(1.0)
    empty = torch.zeros(32, dtype=torch.int16)
    a, b = bank.draw(512, 0, 3, empty), bank.draw(512, 0, 3, empty)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    x0, ids, z, eps = a
    assert x0.shape == eps.shape == (512, 16, 16, 16) and 0.4 < float(x0.mean()) < 0.6
    assert float((ids == 0).all(1).float().mean()) == pytest.approx(base.DROPPED, abs=0.05)
    assert float(z.mean()) == pytest.approx(0, abs=0.15) and float(z.std()) == pytest.approx(1, abs=0.15)
    shifted = bank.draw(512, 0, 3, empty, offset=0.5)
    assert all(torch.equal(x, y) for x, y in zip(a[:3], shifted[:3], strict=True))
    shift = shifted[3] - eps  # one number per picture and channel
    assert torch.allclose(shift, shift[..., :1, :1].expand_as(shift), atol=1e-5)
    assert float(shift[..., 0, 0].std()) == pytest.approx(0.5, abs=0.02)


def run_options(run: Path, *more: str):
    flags = ["--run", str(run), "--size", "1x1", "--concepts", "all", "--batch", "4", "--device", "cpu"]
    flags += ["--compile", "no", "--workers", "0", "--pieces", "1", "--procedurals", ".2", "--scenes", ".2"]
    return [*flags, *more]


@pytest.mark.parametrize("text", ["frozen", "new"])
def test_a_base_is_trained_comes_back_and_lies_in_the_package(text, tmp_path, world, package, monkeypatch, capsys):
    heard = parts.text_hash(package / "clip")
    monkeypatch.setattr(score, "GRID_STYLES", ("twemoji",))
    monkeypatch.setattr(score, "GRID_THINGS", ("rocket",))
    monkeypatch.setattr(score, "STEPS", 2)
    monkeypatch.setattr(pretrain, "LOG_STEPS", 5)
    monkeypatch.setattr(kit.describe, "__defaults__", (200_000,))
    run, out = tmp_path / "run", tmp_path / "out"
    target = pretrain.main(run_options(run, "--minutes", ".05", "--reserve", "0", "--score", "0", "--text", text))
    assert target.parent == run / "export" and (run / "done.json").exists()
    names = kit.copy_export(run, out)
    assert {"manifest.json", "grid.png", "log.jsonl", "weights.safetensors.part0", "weights.safetensors.part2"} <= {
        *names
    }
    manifest = json.loads((out / "manifest.json").read_text())
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.isfinite(losses).all() and manifest["seen"]["pictures"] >= 4 * manifest["seen"]["step"] * 0.9

    assert unpack.main([str(out), "--check"]) == {} and not (package / "mini-sd3").exists()
    card = unpack.main([str(out)])
    assert (parts.text_hash(package / "clip") == heard) == (text == "frozen")
    assert parts.text_hash(package / "clip") == manifest["text"]
    stored = load_file(package / "mini-sd3" / "transformer" / "diffusion_pytorch_model.safetensors")
    trained = load_file(next((run / "state").glob("state-*.safetensors")))
    assert {f"ema.{name}" for name in stored} == {name for name in trained if name.startswith("ema.")}
    assert all(torch.equal(value, trained[f"ema.{name}"].half()) for name, value in stored.items())
    assert card["training"] == manifest["seen"] and len(card["concepts"]) == 1194
    assert (tmp_path / "cache" / "pretrain" / "mini-sd3-gpu" / "log.jsonl").exists()

    manifest["fingerprint"][0] += 1.0  # as if another text tower had been there
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(kit.KitError, match="do not say here"):
        unpack.main([str(out)])
    (out / "weights.safetensors.part1").write_bytes(b"")
    with pytest.raises(kit.KitError, match=r"part1 is not the file"):
        unpack.main([str(out)])

    if text == "new":
        with pytest.raises(kit.KitError, match="a text tower of its own"):
            pack.pack_start(tmp_path / "gpu" / "start", run / "state")
        return
    # the same weights to begin from, as pack.py carries them; and a loss that is not finite
    told = pack.pack_start(tmp_path / "gpu" / "start", run / "state")
    assert told["layers"] == 1 and told["pictures"] == manifest["seen"]["pictures"]
    o = pretrain.options(
        run_options(tmp_path / "run2", "--start", str(tmp_path / "gpu" / "start" / "transformer"), "--text", "frozen")
    )
    trainer = pretrain.Trainer(o, o.run / "state")
    assert torch.equal(trainer.model.proj_out.weight, stored["proj_out.weight"].float())
    assert trainer.seen == manifest["seen"]
    bank = pretrain.Pieces(run / "pieces", "cpu", base.SHARES, set(), 1.0)
    assert bank.refresh()
    trainer.first = trainer.seen["step"]
    with pytest.raises(RuntimeError, match="smaller --lr"):
        trainer.go_back()
    trainer.step(bank, 0.0)
    trainer.keep()
    kept = [t.clone() for t in trainer.tensors()]
    trainer.model.proj_out.weight.data.fill_(float("nan"))
    trainer.step(bank, 0.0)
    assert not all(bool(torch.isfinite(t).all()) for t in trainer.tensors())
    trainer.go_back()
    assert all(torch.equal(a, b) for a, b in zip(kept, trainer.tensors(), strict=True)) and trainer.lr == o.lr / 2


def test_a_second_base_follows_the_pieces_of_the_first(tmp_path, world, package, monkeypatch):
    monkeypatch.setattr(score, "GRID_STYLES", ("twemoji",))
    monkeypatch.setattr(score, "GRID_THINGS", ("rocket",))
    monkeypatch.setattr(score, "STEPS", 2)
    made = tmp_path / "first" / "pieces"
    pieces.main(["--folder", str(made), "--concepts", "all", "--procedurals", ".2", "--scenes", ".2"])
    flags = ["--follow", str(made), "--base", "mini-sd15", "--offset", ".15", "--size", "32x32x32", "--text", "frozen"]
    flags += ["--minutes", ".05", "--reserve", "0", "--score", "0", "--workers", "3"]  # which it does not start
    target = pretrain.main(run_options(tmp_path / "run", *flags))
    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest["seen"]["step"] >= 1 and manifest["settings"]["offset"] == 0.15
    assert not (tmp_path / "run" / "pieces").exists() and not list(made.glob("worker-*"))


def test_the_loss_is_compiled_before_anything_is_learnt(tmp_path, world, package):
    o = pretrain.options(run_options(tmp_path / "run", "--text", "frozen", "--compile", "yes", "--backend", "eager"))
    trainer = pretrain.Trainer(o, o.run / "state")
    before = [t.clone() for t in trainer.tensors()]
    with pretrain.Clock(1.0) as clock:
        trainer.choose(clock)
        assert trainer.loss != trainer.net.loss
        trainer.loss = trainer.net.loss
        trainer.o.backend = "no such backend"
        trainer.choose(clock)
    assert trainer.loss == trainer.net.loss
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.tensors(), strict=True))
    assert all(p.grad is None for p in trainer.model.parameters()) and trainer.seen["step"] == 0
    rows = [json.loads(line) for line in (o.run / "state" / "log.jsonl").read_text().splitlines()]
    assert [row.get("compiled") for row in rows] == [True, None, False] and "compile failed" in rows[1]


def test_a_new_clip_binds_the_base_that_came_with_it(tmp_path, world, package, monkeypatch):
    with pytest.raises(kit.KitError, match="kit's own copy"):
        parts.make_clip(0.01, tmp_path / "clip", 8, "cpu", 0)
    monkeypatch.setenv("IMPASTO_GPU_KIT", str(tmp_path))
    before = parts.text_hash(package / "clip")
    parts.make_clip(0.02, tmp_path / "clip", 16, "cpu", 0)
    after = parts.text_hash(package / "clip")
    assert before != after
    work = tmp_path / "work"
    work.mkdir()
    shutil.copy(package / "clip" / "model.safetensors", work / "clip.safetensors")
    manifest = {"encoder": parts.encoder_hash(package / "autoencoder"), "text": before}
    with pytest.raises(kit.KitError, match="text tower"):
        unpack.check_parts(manifest, work)
    unpack.check_parts({**manifest, "text": after}, work)
    with pytest.raises(kit.KitError, match="another encoder"):
        unpack.check_parts({**manifest, "encoder": "0"}, work)


def test_the_decoder_goes_on_learning_and_the_encoder_stays(tmp_path, world, package):
    o = parts.options(["decoder", "--run", str(tmp_path / "run"), "--minutes", ".04", "--batch", "4", "--device", "cpu",
                       "--probe", "1"])  # fmt: skip
    export = parts.decoder(o)
    manifest = json.loads((export / "manifest.json").read_text())
    old = load_file(package / "autoencoder" / "diffusion_pytorch_model.safetensors")
    new = load_file(export / "autoencoder.safetensors")
    assert manifest["training"]["step"] >= 1 and set(old) == set(new)
    assert all(torch.equal(old[n], new[n]) for n in old if n.startswith("encoder."))
    assert any(not torch.equal(old[n], new[n]) for n in old if n.startswith("decoder."))
    rgb, kept = parts.pictures()
    assert len(rgb) == 48 and list(np.flatnonzero(kept)) == [7]


def test_the_shell_keeps_loads_and_tells_when_the_training_died(tmp_path):
    tree, machine = tmp_path / "tree", tmp_path / "kit"
    shutil.copytree(SCRIPTS, tree / "scripts" / "gpu", ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "src").mkdir()
    (tree / ".gpu" / "cache-2").mkdir(parents=True)
    (tree / ".gpu" / "cache-2" / "x").write_text("a part")
    stub = tmp_path / "python"
    stub.write_text(f"""#!/bin/bash
case "$*" in
  *pretrain.py*) echo "the first words"; sleep 1; echo "RuntimeError: boom"; exit 3 ;;
  *make-flux*) sleep 2; echo "$@" >"$IMPASTO_GPU_KIT/flux" ;;
  *checks.py*) echo "$@" ;;
  -c*) exit 0 ;;
  *) exec {sys.executable} "$@" ;;
esac
""")
    stub.chmod(0o755)
    more = {"PYTHON": str(stub), "IMPASTO_GPU_KIT": str(machine), "OUT": str(tmp_path / "out")}

    def shell(*args: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", str(tree / "scripts" / "gpu" / "pretrain.sh"), *args]
        return subprocess.run(command, env={**os.environ, **more}, capture_output=True, text=True, timeout=60)

    assert shell("load").returncode == 0 and (machine / "loads" / "cache-2" / "x").read_text() == "a part"
    died = shell("start", "30", "--size", "small")
    assert died.returncode == 1 and "RuntimeError: boom" in died.stderr
    more["IMPASTO_GPU_RUN"] = "second"  # a run of its own, in a folder of its own
    assert shell("start", "30").returncode == 1 and (machine / "second" / "pid").exists()
    assert (tmp_path / "out" / "second").is_dir()
    assert shell("nothing").returncode == 2
    assert "--seconds 190 flux --what auto" in shell("check", "200", "flux", "--what", "auto").stdout
    began = time.monotonic()
    assert shell("make-flux", "--little").returncode == 0 and not (machine / "flux").exists()
    while time.monotonic() - began < 30 and not (machine / "flux").exists():  # it outlives its call
        time.sleep(0.1)
    assert "make-flux --device cpu --little" in (machine / "flux").read_text()


def test_a_bench_of_its_own_needs_only_the_wheels(tmp_path, monkeypatch, capsys):
    def wheels(out: Path, constraints: Path, names: tuple[str, ...]) -> None:
        assert names == pack.WHEELS
        out.mkdir(parents=True)
        (out / "diffusers.whl").write_bytes(b"w" * 2**20)

    whole = pack.tree_files

    def stashed(root: Path) -> dict[str, int]:
        """As after --stash: with the denoisers the tree alone is too large."""
        return {name: size for name, size in whole(root).items() if not name.startswith(pack.DENOISERS)}

    monkeypatch.setattr(pack, "tree_files", stashed)
    monkeypatch.setattr(pack, "pack_wheels", wheels)
    assert pack.main(["--wheels", "--out", str(tmp_path / "gpu")])
    assert [path.name for path in (tmp_path / "gpu").iterdir()] == ["whl"]
    assert f"carry {tmp_path / 'gpu' / 'whl'}" in capsys.readouterr().out
    monkeypatch.setattr(pack, "LIMIT", 2**20)
    (tmp_path / "gpu" / "whl" / "diffusers.whl").unlink()
    (tmp_path / "gpu" / "whl").rmdir()
    assert not pack.main(["--wheels", "--out", str(tmp_path / "gpu")])
