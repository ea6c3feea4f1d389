"""Train the judges: `python -m impasto.judges.training --which style|concept --minutes M --resume`.

Training data is real art of all styles. Held out, also from scenes: 8 % of all (style, concept) cells, chosen by a hash
of their names, and every cell of a primary held-out style with an evaluation concept. All training images come from
`Sampler`, which excludes held-out cells. `impasto.judges.scores` exports and measures the result.

The learning rate follows a cosine of the CPU time spent (wall time is unreliable on a shared machine); the same command
with `--resume` continues from the last checkpoint. Randomness is a function of (seed, step, item).
"""

import argparse
import hashlib
import io
import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from impasto.artworld.world import ArtWorld, load
from impasto.files import atomic, cache_dir
from impasto.judges.model import Net, NetConfig

SEED = 20261121
HELD_OUT_SHARE = 0.08
CHECKPOINT_SECONDS = 120
MAX_OBJECTS = 4
HARDEST = {"style": "fluent-emoji-3d", "concept": "unifont"}  # among the primary held-out styles


@dataclass(frozen=True)
class Plan:
    """Training settings of one judge. stages: (share of the time at which it starts, image side, share of scenes).

    The concept judge starts with small, mostly single images, where concepts are learnt cheaply.
    """

    net: NetConfig
    stages: tuple[tuple[float, int, float], ...]
    coloured: tuple[float, float]  # share of single images and of scenes on a coloured background
    scale: tuple[float, float]  # side of a single image, relative to the canvas
    shift: float  # largest displacement of a single image, relative to the canvas
    warp: float  # share of the images that are rotated and stretched slightly
    coded: float  # share of the images whose 8x8 patches keep only some principal components; as many are blurred
    components: tuple[int, int]  # range of the number of components, of 192
    batch: int = 64
    muon: float = 3e-3
    adam: float = 2e-3
    decay: float = 0.02
    ema: float = 0.998


PLANS = {
    "style": Plan(
        net=NetConfig(classes=19, size=128, stem=32, widths=(48, 96, 120), depths=(1, 1, 2), pool="statistics"),
        stages=((0.0, 128, 0.0),),
        coloured=(0.1, 0.0),
        scale=(0.88, 1.06),
        shift=0.05,
        warp=0.0,
        coded=0.15,
        components=(20, 80),
        batch=48,
        muon=2e-3,
        adam=1.5e-3,
    ),
    "concept": Plan(
        net=NetConfig(classes=1194, size=128, stem=0, widths=(64, 128, 256), depths=(1, 1, 2), pool="places", levels=2),
        stages=((0.0, 64, 0.1), (0.25, 96, 0.5), (0.65, 128, 0.5)),
        coloured=(0.2, 0.4),
        scale=(0.75, 1.08),
        shift=0.1,
        warp=0.5,
        coded=0.25,
        components=(14, 56),
        batch=64,
    ),
}


# Held-out cells


