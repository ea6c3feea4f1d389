"""The components shared by the embedded bases: the tokeniser, the small CLIP, the autoencoder and the image tokeniser.

Made once, in this order, by `impasto pretrain tokenizer|clip|autoencoder|image-tokenizer`, and kept in the package: the
bases depend on them. Only decoders may be trained further, since latents and tokens do not depend on them.
"""

import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, VQModel
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from impasto.artworld import load, load_meta
from impasto.artworld.captions import BACKGROUNDS
from impasto.artworld.procedural import random_look
from impasto.artworld.world import over
from impasto.bases import embedded as mini
from impasto.errors import UserError
from impasto.files import MODELS, atomic, cache_dir
from impasto.judges.training import held_out
from impasto.pretrain import autoencoder as ae
from impasto.pretrain import clip as contrastive
from impasto.pretrain import image_tokenizer as vq
from impasto.pretrain.pool import build_pool, train_world
from impasto.pretrain.tokenizer import train_tokenizer

TEMPLATE_WORDS = "a drawing of an icon of a picture of in the style of drawn as and ground outline thick thin wide flat"
WORDS = Path("/usr/share/dict/american-english")  # Debian's wamerican, 2020.12.07
VALIDATION = 50  # one train image in 50 is held out of the decoder's training


def corpus(seed: int = 0) -> Counter[str]:
    """Training texts of the tokeniser with their weights."""
    meta, rng = load_meta(), random.Random(seed)
    core, texts = set(meta["split"]["core_concepts"]), Counter()
    for i, concept in enumerate(meta["concepts"]):
        texts[concept["label"]] += 1500 if i in core else 500
        for text in concept["captions"]:
            texts[text] += 100
        for text in concept["keywords"]:
            texts[text] += 10
    for style in meta["styles"]:
        for text in style["descriptions"]:
            texts[text] += 3000
    for name in BACKGROUNDS:
        texts[f"on a {name} background"] += 1000
    texts[TEMPLATE_WORDS] += 3000
    for _ in range(6000):
        texts[random_look(rng).describe(rng)] += 20
    return texts


def make_tokenizer(words: Path = WORDS, folder: Path | None = None) -> CLIPTokenizer:
    """Train the tokeniser on `corpus()` and a word list (one per line); writes to the package's CLIP folder."""
    if not words.exists():
        raise UserError(f"no word list at {words}: apt-get install wamerican")
    listed = [word.strip().lower() for word in words.read_text(encoding="utf-8").splitlines() if "'" not in word]
    texts = (text for text, weight in corpus().items() for _ in range(weight))
    return train_tokenizer(texts, listed, folder or MODELS / "clip")


