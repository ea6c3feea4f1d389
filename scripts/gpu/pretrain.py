"""Pretraining of an embedded base on a GPU, for minutes: `impasto.pretrain` with a large batch and a growing pool.

    python pretrain.py --run RUN --concepts core_concepts --size small --batch 1024 --minutes 22

Loss, optimisers, the learning rate's course and the checkpoint are impasto.pretrain's. What differs: batches are drawn
on the device, Muon is stacked by shape, the loss may be compiled (kept only where it is measured to be faster), and
other processes go on making new looks and scenes (pieces.py). A loss that is not finite takes the run back to its
last good state at half the rate. RUN/export holds what comes back, anew every few minutes: the EMA weights (fp16, in
parts under 16 MiB), grid, log, scores, and manifest.json with every hash. `unpack.py` puts them into the package.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import kit
import muon
import parts
import pieces
import torch
from kit import KitError
from safetensors.torch import load_file, save_file

import impasto
from impasto.files import MODELS
from impasto.pretrain import base as shared
from impasto.pretrain.clip import tokens
from impasto.pretrain.pool import KINDS, train_world
from impasto.pretrain.run import DENOISERS, LOG_STEPS, Session, device_name, known_concepts
from impasto.pretrain.state import Clock, load_state
from impasto.pretrain.text import write_text

POLL = 20  # steps between two looks for new pieces
KEEP = 500  # steps between two copies of a good state
TRIAL = 10  # passes that compiled and eager are timed on


class Pieces:
    """All pieces that are there so far, on the device. A batch is a function of (seed, step, pieces)."""

    def __init__(self, folder: Path, device: str, shares: dict[str, float], favoured: set[int], favour: float) -> None:
        self.folder, self.device, self.shares, self.favour = folder, device, shares, favour
        self.favoured = torch.tensor(sorted(favoured), dtype=torch.int16)
        self.latents = torch.empty(0, 16, 16, 16, dtype=torch.float16, device=device)
        self.ids = torch.empty(0, shared.CAPTIONS, 32, dtype=torch.int16, device=device)
        self.weight = torch.empty(0, dtype=torch.float64)
        self.kind = torch.empty(0, dtype=torch.int8)
        self.taken: set[str] = set()

    def __len__(self) -> int:
        return len(self.latents)

    def refresh(self) -> bool:
        """Take in the pieces that are new; whether there were any."""
        new = sorted(p for p in self.folder.glob("piece-*.safetensors") if p.name not in self.taken)
        if not new:
            return False
        files = [load_file(path) for path in new]
        self.latents = torch.cat([self.latents, *(f["latents"].to(self.device) for f in files)])
        self.ids = torch.cat([self.ids, *(f["ids"].to(self.device) for f in files)])
        self.kind = torch.cat([self.kind, *(f["kind"] for f in files)])
        own = [1.0 + (self.favour - 1) * torch.isin(f["concept"], self.favoured).double() for f in files]
        self.weight = torch.cat([self.weight, *own])
        self.taken |= {path.name for path in new}
        share = self.weight.clone()
        for k, kind in enumerate(KINDS):
            mine = self.kind == k
            share[mine] *= self.shares.get(kind, 0.0) / share[mine].sum().clamp_min(1e-12)
        self.cdf = (share / share.sum()).cumsum(0).to(self.device)
        return True

    def counts(self) -> dict[str, int]:
        """Pictures of each kind."""
        return {kind: int((self.kind == k).sum()) for k, kind in enumerate(KINDS)}

    def draw(self, n: int, seed: int, step: int, empty: torch.Tensor, offset: float = 0.0) -> tuple[torch.Tensor, ...]:
        """What `impasto.pretrain.base.draw` returns, distributed as there, all on the device."""
        d = self.device
        g = torch.Generator(d).manual_seed(seed * 1_000_003 + step)
        u = torch.rand(n, generator=g, device=d, dtype=torch.float64)
        rows = torch.searchsorted(self.cdf, u).clamp_max(len(self) - 1)
        ids = self.ids[rows, torch.randint(shared.CAPTIONS, (n,), generator=g, device=d)]
        dropped = torch.rand(n, generator=g, device=d) < shared.DROPPED
        ids = torch.where(dropped[:, None], empty, ids)
        z = torch.randn(n, generator=g, device=d)
        x0 = self.latents[rows].float()
        return x0, ids, z, shared.noise(x0, g, offset)


class Trainer(Session):
    """A `Session` whose steps are written for a GPU."""

    def __init__(self, o: argparse.Namespace, folder: Path) -> None:
        self.o, self.origin = o, start_folder(o.start, o.base)
        scratch = "new" if o.start == "scratch" and not o.clip_minutes else None
        text = None if (folder / "state.json").exists() else o.text or scratch
        super().__init__(o.base, folder, o.device, o.size, o.lr, o.seed, text)
        self.known = known_concepts(o.concepts)
        self.empty = tokens(self.tokenizer, [""])[0].to(o.device, torch.int16)
        self.loss: Any = self.net.loss
        self.losses: list[torch.Tensor] = []
        self.good: tuple[list[torch.Tensor], dict[str, Any]] | None = None

    def _begin(self, shape: tuple[int, ...]) -> None:
        fused = self.device.startswith("cuda")
        adamw = torch.optim.AdamW([dict(g) | {"fused": fused} for g in self.optimizers[1].param_groups])
        self.optimizers = [muon.StackedMuon.like(self.optimizers[0]), adamw]  # type: ignore[list-item]
        meta = load_state(self.folder, self.parts, self.device)
        text = parts.text_hash(MODELS / "clip")
        if meta is not None:
            if (self.folder / "text").read_text() != text:
                raise KitError(f"{self.folder} was begun with another CLIP: start again with the same --clip-minutes")
            self.seen |= {key: meta[key] for key in self.seen if key in meta}
        elif self.origin is not None:
            weights = next(iter(sorted(self.origin.glob("*.safetensors"))))
            named = {name: value.float() for name, value in load_file(weights).items()}
            self.model.load_state_dict(named)
            self.ema.load_state_dict(named)
            card = json.loads((self.origin.parent / "card.json").read_text())
            self.seen |= {key: card["training"][key] for key in self.seen if key in card["training"]}
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "text").write_text(text)

    def step(self, bank: Pieces, progress: float) -> float:
        """One step of the optimisers; returns the learning rate's factor."""
        step, o = self.seen["step"], self.o
        long = self.net.long_text and step % 20 == 19
        n = max(1, o.batch // 4) if long else o.batch
        x0, ids, z, eps = bank.draw(n, o.seed, step, self.empty, o.offset)
        factor = shared.set_progress(self.optimizers, self.lr, step - self.first, progress)
        objective = partial(self.net.loss if long else self.loss, self.model)
        loss = self.update(objective, x0, ids, z, eps, long, o.ema)
        if not long:
            self.losses.append(loss)
        return factor

    def fit(self, bank: Pieces, clock: Clock) -> None:
        """Train until `clock` stops, in which the making of the pool counts."""
        o, before, session = self.o, self.seen["seconds"], self.seen["sessions"]
        self.seen["sessions"] = session + 1
        if (name := device_name(self.device)) not in self.seen["devices"]:
            self.seen["devices"].append(name)
        self.first = self.seen["step"]
        self._log({"pictures of": bank.counts(), "minutes": round(clock.session / 60, 2)})
        exported = logged = clock.session
        drawn = self.seen["pictures"]
        while not clock.stop:
            if self.seen["step"] % POLL == 0:
                bank.refresh()
            factor = self.step(bank, clock.progress)
            self.seen["seconds"] = before + clock.session
            step = self.seen["step"]
            if step % LOG_STEPS == 0 and self.losses:
                mean = float(torch.stack(self.losses).mean())
                rate = (self.seen["pictures"] - drawn) / (clock.session - logged)
                logged, drawn, self.losses = clock.session, self.seen["pictures"], []
                row = {"step": step, "pictures": drawn, "loss": round(mean, 4), "rate": round(factor, 3)}
                self._log({**row, "per_s": round(rate), "bank": len(bank), "minutes": round(clock.session / 60, 2)})
                if not math.isfinite(mean):
                    self.go_back()
                elif self.good is None or step % KEEP == 0:
                    self.keep()
            if clock.session - exported > 60 * o.export_minutes:
                self.export_run(None)
                exported = logged = clock.session
                drawn = self.seen["pictures"]
        if not all(bool(torch.isfinite(p).all()) for p in self.ema.parameters()):
            self.go_back()
        self.save()

    def timed(self, steps: int) -> float:
        """Seconds that forward and backward take on random numbers, on average of `steps`; nothing is learnt."""
        o, cuda = self.o, self.device.startswith("cuda")
        g = torch.Generator(self.device).manual_seed(o.seed)
        x0, eps = (torch.randn(o.batch, 16, 16, 16, generator=g, device=self.device) for _ in range(2))
        z = torch.randn(o.batch, generator=g, device=self.device)
        ids = self.empty.expand(o.batch, -1)
        start = time.monotonic()
        for _ in range(steps):
            self.backward(partial(self.loss, self.model), x0, ids, z, eps, False)
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        return (time.monotonic() - start) / steps

    def choose(self, clock: Clock) -> None:
        """Compile the loss (`--compile auto`: and stay with it if it is faster), while the first pieces are made."""
        self.timed(3)
        eager, fast = self.timed(TRIAL), float("inf")
        start = time.monotonic()
        try:
            self.loss = torch.compile(self.net.loss, dynamic=False, backend=self.o.backend)
            self.timed(3)
            fast = self.timed(TRIAL)
        except Exception as error:  # whatever the compiler runs into: training goes on without it
            self._log({"compile failed": f"{type(error).__name__}: {error}"[:500]})
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(fast) or (fast > eager and self.o.compile == "auto"):
            self.loss = self.net.loss
        row = {"eager_ms": round(eager * 1e3, 2), "compiled_ms": round(fast * 1e3, 2) if fast < 1e9 else None}
        row |= {"compiled": self.loss != self.net.loss, "compiling_s": round(time.monotonic() - start, 1)}
        self._log({**row, "minutes": round(clock.session / 60, 2)})

    def tensors(self) -> list[torch.Tensor]:
        """Every tensor of the state, in a fixed order: weights, EMA, optimisers."""
        out: list[torch.Tensor] = []
        for part in self.parts.values():
            state = part.state_dict()
            if isinstance(part, torch.nn.Module):
                out += state.values()
            else:
                out += [t for s in state["state"].values() for t in s.values() if isinstance(t, torch.Tensor)]
        return out

    def keep(self) -> None:
        """Copy the state, to come back to."""
        self.good = ([t.detach().clone() for t in self.tensors()], dict(self.seen))

    @torch.no_grad()
    def go_back(self) -> None:
        """Return to the last good state at half the learning rate. Raises RuntimeError where there is none."""
        if self.good is None:
            raise RuntimeError("the loss is not finite, and no good state was kept: begin anew with a smaller --lr")
        copies, seen = self.good
        for value, kept in zip(self.tensors(), copies, strict=True):
            value.copy_(kept)
        self.lr /= 2
        # other batches than those that led here: the step goes on counting, the pictures are those of the state
        self.seen["pictures"] = seen["pictures"]
        self._log({"back to step": seen["step"], "lr": self.lr})

    def export_run(self, scores: dict[str, Any] | None) -> Path:
        """Write grid, EMA weights, log and manifest into a new folder of RUN/export; the two newest are kept."""
        o, root = self.o, self.folder.parent / "export"
        last = max((int(p.name.partition("-")[0]) for p in root.glob("[0-9]*")), default=0)
        target = root / f"{last + 1:03d}-{self.seen['pictures']:011d}"
        scratch = root / f".{target.name}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        save_file({k: v.detach().half().cpu().contiguous() for k, v in self.ema.state_dict().items()},
                  scratch / "weights.safetensors")  # fmt: skip
        shutil.copy(self.draw_grid(), scratch / "grid.png")
        clip = MODELS / "clip"
        if self.along:
            clip = root / ".clip"
            shutil.rmtree(clip, ignore_errors=True)
            write_text(self.tower_ema, MODELS / "clip", clip)
        if o.clip_minutes or self.along:
            shutil.copy(clip / "model.safetensors", scratch / "clip.safetensors")
        if scores:
            kit.write_json(scratch / "scores.json", scores)
        files = kit.describe(scratch)
        shutil.copy(self.folder / "log.jsonl", scratch / "log.jsonl")  # it grows: not among the hashes
        manifest = {
            "kind": "base",
            "base": self.base,
            "size": o.size,
            "shape": list(self.net.shape(self.ema.config)),
            "concepts": o.concepts,
            "seen": self.seen,
            "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(o).items()},
            "device": device_name(self.device),
            "torch": torch.__version__,
            "impasto": impasto.__version__,
            "scores": scores,
            "fingerprint": parts.fingerprint(self.net, self.ema, self.tower_ema, self.tokenizer),
            "encoder": parts.encoder_hash(MODELS / "autoencoder"),
            "text": parts.text_hash(clip),
            "files": files,
        }
        kit.write_json(scratch / "manifest.json", manifest)
        scratch.rename(target)
        for old in sorted(root.glob("[0-9]*"))[:-2]:
            shutil.rmtree(old)
        self._log({"exported": target.name})
        return target


