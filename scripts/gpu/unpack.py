"""Takes what came back from the device machine, checks it, and puts it into the package.

    python scripts/gpu/unpack.py FILES            # the folder that the call names as files_at (or its decoder/)
    python scripts/gpu/unpack.py FILES --check    # only say whether everything is right

A base: every hash, the shapes, the numbers that the weights give for fixed inputs here and there (so that the text
tower and the tokeniser are the same too), the encoder that its latents were made by. Then `Session.export` writes
transformer, scheduler and card, and what lies in the package is read back and compared. Log, grid and scores are kept
in the cache (`pretrain/<base>-gpu`). A decoder: the encoder must be the packaged one; held-out styles score it.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import kit
import pack
import parts
import torch
from diffusers import AutoencoderKL
from kit import KitError
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPTokenizer

import impasto
from impasto.bases import embedded as mini
from impasto.files import MODELS, cache_dir
from impasto.pretrain import autoencoder as ae
from impasto.pretrain import clip as contrastive
from impasto.pretrain.parts import autoencoder_scores, export_autoencoder, export_clip, train_pictures
from impasto.pretrain.run import Session, known_concepts

TOLERANCE = 0.02  # of the fingerprint's norm: fp32 on two machines, with tf32 convolutions on one


class Received(Session):
    """A session that begins with nothing: its EMA is what came back."""

    def _begin(self, shape: tuple[int, ...]) -> None:
        pass


def received(files: Path, work: Path) -> dict[str, Any]:
    """The manifest, its files checked and joined into `work`. Raises KitError that names all that is wrong."""
    if not (files / "manifest.json").is_file():
        raise KitError(f"{files} has no manifest.json: nothing was exported yet, or this is another folder")
    manifest = json.loads((files / "manifest.json").read_text())
    if manifest.get("kind") not in ("base", "decoder"):
        raise KitError(f"{files / 'manifest.json'} is no manifest of this kit")
    if wrong := kit.assemble(files, manifest["files"], work):
        raise KitError("; ".join(wrong))
    return manifest


def new_clip(work: Path) -> Path:
    """A CLIP that came back, as a folder beside its weights; the package's where none did."""
    folder = work / "clip"
    if not (work / "clip.safetensors").exists():
        return MODELS / "clip"
    if not folder.exists():
        shutil.copytree(MODELS / "clip", folder)  # for the tokeniser
        model: Any = contrastive.new_clip(CLIPTokenizer.from_pretrained(folder))
        model.load_state_dict({k: v.float() for k, v in load_file(work / "clip.safetensors").items()})
        model.half().save_pretrained(folder)
    return folder


def check_parts(manifest: dict[str, Any], work: Path) -> None:
    """The autoencoder and the CLIP here must be those that the base was trained with."""
    if manifest["encoder"] != parts.encoder_hash(MODELS / "autoencoder"):
        raise KitError("the packaged autoencoder has another encoder than the one these latents were made by")
    if manifest["text"] != parts.text_hash(new_clip(work)):
        raise KitError(
            "the text tower here is not the one that this base was trained with (git log src/impasto/models)"
        )


def load_base(manifest: dict[str, Any], work: Path) -> Session:
    """A session whose EMA is what came back; its numbers must be those that the device got from it."""
    size = "x".join(str(n) for n in manifest["shape"])
    run = Received(manifest["base"], work / "session", "cpu", size, 1e-3, 0)
    weights = {name: value.float() for name, value in load_file(work / "weights.safetensors").items()}
    if bad := [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]:
        raise KitError(f"weights are not finite: {', '.join(bad[:4])}")
    try:
        run.ema.load_state_dict(weights)
    except RuntimeError as error:
        raise KitError(f"the weights are not those of size {size}: {str(error).splitlines()[1].strip()}") from error
    run.seen = manifest["seen"]
    run.tower = mini.text_tower(new_clip(work))
    here = torch.tensor(parts.fingerprint(run.net, run.ema, run.tower, run.tokenizer))
    there = torch.tensor(manifest["fingerprint"])
    off = float((here - there).norm() / there.norm())
    print(f"fingerprint: {off:.2e} off (limit {TOLERANCE})")
    if not off < TOLERANCE:
        raise KitError(f"these weights do not say here what they said there ({off:.3f} off): CLIP or tokeniser differ")
    return run


def install_base(manifest: dict[str, Any], files: Path, work: Path, check: bool) -> dict[str, Any]:
    """Check everything; then write the package (not with `check`). Returns the card, or {} with `check`."""
    if not check and (pack.STASH / "stash.json").exists():
        raise KitError("files are still stashed away: scripts/gpu/pack.py --unstash first")
    check_parts(manifest, work)
    run = load_base(manifest, work)
    if check:
        return {}
    if new_clip(work) != MODELS / "clip":
        install_clip(run, work)
    card = run.export(known_concepts(manifest["concepts"]), manifest["scores"])
    stored = load_file(next(iter((MODELS / run.base / run.net.part).glob("*.safetensors"))))
    sent = load_file(work / "weights.safetensors")
    if set(stored) != set(sent) or any(not torch.equal(stored[name], sent[name]) for name in sent):
        raise KitError("what was written into the package is not what came back")
    print("kept:", keep_records(files, work, manifest))
    return card


