"""One session of pretraining: train from the last checkpoint (or the packaged weights), then score.

Output goes to the cache (`pretrain/<base>`): `state.json` with its tensors every five minutes and on SIGTERM,
`log.jsonl`, `scores.jsonl`, and `grid-<images seen>.png`. `export` copies the EMA weights, fp16, and their card into
the package. In each session the learning rate warms up, is constant, and falls to zero over the last third; each
session has a new pool of procedural looks and scenes.
"""

import copy
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTokenizer

from impasto.artworld import ArtWorld, load_meta
from impasto.bases import cards
from impasto.bases import embedded as mini
from impasto.errors import UserError, nearest
from impasto.families.base import quiet
from impasto.families.files import folder_hash
from impasto.files import MODELS, atomic, cache_dir
from impasto.pretrain import base as shared
from impasto.pretrain.base import Denoiser
from impasto.pretrain.mmdit import MMDiT
from impasto.pretrain.pool import build_pool, train_world
from impasto.pretrain.pool_workers import PoolWorkers
from impasto.pretrain.state import Clock, ema_update, load_state, save_state
from impasto.pretrain.teacher import Teacher
from impasto.pretrain.text import MODES, new_tower, write_text
from impasto.pretrain.unet import UNet
from impasto.pretrain.uvit import UViT

DENOISERS: dict[str, Callable[[], Denoiser]] = {"mini-sd3": MMDiT, "mini-sd15": UNet, "mini-muse": UViT}
PARTS = ("tokenizer", "clip", "autoencoder", "image-tokenizer")
SAVE_SECONDS = 300
FAST_ATTENTION = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
LOG_STEPS = 50
COLLECT_STEPS = 20  # steps between two looks for new chunks of the pool