def start_folder(start: str, base: str) -> Path | None:
    """The transformer's folder to begin from: none ("scratch"), the package's ("package"), or another."""
    if start == "scratch":
        return None
    folder = MODELS / base / DENOISERS[base].part if start == "package" else Path(start)
    if not list(folder.glob("*.safetensors")) or not (folder.parent / "card.json").exists():
        raise KitError(f"--start {start}: {folder} has no weights, or no card.json stands beside it")
    return folder


def start_workers(o: argparse.Namespace, folder: Path) -> list[subprocess.Popen[bytes]]:
    """Processes that make the pieces, one thread each, less urgent than the training."""
    command = [sys.executable, "-W", "ignore", str(Path(pieces.__file__)), "--folder", str(folder)]
    command += ["--pieces", str(o.pieces), "--concepts", o.concepts, "--seed", str(o.seed), "--of", str(o.workers)]
    command += ["--ground", str(o.ground), "--procedurals", str(o.procedurals), "--scenes", str(o.scenes)]
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
    env = {**os.environ, **one, "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for worker in range(o.workers):
        with (folder / f"worker-{worker}.log").open("wb") as log:
            process = subprocess.Popen(["nice", "-n", "5", *command, "--worker", str(worker)], env=env, stdout=log,
                                       stderr=subprocess.STDOUT)  # fmt: skip
        out.append(process)
    return out


def first_pieces(bank: Pieces, workers: list[subprocess.Popen[bytes]], clock: Clock) -> None:
    """Wait for a piece. Raises KitError with a worker's last words when all of them ended without one."""
    while not bank.refresh():
        if clock.stop:
            raise KitError("the time was over before the first piece was made")
        if workers and all(worker.poll() is not None for worker in workers) and not bank.refresh():
            words = (bank.folder / "worker-0.log").read_text()[-2000:]
            raise KitError(f"no pieces were made; the first worker said:\n{words}")
        time.sleep(0.2)


def options(args: list[str] | None = None) -> argparse.Namespace:
    """Flags; see the README beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of this run")
    parser.add_argument("--base", default="mini-sd3")
    parser.add_argument("--size", default="small", help="small, medium, or numbers such as 7x4")
    parser.add_argument("--concepts", default="core_concepts", help="core_everywhere, core_concepts or all")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--minutes", type=float, default=22.0, help="in all: pool, training, grid and scores")
    parser.add_argument("--reserve", type=float, default=75.0, help="seconds kept for the last grid and the scores")
    parser.add_argument("--compile", choices=("auto", "yes", "no"), default="auto")
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--start", default="scratch", help="scratch, package, or a transformer's folder")
    parser.add_argument("--text", choices=("frozen", "along", "new"), help="the text tower; new when from scratch")
    parser.add_argument("--clip-minutes", type=float, default=0.0, help="train a new small CLIP first, for so long")
    parser.add_argument("--clip-batch", type=int, default=1024)
    parser.add_argument("--export-minutes", type=float, default=4.0)
    parser.add_argument("--score", type=int, default=500, help="prompts scored by the judges at the end; 0: none")
    parser.add_argument("--workers", type=int, default=13, help="processes that make pieces; 0: here, before training")
    parser.add_argument("--pieces", type=int, default=130)
    parser.add_argument("--follow", type=Path, help="the pieces of another run that is going on: none of its own")
    parser.add_argument("--ground", type=float, default=0.1, help="of a piece, as a share of the plain pictures")
    parser.add_argument("--procedurals", type=float, default=0.5)
    parser.add_argument("--scenes", type=float, default=0.2)
    parser.add_argument("--offset", type=float, default=0.0, help="scale of offset noise (mini-sd15: .15)")
    parser.add_argument("--shares", default="", help="of a batch: plain=.55,ground=.1,procedural=.3,scene=.05")
    parser.add_argument("--favour", type=float, default=1.0, help="how much oftener core_everywhere is drawn")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(args)


def shares_of(text: str) -> dict[str, float]:
    """impasto's shares, with those of `text` in their place."""
    given = {name: float(value) for name, _, value in (part.partition("=") for part in text.split(",") if part)}
    if unknown := set(given) - set(KINDS):
        raise KitError(f"--shares: {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}")
    return shared.SHARES | given


def main(args: list[str] | None = None) -> Path:
    """Train, export, score; returns the last export's folder."""
    o = options(args)
    clock = Clock(o.minutes - o.reserve / 60)
    favoured = set(known_concepts("core_everywhere"))
    folder = o.follow or o.run / "pieces"
    workers = [] if o.follow else start_workers(o, folder)
    try:
        with clock:
            if not (o.workers or o.follow):
                flags = ("pieces", "concepts", "ground", "procedurals", "scenes", "seed")
                pieces.main(["--folder", str(folder), *(t for f in flags for t in (f"--{f}", str(getattr(o, f))))])
            if o.clip_minutes:
                parts.make_clip(o.clip_minutes, o.run / "clip", o.clip_batch, o.device, o.seed)
            trainer = Trainer(o, o.run / "state")
            if o.compile != "no":
                trainer.choose(clock)
            bank = Pieces(folder, o.device, shares_of(o.shares), favoured, o.favour)
            first_pieces(bank, workers, clock)
            trainer.fit(bank, clock)
    finally:
        for worker in workers:
            worker.terminate()
    target = trainer.export_run(None)
    if o.score and (MODELS / "judges" / "card.json").exists():
        world = train_world(trainer.known)
        target = trainer.export_run(trainer.score(world, o.score))
    kit.write_json(o.run / "done.json", {"export": target.name, "seen": trainer.seen, "stopped": clock.terminated})
    return target


if __name__ == "__main__":
    try:
        main()
    except KitError as error:
        sys.exit(f"pretrain.py: {error}")