def install_clip(run: Session, work: Path) -> None:
    """Write a new CLIP and its card (retrieval on the train styles, measured here) into the package."""
    model: Any = CLIPModel.from_pretrained(work / "clip", torch_dtype=torch.float32)
    export_clip(model.eval(), run.tokenizer, MODELS / "clip")
    if parts.text_hash(MODELS / "clip") != parts.text_hash(work / "clip"):
        raise KitError("the text tower changed while it was written: git checkout -- src/impasto/models/clip")


def keep_records(files: Path, work: Path, manifest: dict[str, Any]) -> Path:
    """Log, grid, scores and manifest, in the cache."""
    folder = cache_dir("pretrain", f"{manifest['base']}-gpu")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(work / "grid.png", folder / f"grid-{manifest['seen']['pictures']:09d}.png")
    shutil.copy(files / "manifest.json", folder / "manifest.json")
    for name in ("log.jsonl", "scores.json"):
        if (files / name).exists():
            shutil.copy(files / name, folder / name)
    if (cache_dir("pretrain", manifest["base"]) / "state.json").exists():
        stamp = time.strftime("%Y%m%d-%H%M%S")
        old = cache_dir("pretrain", manifest["base"])
        print(f"note: {old} holds a checkpoint of before. `impasto pretrain --resume` would go on from that one, not\n"
              f"from the package: mv {old} {old}-{stamp}")  # fmt: skip
    return folder


def install_decoder(manifest: dict[str, Any], work: Path, check: bool) -> dict[str, Any]:
    """Score the new decoder on the held-out styles; write it if it is better. Returns its card, or {} with `check`."""
    folder = MODELS / "autoencoder"
    if manifest["encoder"] != parts.encoder_hash(folder):
        raise KitError("this decoder was trained for another encoder than the packaged one")
    stored = load_file(next(iter(folder.glob("*.safetensors"))))
    weights = load_file(work / "autoencoder.safetensors")
    if set(weights) != set(stored) or any(weights[n].shape != stored[n].shape for n in stored):
        raise KitError("the autoencoder that came back has other layers than the packaged one")
    if any(not torch.equal(weights[n], stored[n]) for n in stored if n.startswith("encoder.")):
        raise KitError("the encoder changed on the way: the latents of all bases depend on it")
    if any(not bool(torch.isfinite(value).all()) for value in weights.values()):
        raise KitError("weights are not finite")
    vae: Any = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()
    vae.load_state_dict({name: value.float() for name, value in weights.items()})
    rgb, kept = train_pictures()
    kernel, bias = ae.principal_components(torch.from_numpy(rgb[~kept]))
    scores, before = autoencoder_scores(vae, kernel, bias), json.loads((folder / "card.json").read_text())
    new, old = scores["heldout_mean"]["psnr"], before["heldout_mean"]["psnr"]
    print(f"mean PSNR over the held-out styles: {new:.2f} dB, packaged {old:.2f} dB")
    if check:
        return {}
    if new <= old:
        raise KitError("the packaged decoder is better: kept")
    scale = vae.config.scaling_factor
    done = manifest["training"]
    total = {"step": before["steps"] + done["step"], "seconds": before["minutes"] * 60 + done["seconds"]}
    kit.write_json(work / "state.json", total)
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "autoencoder"
        card = export_autoencoder(vae, kernel, bias, rgb[~kept], target, work)
        if json.loads((target / "config.json").read_text())["scaling_factor"] != scale:
            raise KitError(
                "the scaling factor of the latents would change: the art world here is not the packaged one's"
            )
        for path in target.iterdir():
            shutil.copy(path, folder / path.name)
    return card


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Check and install; returns the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path)
    parser.add_argument("--check", action="store_true")
    o = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        manifest = received(o.files, work)
        print(f"{manifest['kind']}: {len(manifest['files'])} files, every hash is right; package {MODELS}")
        if manifest["kind"] == "decoder":
            card = install_decoder(manifest, work, o.check)
        else:
            card = install_base(manifest, o.files, work, o.check)
    print(json.dumps({k: v for k, v in card.items() if k != "concepts"}, indent=1) if card else "fine")
    print(f"impasto {impasto.__version__}; next: git add {MODELS.name}/..., make test, look at the grid")
    return card


if __name__ == "__main__":
    try:
        main()
    except KitError as error:
        sys.exit(f"unpack.py: {error}")