def pretrain(
    base: str = "mini-sd3",
    minutes: float | None = None,
    resume: bool = False,
    device: str = "auto",
    concepts: str | None = None,
    batch: int = 96,
    lr: float = 2e-3,
    ema: float = 0.999,
    size: str | None = None,
    threads: int | None = None,
    compiled: bool = False,
    text: str | None = None,
    plain: float | None = None,
    teacher: str | None = None,
    teacher_share: float = 0.75,
    offset: float = 0.0,
    grid_minutes: float = 30,
    score: int = 500,
    seed: int = 0,
    export: bool = False,
    folder: Path | None = None,
    workers: int = 0,
) -> dict[str, Any]:
    """Pretrain an embedded base for `minutes` (default 150), then generate its grid and score it.

    base: mini-sd3, mini-sd15, mini-muse, or a shared component (tokenizer, clip, autoencoder, image-tokenizer; see
    `parts.py`).

    concepts: list of the art world's split to train on: core_everywhere (471), core_concepts (835) or all; None: that
    of the packaged weights, or core_everywhere.
    size: a name or a shape, see `base.shape_of`; None: that of the packaged weights, or "small".
    lr: of the matrices (Muon); the rest has lr / 2.
    compiled: torch.compile the model. text: mode of the text tower, see `text.py`; None: that of the checkpoint.
    plain: share of single objects on white, 0 to 1, the rest in the proportions of `base.SHARES` (.55 there); useful
    high while concepts are hardly recognisable.
    teacher: a packaged base whose predictions make `teacher_share` of this session's targets, see `teacher.py`.
    offset: scale of offset noise. The schedule of SD1.5 ends at a log-SNR of -5.4, where the mean of a noisy latent
    still reveals the brightness; sampling, which starts from pure noise, then gives grey backgrounds instead of white
    ones. An offset of .15 hides it (a latent's mean is 1.4 +- .6, times alpha = .09 at the start of sampling, against
    1/16 of white noise). Not with a teacher, which was not trained with it.
    score: number of prompts of the final score (0: none). export: write weights and card into the package afterwards;
    with minutes = 0, only that. workers: processes that render the pool while the base trains, see `pool_workers.py`;
    0: the whole pool is rendered before the first step.
    Raises UserError for an unknown base, an existing checkpoint (without `resume`), or when the art world is not built.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if base in PARTS:
        return make_part(base, minutes, device)
    if base not in DENOISERS:
        raise UserError(f"unknown base {base!r}; {nearest(base, (*DENOISERS, *PARTS))}")
    folder = folder or cache_dir("pretrain", base)
    if (folder / "state.json").exists() and not resume:
        raise UserError(f"{folder} holds a checkpoint: continue with --resume, or remove that folder to start again")
    if batch < 1 or (threads is not None and threads < 1):
        raise UserError(f"batch and threads must be at least 1, not {batch} and {threads}")
    if workers < 0:
        raise UserError(f"workers must be at least 0, not {workers}")
    if not 0 < lr < math.inf:
        raise UserError(f"lr must be above 0 (2e-3), not {lr}")
    if threads:
        torch.set_num_threads(threads)
    known, shares = known_concepts(concepts or packaged_concepts(base)), shared.shares_of(plain)
    if not 0 <= offset <= 1:
        raise UserError(f"offset must be from 0 to 1 (.15), not {offset}")
    if teacher and offset:
        raise UserError("a teacher was not trained with offset noise: leave out --teacher or --offset")
    run = Session(base, folder, device, size, lr, seed, text)
    if teacher:
        run.learn_from(teacher, teacher_share)
    if minutes is None or minutes > 0:
        run.train(minutes or 150.0, known, batch, ema, grid_minutes, compiled, shares, offset, workers)
    if run.stopped:
        raise KeyboardInterrupt(f"stopped at step {run.seen['step']}: continue with --resume")
    scores = run.score(train_world(known), score) if score else None
    result = {"base": base, "folder": str(folder), **run.seen, "device": device_name(device), "scores": scores}
    if export:
        result["card"] = run.export(known, scores)
    return result


def make_part(name: str, minutes: float | None, device: str = "cpu") -> dict[str, Any]:
    """Train a shared component and write it to the package; returns its card."""
    from impasto.pretrain import parts

    if name == "tokenizer":
        return {"part": name, "tokens": len(parts.make_tokenizer())}
    make, default = {
        "clip": (parts.make_clip, 20.0),
        "autoencoder": (parts.make_autoencoder, 25.0),
        "image-tokenizer": (parts.make_image_tokenizer, 45.0),
    }[name]
    return {"part": name, **make(default if minutes is None else minutes, device=device)}


def known_concepts(name: str) -> list[int]:
    """Concept ids of a named list of the split, with the evaluation concepts."""
    meta = load_meta()
    lists = {
        "all": list(range(len(meta["concepts"]))),
        **{k: meta["split"][k] for k in ("core_everywhere", "core_concepts")},
    }
    if name not in lists:
        raise UserError(f"unknown list of concepts {name!r}; {nearest(name, tuple(lists))}")
    return sorted({*lists[name], *meta["split"]["evaluation_concepts"]})


def packaged_concepts(base: str) -> str:
    """The name of the concept list of the packaged weights, or "core_everywhere"."""
    if base not in mini.names():
        return "core_everywhere"
    labels = [concept["label"] for concept in load_meta()["concepts"]]
    trained = mini.card(base)["concepts"]
    lists = ("core_everywhere", "core_concepts", "all")
    return next((name for name in lists if [labels[c] for c in known_concepts(name)] == trained), "core_everywhere")


def packaged_shape(base: str) -> tuple[int, ...] | None:
    """The shape of the packaged weights, None when there are none."""
    net = DENOISERS[base]()
    config = MODELS / base / net.part / "config.json"
    return net.shape(json.loads(config.read_text(encoding="utf-8"))) if config.exists() else None


def device_name(device: str) -> str:
    """The device in words, for the card."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} threads"


