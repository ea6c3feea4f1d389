"""A base with mini-sd15's architecture and a text encoder of its own, which reads Chinese and was never shown English.

    pip install emoji
    python tools/make_language_base.py                    # resumes; ~/.cache/impasto/bases/mini-sd15-zh
    python tools/make_language_base.py --score docs/results/styleinject/language-base.json

For distillation between bases of unshared text encoders (StyleInject, section V-B). Three stages, each resumed from the
cache (`pretrain/mini-sd15-zh`): a byte-pair tokeniser on Chinese captions; a text tower of mini-sd15's shape, from
random weights, that predicts the principal components of a caption's image; then the tower and the cross-attention of
mini-sd15's U-Net, whose keys and values start from random weights, by the diffusion loss (`pretrain.unet`). No
embedding, caption or prediction of the English base is a target. Images are those of the train styles.

Batches of the last stage take 70 % of their noise levels from the noisier half, where captions decide the image.
Score: concept top-5 by the concept judge for the same (style, concept) cells and noise, prompts in Chinese here and in
English for mini-sd15; linear CKA (Kornblith et al. 2019, arXiv 1905.00414) between the two towers' embeddings of
parallel captions. Gate: 80 % of mini-sd15's top-5, CKA below .5.
"""

import argparse
import json
import random
import shutil
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTokenizer

from impasto.artworld import load_meta
from impasto.artworld.captions import choose, prompt
from impasto.bases import embedded as mini
from impasto.bases.cards import card
from impasto.errors import extra
from impasto.families.base import quiet
from impasto.files import MODELS, atomic, cache_dir
from impasto.judges.model import Judges
from impasto.pretrain import base as shared
from impasto.pretrain.clip import WIDTH, new_clip, tokens
from impasto.pretrain.pool import NO_STYLE_SHARE, Entry, Pool, build_pool, train_world
from impasto.pretrain.score import GUIDANCE, judged, means, random_cells, sample_images
from impasto.pretrain.state import Clock, ema_update, load_state, save_state
from impasto.pretrain.text import write_text
from impasto.pretrain.tokenizer import train_tokenizer
from impasto.pretrain.unet import UNet

BASE, CONCEPTS = "mini-sd15", "core_everywhere"
SHARES = {"plain": 0.85, "ground": 0.1, "scene": 0.05}
EMA, SAVE_SECONDS, LOG_STEPS = 0.995, 120, 50
COMPONENTS = 256
GATE_TOP5, GATE_CKA, CKA_CAPTIONS = 0.8, 0.5, 2000


@dataclass(frozen=True)
class Language:
    """Labels of the art world's concepts, and the translations of `languages/<name>.toml`."""

    name: str

    @cached_property
    def words(self) -> dict[str, Any]:
        file = Path(__file__).with_name("languages") / f"{self.name}.toml"
        return tomllib.loads(file.read_text(encoding="utf-8"))

    @cached_property
    def every_label(self) -> dict[str, str]:
        """Emoji -> label, of all emoji."""
        folder = Path(extra("emoji", "dev", "the labels of concepts").__file__).parent / "unicode_codes"
        found = json.loads((folder / f"emoji_{self.name}.json").read_text(encoding="utf-8"))
        return {emoji.replace("\ufe0f", ""): name.strip(":").replace("_", " ") for emoji, name in found.items()}

    @cached_property
    def labels(self) -> list[str]:
        """In the order of the art world's concepts."""
        return [self.every_label[concept["emoji"].replace("\ufe0f", "")] for concept in load_meta()["concepts"]]

    @cached_property
    def styles(self) -> list[list[str] | None]:
        """Descriptions, in the order of the art world's styles; None for a held-out one."""
        return [self.words["styles"].get(name) for name in load_meta()["style_names"]]

    def ground(self, colour: str | None) -> str:
        return f", {self.words['background'].format(b=self.words['colours'][colour])}" if colour else ""

    def caption(self, entry: Entry, rng: random.Random) -> str:
        """A random caption of an image of the pool, the form of prompts for four in five."""
        names = [self.labels[concept] for concept in entry.concepts]
        things = self.words["separator"].join(names[:-1]) + self.words["last_separator"] + names[-1]
        thing = names[0] if len(names) == 1 else things
        if rng.random() < NO_STYLE_SHARE:
            return thing + self.ground(entry.background)
        plain = entry.kind == "scene" or rng.random() < 0.8
        template = self.words["templates"][0] if plain else choose(self.words["templates"][1:], rng)
        description = choose(self.styles[int(entry.style)] or [], rng)
        return template.format(c=thing, s=description) + self.ground(entry.background)

    def corpus(self) -> list[str]:
        """Training texts of the tokeniser, repeated by weight."""
        meta, texts = load_meta(), []
        core = set(meta["split"]["core_concepts"])
        for i, label in enumerate(self.labels):
            texts += [label] * (300 if i in core else 100)
        for descriptions in filter(None, self.styles):
            texts += descriptions * 300
        texts += [self.ground(name) for name in self.words["colours"]] * 100
        texts += [template.format(c="", s="") for template in self.words["templates"]] * 300
        return texts + [self.words["separator"], self.words["last_separator"]] * 3000