def make_clip(
    minutes: float = 20.0,
    folder: Path | None = None,
    export: Path | None = None,
    seed: int = 101,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train the small CLIP for `minutes` in all (resumes) and write it, fp16, to the package; returns the card.

    A text tower in the package is kept bit for bit: the bases depend on it.
    """
    export = export or MODELS / "clip"
    tokenizer = CLIPTokenizer.from_pretrained(export)
    pool = build_pool(None, ground=0.15, procedurals=0.5, scenes=0.25, seed=seed)
    text = mini.text_weights(export) if (export / "model.safetensors").exists() else None
    folder = folder or cache_dir("pretrain", "clip" if text is None else f"clip-image-{digest(text)}")
    model: Any = contrastive.train_clip(pool, tokenizer, folder, minutes, device=device, text=text)
    return export_clip(model.to("cpu"), tokenizer, export)


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """Eight hex digits of a hash of named tensors; identifies the text tower of an image tower in training."""
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        total.update(name.encode() + value.half().numpy().tobytes())
    return total.hexdigest()[:8]


def export_clip(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> dict[str, Any]:
    """Write model (fp16, loaded as float32), tokeniser, image processor and card; returns the card."""
    card = {"name": "small CLIP", "date": str(date.today()), **clip_scores(model, tokenizer)}
    model.half().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with atomic(folder / "config.json") as path:
        path.write_text(json.dumps({**config, "dtype": "float32"}, indent=1), encoding="utf-8")
    tokenizer.save_pretrained(folder)
    size = {"height": 128, "width": 128}
    CLIPImageProcessor(
        size=size, crop_size=size, do_center_crop=False, image_mean=contrastive.MEAN, image_std=contrastive.STD
    ).save_pretrained(folder)
    with atomic(folder / "card.json") as path:
        path.write_text(json.dumps(card, indent=1), encoding="utf-8")
    return card


@torch.no_grad()
def clip_scores(model: CLIPModel, tokenizer: CLIPTokenizer, n: int = 512, seed: int = 0) -> dict[str, float]:
    """Retrieval on `n` random train images: share whose own "{label}, {description}" is nearest of all `n`."""
    world, meta = train_world(), load_meta()
    n = min(n, len(world))
    rows = np.random.default_rng(seed).choice(len(world), n, replace=False)
    texts = [
        f"{meta['concepts'][world.concept_id[i]]['label']}, {meta['styles'][world.style_id[i]]['descriptions'][0]}"
        for i in rows
    ]
    ids, x = contrastive.tokens(tokenizer, texts), contrastive.pixels(world.rgb()[rows])
    v = model.text_projection(model.text_model(input_ids=ids).pooler_output)
    v = torch.nn.functional.normalize(v, dim=-1)
    hits, tops = [], []
    for start in range(0, n, 128):
        u = model.visual_projection(model.vision_model(pixel_values=x[start : start + 128]).pooler_output)
        near = torch.nn.functional.normalize(u, dim=-1) @ v.T
        own = torch.arange(start, start + len(u))
        hits.append(near.argmax(1) == own)
        tops.append((near.topk(5, 1).indices == own[:, None]).any(1))
    return {
        "retrieval_of": n,
        "retrieval_top1": float(torch.cat(hits).float().mean()),
        "retrieval_top5": float(torch.cat(tops).float().mean()),
    }


def make_autoencoder(
    minutes: float = 25.0, folder: Path | None = None, export: Path | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Write the closed-form encoder, train the decoder for `minutes` in all (resumes), score, and export fp16.

    An encoder in the package is kept unchanged: the bases depend on it. Returns the card.
    """
    export = export or MODELS / "autoencoder"
    rgb, kept = train_pictures()
    train = np.ascontiguousarray(rgb[~kept])
    torch.manual_seed(0)
    vae = ae.new_autoencoder()
    kernel, bias = ae.principal_components(torch.from_numpy(train))
    ae.write_encoder(vae, kernel, bias)
    if (export / "config.json").exists():
        stored: Any = AutoencoderKL.from_pretrained(export, torch_dtype=torch.float32)
        vae.load_state_dict(stored.state_dict())
        x = torch.from_numpy(train[:8]).permute(0, 3, 1, 2).float() / 127.5 - 1
        z = vae.encode(x).latent_dist.mean
        drift = float((z - torch.nn.functional.conv2d(x, kernel, bias, stride=8)).abs().max().detach())
        if drift > 0.05:
            raise UserError(f"the packaged encoder differs (latents by {drift:.2f}): not overwritten")
    folder = folder or cache_dir("pretrain", "autoencoder")
    vae = ae.train_decoder(vae, kernel, bias, train, folder, minutes, rgb[kept][:64], device=device)
    return export_autoencoder(vae, kernel, bias, train, export, folder)


def train_pictures() -> tuple[np.ndarray, np.ndarray]:
    """(images of the train styles uint8 [n, 128, 128, 3], mask [n] of those held out for validation)."""
    world = load()
    rows = np.flatnonzero(np.isin(world.style_id, load_meta()["split"]["train_styles"]))
    return over(world.rgba[rows], (255, 255, 255)), rows % VALIDATION == 7


@torch.no_grad()
def export_autoencoder(
    vae: Any, kernel: torch.Tensor, bias: torch.Tensor, train: np.ndarray, folder: Path, run: Path
) -> dict[str, Any]:
    """Write config (with the scaling factor 1 / std of the train latents), fp16 weights and card; returns the card."""
    sample = torch.from_numpy(train[::8]).permute(0, 3, 1, 2).float() / 127.5 - 1
    z = torch.nn.functional.conv2d(sample, kernel, bias, stride=8)
    vae.register_to_config(scaling_factor=round(float(1 / z.std()), 4))
    scores = autoencoder_scores(vae, kernel, bias)
    shutil.rmtree(folder, ignore_errors=True)
    vae.half().save_pretrained(folder)
    state = json.loads((run / "state.json").read_text(encoding="utf-8"))
    card = {
        "name": "autoencoder",
        "date": str(date.today()),
        "steps": state["step"],
        "minutes": round(state["seconds"] / 60, 1),
        **scores,
    }
    with atomic(folder / "card.json") as path:
        path.write_text(json.dumps(card, indent=1), encoding="utf-8")
    return card


def autoencoder_scores(vae: Any, kernel: torch.Tensor, bias: torch.Tensor, n: int = 120) -> dict[str, Any]:
    """Mean PSNR in dB over the first `n` images of each held-out style, of the decoder and of the linear decoder."""
    meta = load_meta()
    rows = {}
    for style in meta["split"]["heldout_styles"]:
        rgb = load(styles=[style]).rgb()[:n]
        linear = float(ae.linear_psnr(rgb, kernel, bias).mean())
        rows[meta["style_names"][style]] = {"psnr": float(ae.psnr(vae, rgb).mean()), "linear": linear}
    mean = {key: float(np.mean([row[key] for row in rows.values()])) for key in ("psnr", "linear")}
    return {"heldout": rows, "heldout_mean": mean}


def make_image_tokenizer(
    minutes: float = 45.0, folder: Path | None = None, export: Path | None = None, device: str = "cpu"
) -> dict[str, Any]:
    """Codebook, twin and decoder of the image tokeniser, `minutes` of CPU time for the latter two (a fifth for the
    twin); every stage resumes from `folder`. Scores and exports fp16 weights; returns the card. CPU only."""
    folder, export = folder or cache_dir("pretrain", "image-tokenizer"), export or MODELS / "image-tokenizer"
    if device != "cpu":
        raise UserError(f"the image tokeniser is trained on the CPU, not on {device}: leave out --device")
    world = train_world()
    pool = build_pool(ground=0.25, procedurals=0.75, scenes=0.25, seed=203, world=world)
    kept = np.zeros(len(pool.rgb), bool)
    kept[: len(world)] = held_out(world)[0]  # of the images on white, which come first
    rgb = np.ascontiguousarray(pool.rgb[~kept])
    codes = stage(folder / "codebook.safetensors", lambda: vq.learn_codebook(rgb))
    encoding = codes["kernel"], codes["bias"], codes["codebook"]
    twin = vq.new_twin(len(np.unique(world.style_id)))
    plain = ~kept[: len(world)]
    pictures, styles = pool.rgb[: len(world)][plain], world.style_id[plain]
    twin.load_state_dict(
        stage(folder / "twin.safetensors", lambda: vq.train_twin(pictures, styles, minutes / 5).state_dict())
    )
    twin.eval().requires_grad_(False)
    model = vq.closed_form_tokenizer(*encoding)
    model = vq.train_decoder(
        model, lambda x: vq.image_tokens(x, *encoding), rgb, twin, folder / "decoder", 0.8 * minutes
    )
    model.half().save_pretrained(folder / "model")
    model = VQModel.from_pretrained(folder / "model", torch_dtype=torch.float32).eval()  # scored as it is packaged
    card = {"name": "image-tokenizer", "date": str(date.today()), "minutes": minutes, **vq.coded_scores(model)}
    shutil.rmtree(export, ignore_errors=True)
    shutil.copytree(folder / "model", export)
    with atomic(export / "card.json") as path:
        path.write_text(json.dumps(card, indent=1), encoding="utf-8")
    return card


def stage(file: Path, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The tensors of `file`, made and written first when it is not there."""
    if not file.exists():
        made = {name: t.detach().contiguous() for name, t in make().items()}
        with atomic(file) as path:
            save_file(made, path)
    return load_file(file)