class Session:
    """A base in training: model, EMA, optimisers, counters (`seen`). text: see `text.py`."""

    def __init__(
        self,
        base: str,
        folder: Path,
        device: str,
        size: str | None,
        lr: float,
        seed: int,
        text: str | None = None,
    ) -> None:
        self.base, self.folder, self.device, self.lr, self.seed = base, folder, device, lr, seed
        self.net = DENOISERS[base]()
        packaged = packaged_shape(base)
        shape = shared.shape_of(self.net, size) if size else packaged or self.net.sizes["small"]
        for part in (self.net.autoencoder, "clip"):
            if not (MODELS / part / "config.json").exists():
                raise UserError(f"{MODELS / part} is missing: make it with impasto pretrain {part}")
        self.vae: Any = self.net.load_autoencoder(MODELS / self.net.autoencoder)
        self.text, self.loads_text = self._text_mode(text)
        packaged_tower = mini.text_tower(MODELS / "clip")
        self.tower: Any = new_tower(MODELS / "clip", seed) if self.text == "new" else packaged_tower
        self.tower.to(device)
        self.tower_ema: Any = copy.deepcopy(self.tower) if self.along else self.tower
        self.tokenizer = CLIPTokenizer.from_pretrained(MODELS / "clip")
        torch.manual_seed(seed)  # initial weights only
        self.model, self.ema = self.net.new(shape), self.net.new(shape)
        self.model.to(device)
        self.ema.to(device)
        self.ema.load_state_dict(self.model.state_dict())
        self.optimizers = shared.optimizers(self.net, self.model, lr, self.tower if self.along else None)
        self.stopped = False
        self.teacher: Teacher | None = None
        # at 97 tokens the plain formula is 4 % faster on CPU than its flash kernel (forward and backward, CPU time)
        plain = device == "cpu" and not self.net.flash_on_cpu
        self.attention: Any = [SDPBackend.MATH] if plain else list(FAST_ATTENTION)
        self.seen: dict[str, Any] = {
            "step": 0,
            "pictures": 0,
            "seconds": 0.0,
            "sessions": 0,
            "devices": [],
            "teachers": [],
        }
        self._begin(shape)
        self.seen["text_tower"] = "trained along" if self.along else "frozen"

    def _text_mode(self, requested: str | None) -> tuple[str, bool]:
        """(mode of the text tower, whether the checkpoint holds a tower to load).

        The default is the checkpoint's mode. When starting from the packaged weights it is "along" if the tower was
        trained along and no other packaged base uses it. Raises UserError on an invalid combination.
        """
        if requested is not None and requested not in MODES:
            raise UserError(f"unknown text {requested!r}: {nearest(requested, MODES)}")
        file = self.folder / "state.json"
        if file.exists():
            loads = json.loads(file.read_text(encoding="utf-8")).get("text_tower") == "trained along"
            if loads and requested == "frozen":
                raise UserError(f"the text tower of {self.folder} is trained along: it cannot be frozen again")
            return requested or ("along" if loads else "frozen"), loads and requested != "new"
        alone = mini.names() == (self.base,)
        before = mini.card(self.base)["training"].get("text_tower") if alone else None
        return requested or ("along" if before == "trained along" else "frozen"), False

    @property
    def guidance(self) -> float:
        """The guidance scale of `impasto generate` for this base."""
        return cards.card(self.base)["generate"]["guidance"]

    @property
    def along(self) -> bool:
        """Whether the text tower is trained."""
        return self.text != "frozen"

    @property
    def parts(self) -> dict[str, Any]:
        """The parts of a checkpoint."""
        muon, adamw = self.optimizers
        towers = {"tower": self.tower, "tower_ema": self.tower_ema} if self.along else {}
        return {"model": self.model, "ema": self.ema, "muon": muon, "adamw": adamw} | towers

    @property
    def trained(self) -> list[tuple[Any, Any]]:
        """(model, EMA) of everything that is trained."""
        return [(self.model, self.ema), *([(self.tower, self.tower_ema)] if self.along else [])]

    def _begin(self, shape: tuple[int, ...]) -> None:
        """Load the checkpoint, else the packaged weights; else keep random ones."""
        packaged = MODELS / self.base / self.net.part
        held = self.parts if self.loads_text else {k: v for k, v in self.parts.items() if not k.startswith("tower")}
        meta = load_state(self.folder, held, self.device)
        if meta is not None:
            self.seen |= {key: meta[key] for key in self.seen if key in meta}
        elif packaged.is_dir():
            if packaged_shape(self.base) != shape:
                there, here = ("x".join(map(str, s)) for s in (packaged_shape(self.base) or (), shape))
                raise UserError(
                    f"the packaged {self.base} has the size {there}, not {here}: leave out --size, "
                    f"or move {packaged.parent} away to start again"
                )
            start = type(self.model).from_pretrained(packaged, torch_dtype=torch.float32)
            self.model.load_state_dict(start.state_dict())
            self.ema.load_state_dict(start.state_dict())
            card = mini.card(self.base)
            self.seen |= {key: card["training"][key] for key in self.seen if key in card["training"]}

    def learn_from(self, name: str, share: float) -> None:
        """Use the packaged base `name` as teacher in this session. Raises UserError if the text tower is trained."""
        if self.along:
            raise UserError("a teacher needs the packaged text tower: not with one that is trained along")
        self.teacher = Teacher(name, share, self.tower, self.device)

    def save(self) -> None:
        """Write the checkpoint, atomically."""
        save_state(self.folder, self.parts, {**self.seen})

    def train(
        self,
        minutes: float,
        known: list[int],
        batch: int,
        ema: float,
        grid_minutes: float,
        compiled: bool = False,
        shares: Mapping[str, float] = shared.SHARES,
        offset: float = 0.0,
        workers: int = 0,
    ) -> None:
        """Train for `minutes`, including pool and grids. shares: of the kinds of images.

        With `workers` the pool begins with the images on white alone and grows: a batch is then a function of (seed,
        step, chunks collected so far).
        """
        clock = Clock(minutes)
        before, session = self.seen["seconds"], self.seen["sessions"]
        self.seen["sessions"] = session + 1
        if (name := device_name(self.device)) not in self.seen["devices"]:
            self.seen["devices"].append(name)
        if self.teacher and (entry := f"{self.teacher.name} {self.teacher.share:g}") not in self.seen["teachers"]:
            self.seen["teachers"] = [*self.seen["teachers"], entry]
        seed = self.seed + 1000 * session
        with PoolWorkers(workers, self.folder / "chunks", known, seed, self.net) as pool_workers:
            first: Any = {"ground": 0.0, "procedurals": 0.0, "scenes": 0.0} if workers else {}
            pool = build_pool(known, seed=seed, **first)
            row = {"pool": {k: len(r) for k, r in pool.rows.items()}, "shares": dict(shares), "offset": offset}
            self._log({**row, "minutes": round(clock.session / 60, 2)})
            bank = shared.make_bank(pool, self.vae, self.tokenizer, seed, self.device, self.net.encode)
            pool.rgb = np.empty(0, np.uint8)  # only the latents are used from here on
            objective = partial(self.net.loss, self.net.compile(self.model) if compiled else self.model)
            start, losses, saved, drawn = self.seen["step"], [], clock.session, clock.session
            self._log({"bank": len(bank.latents), "minutes": round(clock.session / 60, 2)})
            with clock:
                while not clock.stop:
                    step = self.seen["step"]
                    if step % COLLECT_STEPS == 0:
                        pool_workers.collect(bank)
                    long = self.net.long_text and step % 20 == 19
                    n = max(1, batch // 4) if long else batch
                    x0, ids, z, eps = shared.draw(bank, n, seed, step, shares, offset)
                    factor = shared.set_progress(self.optimizers, self.lr, step - start, clock.progress)
                    loss = self.update(objective, x0, ids, z, eps, long, ema)
                    self.seen["seconds"] = before + clock.session
                    if not long:
                        losses.append(loss)
                    if (step + 1) % LOG_STEPS == 0:
                        mean = float(torch.stack(losses).mean())
                        row = {"step": step + 1, "pictures": self.seen["pictures"], "loss": round(mean, 4)}
                        row |= {"bank": len(bank.latents)} if workers else {}
                        self._log({**row, "rate": round(factor, 3), "minutes": round(clock.session / 60, 2)})
                        losses = []
                    if clock.session - saved > SAVE_SECONDS:
                        self.save()
                        saved = clock.session
                    if clock.session - drawn > 60 * grid_minutes:
                        self._log({"step": step + 1, **self.caption_gap(bank)})
                        self.draw_grid()
                        drawn = clock.session
        self.stopped = clock.terminated
        self.save()

    def update(
        self,
        objective: Callable[..., Tensor],
        x0: Tensor,
        ids: Tensor,
        z: Tensor,
        eps: Tensor,
        long: bool,
        ema: float,
    ) -> Tensor:
        """One step of optimisers and EMA on a batch of `base.draw`; returns the loss.

        objective: (x0, eps, levels, conditions, teacher targets) -> loss. long: use the longer form of the text.
        """
        step = self.seen["step"]
        loss = self.backward(objective, x0, ids, z, eps, long)
        torch.nn.utils.clip_grad_norm_([p for part, _ in self.trained for p in part.parameters()], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        for part, average in self.trained:
            ema_update(average.parameters(), part.parameters(), min(ema, (1 + step) / (10 + step)))
        self.seen |= {"step": step + 1, "pictures": self.seen["pictures"] + len(x0)}
        return loss

    def backward(
        self, objective: Callable[..., Tensor], x0: Tensor, ids: Tensor, z: Tensor, eps: Tensor, long: bool
    ) -> Tensor:
        """The loss of a batch, see `update`; gradients are accumulated in the parameters."""
        with torch.autocast(torch.device(self.device).type, torch.bfloat16), sdpa_kernel(self.attention):
            with torch.set_grad_enabled(self.along):
                cond = self.net.text(self.tower, ids, long)
            levels = self.net.levels(z)
            teacher_targets = self.teacher and self.teacher(x0, eps, *self.net.signal(levels), ids)
            loss = objective(x0, eps, levels, cond, teacher_targets)
            loss.backward()
        return loss.detach()

    @torch.no_grad()
    def caption_gap(self, bank: shared.Bank, n: int = 192, seed: int = 0) -> dict[str, float]:
        """How much the model uses captions: the mean loss of n plain images at one high level (z = 2) with their own
        captions, with those of other concepts in the same style, and the difference.

        With the current weights, since the EMA lags a thousand steps behind.
        """
        rng = np.random.default_rng(seed)
        plain = bank.pool.rows["plain"]
        rows = rng.choice(plain, size=n)
        style = np.array([bank.pool.entries[i].style for i in plain])
        others = np.array([rng.choice(plain[style == bank.pool.entries[i].style]) for i in rows])
        g = torch.Generator(self.device).manual_seed(seed)
        x0 = bank.x0(torch.from_numpy(rows).to(self.device))
        eps = torch.randn(x0.shape, generator=g, device=self.device)
        losses: dict[str, list[float]] = {"own": [], "other": []}
        with torch.autocast(torch.device(self.device).type, torch.bfloat16), sdpa_kernel(self.attention):
            for part in np.array_split(np.arange(n), math.ceil(n / 96)):
                levels = self.net.levels(torch.full((len(part),), 2.0, device=self.device))
                for name, whose in (("own", rows), ("other", others)):
                    ids = bank.ids[torch.from_numpy(whose[part]).to(self.device), 0]
                    loss = self.net.loss(self.model, x0[part], eps[part], levels, self.net.text(self.tower, ids))
                    losses[name].append(float(loss) * len(part) / n)
        own, other = sum(losses["own"]), sum(losses["other"])
        return {"own": round(own, 4), "other": round(other, 4), "hears": round(other - own, 4)}

    def _log(self, row: dict[str, Any]) -> None:
        line = json.dumps({"time": time.strftime("%H:%M:%S"), **row})
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, file=sys.stderr, flush=True)

    def pipeline(self) -> Any:
        """A pipeline of the EMA weights, assembled as by `mini.ensure`."""
        scratch = self.folder / "pipeline"
        shutil.rmtree(scratch, ignore_errors=True)
        with quiet():
            shared.export_weights(self.net, self.ema, scratch / self.base)
            clip = MODELS / "clip"
            if self.along:
                clip = scratch / "clip"
                write_text(self.tower_ema, MODELS / "clip", clip)
            mini.write_folder(scratch / "assembled", scratch / self.base, MODELS / self.net.autoencoder, clip)
            pipe: Any = self.net.pipeline_class.from_pretrained(scratch / "assembled")
        shutil.rmtree(scratch)
        return pipe.to(self.device)

    def draw_grid(self, pipe: Any = None) -> Path:
        """Write the sample grid of the EMA weights to `grid-<images seen>.png`. pipe: an existing `pipeline()`."""
        from impasto.pretrain.score import sample_grid

        path = self.folder / f"grid-{self.seen['pictures']:09d}.png"
        with atomic(path) as temporary:
            sample_grid(pipe or self.pipeline(), self.net.call, guidance=self.guidance).save(temporary)
        return path

    def score(self, world: ArtWorld, n: int) -> dict[str, Any]:
        """Write the grid, score `n` prompts by the judges, and append the scores to `scores.jsonl`."""
        from impasto.pretrain.score import score_base

        pipe = self.pipeline()
        self.draw_grid(pipe)
        scores = score_base(pipe, world, n=n, call=self.net.call, guidance=self.guidance)
        with (self.folder / "scores.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"date": str(date.today()), **self.seen, **scores}) + "\n")
        return scores

    def export(self, known: list[int], scores: dict[str, Any] | None) -> dict[str, Any]:
        """Write the EMA weights (fp16), the scheduler and the card into the package; returns the card.

        A text tower that was trained along replaces that of the packaged CLIP. Raises UserError when another packaged
        base depends on it.
        """
        target = MODELS / self.base
        if self.along:
            if others := [name for name in mini.names() if name != self.base]:
                raise UserError(f"{', '.join(others)} depends on the packaged text tower: it cannot be replaced")
            write_text(self.tower_ema, MODELS / "clip", MODELS / "clip")
        shared.export_weights(self.net, self.ema, target)
        meta = load_meta()
        card = {
            "name": self.base,
            "architecture": self.net.architecture,
            "parameters": sum(p.numel() for p in self.ema.parameters()),
            "scheduler": json.loads((target / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")),
            "training": self.seen,
            "train_styles": [meta["style_names"][s] for s in meta["split"]["train_styles"]],
            "scores": scores,
            "date": str(date.today()),
            "concepts": [meta["concepts"][c]["label"] for c in known],
        }
        card["weights_sha256"] = mini.weights_hash(self.base)
        with atomic(target / "card.json") as path:
            path.write_text(json.dumps(card, indent=1), encoding="utf-8")
        card["folder_sha256"] = folder_hash(mini.ensure(self.base))  # the base hash in runs, cells and calibrations
        with atomic(target / "card.json") as path:
            path.write_text(json.dumps(card, indent=1), encoding="utf-8")
        return card