@dataclass(frozen=True)
class TranslatedEntry(Entry):
    """An image whose captions are in another language."""

    language: Language | None = None

    def caption(self, rng: random.Random) -> str:
        assert self.language is not None
        return self.language.caption(self, rng)


def known_concepts() -> list[int]:
    return load_meta()["split"][CONCEPTS]


def translated_pool(language: Language, seed: int) -> Pool:
    """Images of the train styles: on white, on coloured grounds, scenes; none in procedural styles, whose descriptions
    are not translated."""
    pool = build_pool(known_concepts(), ground=0.3, procedurals=0.0, scenes=0.15, seed=seed)
    entries = tuple(TranslatedEntry(e.kind, e.concepts, e.style, e.background, language) for e in pool.entries)
    return Pool(pool.rgb, entries)


def log(folder: Path, row: dict[str, Any]) -> None:
    line = json.dumps({"time": time.strftime("%H:%M:%S"), **row})
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line, file=sys.stderr, flush=True)


class CpuClock(Clock):
    """A time budget in the process's own CPU time: neither other processes nor a pause use it up."""

    def __init__(self, total_minutes: float, spent: float = 0.0) -> None:
        super().__init__(total_minutes, spent)
        self.start = time.process_time()

    @property
    def session(self) -> float:
        return time.process_time() - self.start


def make_tokenizer(language: Language, folder: Path) -> CLIPTokenizer:
    """The tokeniser in `folder`, trained when it is not there."""
    if (folder / "tokenizer.json").exists():
        return CLIPTokenizer.from_pretrained(folder)
    return train_tokenizer(language.corpus(), list(language.every_label.values()) * 2, folder)


def latents_of(language: Language, tokenizer: CLIPTokenizer, seed: int) -> shared.Bank:
    """The images of a pool as latents; with their captions."""
    vae: Any = AutoencoderKL.from_pretrained(MODELS / "autoencoder", torch_dtype=torch.float32)
    pool = translated_pool(language, seed)
    bank = shared.make_bank(pool, vae.eval(), tokenizer, seed)
    pool.rgb = np.empty(0, np.uint8)
    return bank


def image_components(latents: torch.Tensor, n: int = COMPONENTS) -> torch.Tensor:
    """The first n principal components of latents (N, C, h, w), each divided by the root of its standard deviation so
    that small details count, in units of mean square 1: (N, n) float32."""
    torch.manual_seed(0)
    x = latents.flatten(1).float()
    x = x - x.mean(0)
    _, _, directions = torch.svd_lowrank(x, q=n, niter=2)
    found = x @ directions
    found = found / found.std(0).sqrt()
    return found / found.square().mean().sqrt()