def held_out_at_random(style: str, concept: str) -> bool:
    """Whether a cell is among the 8 % held out at random, by a hash of the style's name and the concept's hex code."""
    digest = hashlib.blake2b(f"{SEED}/{style}/{concept}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64 < HELD_OUT_SHARE


def held_out(pictures: ArtWorld) -> tuple[np.ndarray, np.ndarray]:
    """Two masks [N]: cells held out at random; cells of a primary held-out style with an evaluation concept."""
    meta = pictures.meta
    names, hexes = meta["style_names"], [concept["hex"] for concept in meta["concepts"]]
    pairs = zip(pictures.style_id, pictures.concept_id, strict=True)
    random = np.array([held_out_at_random(names[s], hexes[c]) for s, c in pairs])
    primary = np.isin(pictures.style_id, [names.index(name) for name in meta["recommended"]["heldout_styles"]])
    return random, primary & np.isin(pictures.concept_id, meta["recommended"]["heldout_concepts"])


# Training images


class Sampler:
    """Samples training images, single ones and scenes, never from a held-out cell.

    `style` balances styles; `concept` weights images by the inverse root of their concept's number of images, and makes
    most scenes in one style. The primary held-out style that is hardest for a judge has twice the weight.
    """

    def __init__(self, pictures: ArtWorld, plan: Plan, which: str, allowed: np.ndarray | None = None) -> None:
        self.pictures, self.plan, self.which = pictures, plan, which
        random, primary = held_out(pictures)
        self.index = np.flatnonzero(~(random | primary) if allowed is None else allowed)
        style, concept = pictures.style_id[self.index], pictures.concept_id[self.index]
        if which == "style":
            weight = 1 / np.bincount(style, minlength=style.max() + 1)[style]
        else:
            weight = np.bincount(concept, minlength=concept.max() + 1)[concept] ** -0.5
        weight = weight * np.where(style == pictures.meta["style_names"].index(HARDEST[which]), 2.0, 1.0)
        self.weight = np.cumsum(weight / weight.sum())
        self.of_style: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for s in np.unique(style):
            rows = self.index[style == s]
            share = weight[style == s]
            self.of_style[int(s)] = rows, np.cumsum(share / share.sum())

    def draw(self, rng: np.random.Generator) -> int:
        """The index of one image."""
        return int(self.index[min(np.searchsorted(self.weight, rng.random()), len(self.index) - 1)])

    def draw_like(self, rng: np.random.Generator, picture: int) -> int:
        """The index of one image in the same style."""
        rows, weight = self.of_style[int(self.pictures.style_id[picture])]
        return int(rows[min(np.searchsorted(weight, rng.random()), len(rows) - 1)])

    def members(self, rng: np.random.Generator, scene: bool) -> list[int]:
        """Indices of the images of one sample: one, or one to four of a scene; 70 % of scenes are in one style."""
        first = self.draw(rng)
        if not scene:
            return [first]
        count, mixed = 1 + int(rng.integers(MAX_OBJECTS)), rng.random() < 0.3
        rest = [self.draw(rng) if mixed else self.draw_like(rng, first) for _ in range(count - 1)]
        return [first, *rest]

    def sample(self, rng: np.random.Generator, size: int, scenes: float) -> tuple[np.ndarray, list[int]]:
        """(image uint8 [size, size, 3], indices of the art in it); a scene with probability `scenes`."""
        scene = rng.random() < scenes
        members = self.members(rng, scene)
        ground = ground_colour(rng, self.plan.coloured[int(scene)])
        sides, corners = scatter(rng, len(members), size) if scene else self._single(rng, size)
        image = compose([self.pictures.rgba[i] for i in members], sides, corners, size, ground)
        if rng.random() < 0.08:
            image = jpeg(image, int(rng.integers(50, 96)))
        return np.asarray(image), members

    def _single(self, rng: np.random.Generator, size: int) -> tuple[list[int], list[tuple[int, int]]]:
        side = max(8, round(size * rng.uniform(*self.plan.scale)))
        x, y = ((size - side) / 2 + size * self.plan.shift * rng.uniform(-1, 1, 2)).round().astype(int)
        return [side], [(int(x), int(y))]

    def batch(self, step: int, size: int, scenes: float) -> tuple[Tensor, Tensor]:
        """Images uint8 [batch, 3, size, size]; targets: style ids [batch], or concepts as 0/1 [batch, 1194]."""
        rng = np.random.default_rng((SEED, step))
        images, members = zip(*(self.sample(rng, size, scenes) for _ in range(self.plan.batch)), strict=True)
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        if self.which == "style":
            return x, torch.tensor([self.pictures.style_id[m[0]] for m in members], dtype=torch.long)
        target = torch.zeros(len(members), self.plan.net.classes)
        for row, inside in zip(target, members, strict=True):
            row[torch.as_tensor(self.pictures.concept_id[inside], dtype=torch.long)] = 1
        return x, target


def ground_colour(rng: np.random.Generator, coloured: float) -> tuple[int, int, int]:
    """White, or with probability `coloured` a light to medium colour."""
    if rng.random() >= coloured:
        return 255, 255, 255
    r, g, b = (255 * (1 - rng.uniform(0.05, 0.6) * rng.random(3))).astype(int)
    return int(r), int(g), int(b)


def scatter(rng: np.random.Generator, count: int, size: int) -> tuple[list[int], list[tuple[int, int]]]:
    """(sides in pixels, descending, corners) of a scene's objects; sides from 25 % to 55-100 % of the canvas by count.

    Of ten random positions per object the one with the least overlap is taken; in a fifth of the cases the first.
    """
    most = (1.0, 0.75, 0.62, 0.55)[count - 1]
    least = max(0.25, 22 / size)
    sides = sorted((round(size * s) for s in rng.uniform(least, max(most, least), count)), reverse=True)
    centres: list[np.ndarray] = []
    for i, side in enumerate(sides):
        tries = rng.uniform(side / 2, size - side / 2, (1 if rng.random() < 0.2 else 10, 2))
        if centres:
            reach = (side + np.array(sides[:i])) / 2
            gap = np.abs(tries[:, None] - np.stack(centres)[None]) / reach[None, :, None]
            overlap = np.clip(1 - gap, 0, None).prod(-1).sum(-1)
            centres.append(tries[int(overlap.argmin())])
        else:
            centres.append(tries[0])
    corners = [(round(c[0] - side / 2), round(c[1] - side / 2)) for c, side in zip(centres, sides, strict=True)]
    return sides, corners


def compose(
    rgba: Sequence[np.ndarray],
    sides: Sequence[int],
    corners: Sequence[tuple[int, int]],
    size: int,
    ground: tuple[int, int, int],
) -> Image.Image:
    """Composite images (uint8 [128, 128, 4]) on a plain background, in order, each at its side and corner."""
    canvas = Image.new("RGB", (size, size), ground)
    for art, side, corner in zip(rgba, sides, corners, strict=True):
        image = Image.fromarray(art)
        if side != image.width:
            image = image.resize((side, side), Image.Resampling.BILINEAR)
        canvas.paste(image, corner, image)
    return canvas


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """The image after JPEG compression."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


class Softness:
    """Random degradations that imitate generated images: warp, low-rank 8x8 patches, blur, contrast, noise."""

    def __init__(self, sampler: Sampler) -> None:
        self.plan = sampler.plan
        rows = np.random.default_rng(SEED).choice(sampler.index, 1500)
        flat = [np.asarray(compose([sampler.pictures.rgba[i]], [128], [(0, 0)], 128, (255, 255, 255))) for i in rows]
        patches = functional.unfold(torch.from_numpy(np.stack(flat)).permute(0, 3, 1, 2).float() / 255, 8, stride=8)
        patches = patches.transpose(1, 2).reshape(-1, 192)
        self.mean = patches.mean(0)
        self.basis = torch.linalg.eigh((patches - self.mean).T @ (patches - self.mean))[1].flip(1)  # [192, 192]

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 [n, 3, S, S] -> float in [0, 1]; the share `plan.coded` is low-rank, as many are blurred, half
        noisy."""
        x, n = x.float() / 255, len(x)
        order = torch.randperm(n, generator=generator)
        if self.plan.warp:
            some = order[: round(self.plan.warp * n)]
            x[some] = self._warped(x[some], generator)
        order = torch.randperm(n, generator=generator)
        part = round(self.plan.coded * n)
        coded, blurred = order[:part], order[part : 2 * part]
        components = int(torch.randint(*self.plan.components, (1,), generator=generator)) * 128 // x.shape[-1]
        x[coded] = self._coded(x[coded], components)
        x[blurred] = _blurred(x[blurred], 0.3 + 0.6 * float(torch.rand(1, generator=generator)))
        u = torch.rand(3, n, 1, 1, 1, generator=generator)
        x.sub_(1).mul_(0.94 + 0.1 * u[0]).add_(1 - 0.03 * u[1])
        noisy = order[n // 2 :]
        x[noisy] += torch.randn(x[noisy].shape, generator=generator) * 0.025 * u[2, noisy]
        return x.clamp_(0, 1)

    def _coded(self, x: Tensor, components: int) -> Tensor:
        basis = self.basis[:, :components]
        patches = functional.unfold(x, 8, stride=8).transpose(1, 2) - self.mean
        return functional.fold((patches @ basis @ basis.T + self.mean).transpose(1, 2), x.shape[-2:], 8, stride=8)

    def _warped(self, x: Tensor, generator: torch.Generator) -> Tensor:
        u = torch.rand(len(x), 3, generator=generator) * 2 - 1
        angle, stretch = 0.17 * u[:, 0], torch.exp(0.1 * u[:, 1:])
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(len(x))
        rows = [cos * stretch[:, 0], -sin * stretch[:, 1], zero, sin * stretch[:, 0], cos * stretch[:, 1], zero]
        grid = functional.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _blurred(x: Tensor, sigma: float) -> Tensor:
    kernel = torch.exp(-0.5 * (torch.arange(-2, 3) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).repeat(3, 1)
    padded = functional.pad(x, (2, 2, 2, 2), mode="replicate")
    return functional.conv2d(
        functional.conv2d(padded, kernel[:, None, :, None], groups=3), kernel[:, None, None, :], groups=3
    )


# Losses


def style_loss(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Cross-entropy with 5 % label smoothing. Logits [n, 19], target ids [n]."""
    return {"loss": functional.cross_entropy(logits, target, label_smoothing=0.05)}


def concept_loss(z: Tensor, y: Tensor) -> dict[str, Tensor]:
    """rank + sigmoid, for logits and 0/1 targets [n, 1194]; means over images.

    rank = -mean_(c present) log e^z_c / (e^z_c + sum_(j absent) e^z_j): cross-entropy on a single image.
    sigmoid = sum_c BCE with weight p^2 on absent concepts (asymmetric focal loss, arXiv 2009.14119).
    """
    absent = torch.logsumexp(z.masked_fill(y > 0, -torch.inf), 1, keepdim=True)
    rank = ((torch.logaddexp(z, absent) - z) * y).sum(1) / y.sum(1)
    weight = torch.where(y > 0, 1.0, z.detach().sigmoid() ** 2)
    sigmoid = (weight * functional.binary_cross_entropy_with_logits(z, y, reduction="none")).sum(1)
    return {"loss": rank.mean() + sigmoid.mean(), "rank": rank.mean(), "sigmoid": sigmoid.mean()}


LOSSES = {"style": style_loss, "concept": concept_loss}


# The loop


def optimisers(net: Net, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon on the blocks' convolutions, viewed as matrices [out, 9 in] that share memory; AdamW on the rest."""
    kernels = [p for name, p in net.named_parameters() if name.startswith("blocks") and p.ndim == 4]
    ids = {id(p) for p in kernels}
    rest = [p for p in net.parameters() if id(p) not in ids]
    for p in kernels:
        p.matrix = nn.Parameter(_matrix(p.data))  # type: ignore[attr-defined]
    matrices = [p.matrix for p in kernels]  # type: ignore[attr-defined]
    muon = torch.optim.Muon(matrices, lr=plan.muon, weight_decay=plan.decay, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(rest, lr=plan.adam, betas=(0.9, 0.98), weight_decay=plan.decay)
    muon.kernels = kernels  # type: ignore[attr-defined]
    return [muon, adam]


def _matrix(kernel: Tensor) -> Tensor:
    """[out, in, h, w] -> [out, h w in]; a view for channels-last memory."""
    return kernel.permute(0, 2, 3, 1).reshape(len(kernel), -1)


def rate(progress: float) -> float:
    """Learning rate as a share of its peak: 3 % linear warm-up, then a cosine to 0. `progress` in [0, 1]."""
    return min(progress / 0.03, 0.5 + 0.5 * float(np.cos(np.pi * min(progress, 1.0)))) + 1e-4


class Run:
    """A network in training and the state of a checkpoint: weights, EMA, optimisers, step, seconds, images seen."""

    def __init__(self, which: str, folder: Path) -> None:
        torch.manual_seed(SEED)
        self.which, self.folder, self.plan = which, folder, PLANS[which]
        self.net = new_net(self.plan.net)
        self.average = {name: value.clone() for name, value in self.net.state_dict().items()}
        self.optimisers = optimisers(self.net, self.plan)
        self.step, self.seconds, self.seen = 0, 0.0, 0

    def update(self, x: Tensor, target: Tensor, progress: float) -> dict[str, float]:
        """One step: forward in bf16, backward, both optimisers, EMA. Returns the losses."""
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.net(x.contiguous(memory_format=torch.channels_last))
        losses = LOSSES[self.which](logits.float(), target)
        losses["loss"].backward()
        muon, adam = self.optimisers
        for p in muon.kernels:  # type: ignore[attr-defined]
            p.matrix.grad = _matrix(p.grad)
        for optimiser, peak in ((muon, self.plan.muon), (adam, self.plan.adam)):
            for group in optimiser.param_groups:
                group["lr"] = peak * rate(progress)
            optimiser.step()
        self.net.zero_grad(set_to_none=True)
        self.step, self.seen = self.step + 1, self.seen + len(x)
        keep = min(self.plan.ema, self.step / (self.step + 10))
        for name, value in self.net.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - keep)
        return {name: float(value.detach()) for name, value in losses.items()}

    def save(self) -> None:
        """Write the checkpoint `state.safetensors` atomically; optimisers are numbered in their order."""
        tensors = {f"net.{n}": v.contiguous().clone() for n, v in self.net.state_dict().items()}
        tensors |= {f"average.{n}": v.contiguous().clone() for n, v in self.average.items()}
        for k, optimiser in enumerate(self.optimisers):
            for i, state in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{k}.{i}.{n}": torch.as_tensor(v).contiguous().clone() for n, v in state.items()}
        info = {"step": self.step, "seconds": self.seconds, "seen": self.seen}
        with atomic(self.folder / "state.safetensors") as name:
            save_file(tensors, name, metadata={"info": json.dumps(info)})

    def resume(self) -> None:
        """Load the folder's checkpoint if there is one."""
        path = self.folder / "state.safetensors"
        if not path.is_file():
            return
        tensors = load_file(path)
        self.net.load_state_dict({n[4:]: v for n, v in tensors.items() if n.startswith("net.")})
        for n, v in tensors.items():
            if n.startswith("average."):
                self.average[n[8:]].copy_(v)
        for k, optimiser in enumerate(self.optimisers):
            state: dict[int, dict[str, Tensor]] = {}
            for n, v in tensors.items():
                if n.startswith(f"optimiser.{k}."):
                    state.setdefault(int(n.split(".")[2]), {})[n.split(".")[3]] = v
            optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
        info = checkpoint_info(path)
        self.step, self.seconds, self.seen = info["step"], info["seconds"], info["seen"]


def checkpoint_info(path: Path) -> dict[str, Any]:
    """Step, seconds and images seen of a checkpoint."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["info"])


def new_net(config: NetConfig) -> Net:
    """An initialised network in channels-last memory; initial concept probabilities are .001."""
    net = Net(config).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    nn.init.normal_(net.head.weight, std=0.01)
    nn.init.constant_(net.head.bias, -7.0 if config.pool == "places" else 0.0)
    return net


def train(which: str, minutes: float, folder: Path, resume: bool = False) -> Run:
    """Train one judge for `minutes` of CPU time in all; a line per minute in metrics.jsonl. SIGTERM saves and stops."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = load()
    run = Run(which, folder)
    if resume:
        run.resume()
    sampler = Sampler(pictures, run.plan, which)
    soften = Softness(sampler)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    run.net.train()
    saved = logged = time.monotonic()
    started = time.process_time() - run.seconds
    sums: dict[str, float] = {}
    count = 0
    while not stop and run.seconds < minutes * 60:
        progress = run.seconds / (minutes * 60)
        _, size, scenes = [stage for stage in run.plan.stages if progress >= stage[0]][-1]
        x, target = sampler.batch(run.step, size, scenes)
        losses = run.update(soften(x, torch.Generator().manual_seed(SEED + run.step)), target, progress)
        sums = {name: sums.get(name, 0.0) + value for name, value in losses.items()}
        count += 1
        now = time.monotonic()
        run.seconds = time.process_time() - started
        if not np.isfinite(losses["loss"]):
            raise FloatingPointError(f"loss is {losses['loss']} at step {run.step}; the last checkpoint is kept")
        if now - logged > 60:
            line = {"step": run.step, "seconds": round(run.seconds), "seen": run.seen, "size": size}
            line |= {name: round(value / count, 4) for name, value in sums.items()}
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            logged, sums, count = now, {}, 0
        if now - saved > CHECKPOINT_SECONDS:
            run.save()
            saved = now
    run.save()
    return run


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the judges.")
    parser.add_argument("--which", choices=("style", "concept"), required=True)
    parser.add_argument("--minutes", type=float, default=20.0, help="total CPU time over all threads")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--folder", type=Path, default=cache_dir("judges"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.which, args.minutes, args.folder / args.which, args.resume)


if __name__ == "__main__":
    main()