def make_tower(language: Language, tokenizer: CLIPTokenizer, folder: Path, minutes: float, batch: int = 96) -> Path:
    """The folder of a CLIPModel whose text tower, from random weights, predicts `image_components` of a caption's image
    by one linear layer from every token from the end token on; the last stage starts there. Resumes from `folder`."""
    saved, state = folder / "clip-start", folder / "tower-state"
    if (saved / "model.safetensors").exists():
        return saved
    state.mkdir(exist_ok=True)
    torch.manual_seed(7)
    clip = new_clip(tokenizer)
    tower: Any = clip.text_model
    head = torch.nn.Linear(WIDTH, COMPONENTS)
    bank = latents_of(language, tokenizer, 701)
    wanted = image_components(bank.latents)
    end_token: Any = tokenizer.eos_token_id
    named = [*tower.named_parameters(), *head.named_parameters()]
    matrices = [p for name, p in named if p.ndim == 2 and "embedding" not in name and p is not head.weight]
    rest = [p for name, p in named if p.ndim != 2 or "embedding" in name or p is head.weight]
    muon = torch.optim.Muon(matrices, lr=2e-3, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.0)
    parts = {"tower": tower, "head": head, "muon": muon, "adamw": adamw}
    meta = load_state(state, parts) or {"step": 0, "seconds": 0.0}
    clock, saved_at, losses = CpuClock(minutes, meta["seconds"]), meta["seconds"], []
    with clock:
        while not clock.stop:
            step = meta["step"]
            rng = np.random.default_rng((7, step))
            rows = torch.from_numpy(bank.pool.draw(batch, SHARES, rng))
            ids = bank.ids[rows, torch.from_numpy(rng.integers(shared.CAPTIONS, size=batch))].long()
            ends = ids.eq(end_token).int().argmax(1)
            if step % 8:  # seven of eight batches without most of the padding, which costs as much as words
                ids = ids[:, : int(ends.max()) + 1 + int(rng.integers(1, 6))]
            shared.set_progress([muon, adamw], 2e-3, step, clock.progress)
            with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                out = head(tower(input_ids=ids).last_hidden_state)
            after = torch.arange(ids.shape[1]) >= ends[:, None]
            error = (out.float() - wanted[rows][:, None]).square().mean(2)
            loss = ((error * after).sum(1) / after.sum(1)).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
            for optimizer in (muon, adamw):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.detach()))
            meta |= {"step": step + 1, "seconds": clock.seconds}
            if (step + 1) % LOG_STEPS == 0:
                row = {"tower_step": step + 1, "error": round(float(np.mean(losses)), 4)}
                log(folder, row | {"minutes": round(clock.seconds / 60, 2)})
                losses = []
            if clock.seconds - saved_at > SAVE_SECONDS:
                save_state(state, parts, meta)
                saved_at = clock.seconds
    save_state(state, parts, meta)
    if clock.terminated:
        raise SystemExit(1)
    clip.save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    return saved


def new_unet() -> UNet2DConditionModel:
    """mini-sd15's U-Net; cross-attention alone is trained, its keys and values from random weights."""
    torch.manual_seed(11)
    model: Any = UNet2DConditionModel.from_pretrained(MODELS / BASE / "unet", torch_dtype=torch.float32)
    for name, layer in model.named_modules():
        if name.endswith(("attn2.to_k", "attn2.to_v")):
            layer.reset_parameters()
    for name, p in model.named_parameters():
        p.requires_grad_("attn2" in name)
    return model


class Training:
    """The last stage: text tower and cross-attention, by the diffusion loss."""

    def __init__(self, clip: Path, lr: float) -> None:
        self.net, self.lr = UNet(), lr
        self.model, self.ema = new_unet(), new_unet().requires_grad_(False)
        self.tower, self.tower_ema = mini.text_tower(clip), mini.text_tower(clip).requires_grad_(False)
        self.tower.text_projection.requires_grad_(False)
        pairs = [(self.model, self.ema), (self.tower, self.tower_ema)]
        named = [(n, p, e.get_parameter(n)) for m, e in pairs for n, p in m.named_parameters() if p.requires_grad]
        self.trained, self.averages = [p for _, p, _ in named], [average for _, _, average in named]
        matrices = [p for n, p, _ in named if p.ndim == 2 and "embedding" not in n]
        rest = [p for n, p, _ in named if p.ndim != 2 or "embedding" in n]
        muon = torch.optim.Muon(matrices, lr=lr, momentum=0.95, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        self.optimizers = [muon, torch.optim.AdamW(rest, lr=lr / 2, betas=(0.9, 0.99), weight_decay=0.0)]
        self.parts = {"model": self.model, "ema": self.ema, "tower": self.tower, "tower_ema": self.tower_ema}
        self.parts |= dict(zip(("muon", "adamw"), self.optimizers, strict=True))

    def train(self, bank: shared.Bank, folder: Path, minutes: float, batch: int, seed: int = 17) -> dict[str, Any]:
        """Train for `minutes` in all its sessions; returns steps, images seen and seconds."""
        state = folder / "state"
        meta = load_state(state, self.parts) or {"step": 0, "pictures": 0, "seconds": 0.0}
        first, saved, losses = meta["step"] == 0, meta["seconds"], []
        clock = CpuClock(minutes, meta["seconds"])
        if first:
            log(folder, {"step": 0, **self.hears(bank)})
        with clock:
            while not clock.stop:
                step = meta["step"]
                x0, ids, z, eps = shared.draw(bank, batch, seed, step, SHARES)
                z[: round(0.7 * batch)] = 1.2 + 0.6 * z[: round(0.7 * batch)]
                shared.set_progress(self.optimizers, self.lr, step, clock.progress)
                with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
                    loss = self.net.loss(self.model, x0, eps, self.net.levels(z), self.net.text(self.tower, ids))
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                ema_update(self.averages, self.trained, min(EMA, (1 + step) / (10 + step)))
                losses.append(float(loss.detach()))
                meta |= {"step": step + 1, "pictures": meta["pictures"] + batch, "seconds": clock.seconds}
                if (step + 1) % LOG_STEPS == 0:
                    row = {"step": step + 1, "loss": round(float(np.mean(losses)), 4)}
                    row |= self.hears(bank) if (step + 1) % (4 * LOG_STEPS) == 0 else {}
                    log(folder, row | {"minutes": round(clock.seconds / 60, 2)})
                    losses = []
                if clock.seconds - saved > SAVE_SECONDS:
                    save_state(state, self.parts, meta)
                    saved = clock.seconds
        save_state(state, self.parts, meta)
        return meta

    @torch.no_grad()
    def hears(self, bank: shared.Bank, n: int = 96) -> dict[str, float]:
        """Loss of n plain images at z = 2 with their own captions, and with those of other things in the same style."""
        rng, plain = np.random.default_rng(0), bank.pool.rows["plain"]
        rows = rng.choice(plain, size=n)
        style = np.array([bank.pool.entries[i].style for i in plain])
        others = np.array([rng.choice(plain[style == bank.pool.entries[i].style]) for i in rows])
        x0 = bank.latents[torch.from_numpy(rows)].float()
        eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
        levels = self.net.levels(torch.full((n,), 2.0))
        found = {}
        with torch.autocast("cpu", torch.bfloat16):
            for name, whose in (("own", rows), ("other", others)):
                cond = self.net.text(self.tower, bank.ids[torch.from_numpy(whose), 0])
                found[name] = float(self.net.loss(self.model, x0, eps, levels, cond))
        return {name: round(value, 4) for name, value in found.items()}


def export(training: Training, language: Language, clip: Path, out: Path) -> None:
    """Write the averaged weights as a diffusers folder with its card and `labels.json` (English -> translated)."""
    scratch = out.with_name(f".{out.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    with quiet():
        shared.export_weights(training.net, training.ema, scratch / BASE)
        write_text(training.tower_ema, clip, scratch / "clip")
        mini.write_folder(scratch / "folder", scratch / BASE, MODELS / "autoencoder", scratch / "clip")
    own = {"name": BASE, "prior_prompts": translated_prompts(language)}
    (scratch / "folder" / "impasto.json").write_text(json.dumps(own, ensure_ascii=False, indent=1), encoding="utf-8")
    labels = dict(zip((c["label"] for c in load_meta()["concepts"]), language.labels, strict=True))
    (scratch / "folder" / "labels.json").write_text(json.dumps(labels, ensure_ascii=False, indent=0), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    (scratch / "folder").rename(out)
    shutil.rmtree(scratch)


def translated_prompts(language: Language) -> list[str]:
    """The card's prompts for prior preservation, translated."""
    meta = load_meta()
    labels = {concept["label"]: i for i, concept in enumerate(meta["concepts"])}
    words = {
        description: own[k]
        for style, own in zip(meta["styles"], language.styles, strict=True)
        if own
        for k, description in enumerate(style["descriptions"])
    }
    parts = [text.partition(", ") for text in card(BASE)["prior_prompts"]]
    return [prompt(language.labels[labels[thing]], words[style]) for thing, _, style in parts]


@torch.no_grad()
def embeddings(folder: Path, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Of a base's text encoder, float64 [n, width]: at the end token, and the mean up to it."""
    from transformers import CLIPTextModel

    tower: Any = CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    pooled, mean = [], []
    for start in range(0, len(texts), 256):
        ids = tokens(tokenizer, list(texts[start : start + 256]))
        out = tower(input_ids=ids)
        end = (ids == tokenizer.eos_token_id).int().argmax(1)
        kept = (torch.arange(ids.shape[1]) <= end[:, None])[..., None]
        pooled.append(out.pooler_output.double())
        mean.append((out.last_hidden_state.double() * kept).sum(1) / kept.sum(1))
    return {"pooled": torch.cat(pooled), "token_mean": torch.cat(mean)}


def linear_cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F) of centred (n, p), (n, q)."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float((y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def parallel_prompts(language: Language, world: Any, n: int, seed: int) -> tuple[np.ndarray, list[str], list[str]]:
    """(rows of `world` [n], prompts in English, prompts translated) of random cells, descriptions of one number."""
    meta, rows = load_meta(), random_cells(world, n, seed)
    rng = np.random.default_rng(seed)
    cells = [(int(world.style_id[i]), int(world.concept_id[i]), int(rng.integers(2))) for i in rows]
    english = [prompt(meta["concepts"][c]["label"], meta["styles"][s]["descriptions"][k]) for s, c, k in cells]
    return (
        rows,
        english,
        [prompt(language.labels[c], language.words["styles"][meta["style_names"][s]][k]) for s, c, k in cells],
    )


def score(language: Language, out: Path, n: int, seed: int = 0) -> dict[str, Any]:
    """The gate's numbers of the base in `out` against mini-sd15; images in bfloat16."""
    world, judges, names = train_world(known_concepts()), Judges.load(), (BASE, out.name)
    folders = dict(zip(names, (mini.ensure(BASE), out), strict=True))
    rows, *prompts = parallel_prompts(language, world, n, seed)
    scores: dict[str, dict[str, float]] = {}
    for name, own in zip(names, prompts, strict=True):
        with quiet():
            pipe: Any = DiffusionPipeline.from_pretrained(folders[name])
        with torch.autocast("cpu", torch.bfloat16):
            images = sample_images(pipe, own, seed, batch=50)
        found = means(judged(judges, images, world.style_id[rows], world.concept_id[rows]))
        scores[name] = {key: round(value, 4) for key, value in found.items()}
        print(json.dumps({name: scores[name]}), flush=True)
    _, *captions = parallel_prompts(language, world, CKA_CAPTIONS, seed + 1)
    english, other = (embeddings(folders[name], own) for name, own in zip(names, captions, strict=True))
    cka = {kind: round(linear_cka(english[kind], other[kind]), 4) for kind in english}
    share = scores[out.name]["concept_top5"] / scores[BASE]["concept_top5"]
    passed = {"top5": share >= GATE_TOP5, "cka": max(cka.values()) < GATE_CKA}
    return {
        "base": str(out.name),
        "prompts": n,
        "seed": seed,
        "guidance": GUIDANCE,
        "concepts": f"{CONCEPTS}, {len(known_concepts())}",
        "scores": scores,
        "top5_share": round(share, 4),
        "cka": cka | {"captions": CKA_CAPTIONS},
        "gate": {"top5_share": GATE_TOP5, "cka": GATE_CKA, "passed": passed},
    }


def main() -> None:
    """Train what is missing, or score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", default="zh")
    parser.add_argument("--tower-minutes", type=float, default=18, help="CPU minutes of the second stage")
    parser.add_argument("--minutes", type=float, default=60, help="CPU minutes of the last stage, in all its sessions")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--score", type=Path, help="write the gate's numbers here, and train nothing")
    parser.add_argument("--export", action="store_true", help="write the base from the last checkpoint, train nothing")
    parser.add_argument("--prompts", type=int, default=240)
    args = parser.parse_args()
    torch.set_num_threads(1)
    language, name = Language(args.language), f"{BASE}-{args.language}"
    folder, out = cache_dir("pretrain", name), cache_dir("bases", name)
    (folder / "state").mkdir(parents=True, exist_ok=True)
    if args.score is None:
        tokenizer = make_tokenizer(language, folder / "tokenizer")
        clip = make_tower(language, tokenizer, folder, args.tower_minutes)
        training = Training(clip, args.lr)
        if args.export:
            meta = load_state(folder / "state", training.parts)
        else:
            meta = training.train(latents_of(language, tokenizer, 702), folder, args.minutes, args.batch)
        export(training, language, clip, out)
        print(json.dumps({"out": str(out), **(meta or {})}), flush=True)
        return
    result: dict[str, Any] = score(language, out, args.prompts)
    state = json.loads((folder / "state" / "state.json").read_text(encoding="utf-8"))
    result["training"] = {key: state[key] for key in ("step", "pictures", "seconds")}
    for file in (args.score, out / "gate.json"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as path:
            path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
