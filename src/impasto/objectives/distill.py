"""Distillation of a tuned base, the teacher, into an adapter on another base, the student; no task loss.

    L = w_out mean || e_T - e_S ||^2 + w_feat sum_l mean || f_T^l - f_S^l ||^2

e are the predictions for the same z_t, f^l the outputs of the down, mid and up blocks of a U-Net. StyleInject (Bai et
al. 2024), section IV-D: both terms with a shared text encoder, the teacher conditioned by the student's; the first one
alone (OutKD) with text encoders of their own, where each caption has a second form for the teacher. The paper writes a
plain sum; on the embedded bases FeatKD is a thousand times OutKD, see `Distill.feature_weight`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from impasto.bases import loader
from impasto.data.batch import Batch
from impasto.errors import UserError
from impasto.families.base import Condition, Family
from impasto.noise.schedule import Schedule, VariancePreserving
from impasto.objectives.base import Objective
from impasto.objectives.config import Distill

FEATURES = ("down_blocks", "mid_block", "up_blocks")
FEATURE_WEIGHT = 1e-3
"""Of FeatKD, where none is given."""


class Distillation:
    """The objective. teacher: its weights are read at the first call. text_family: the family whose text encoders read
    the teacher's captions, None where the teacher is conditioned by the student's."""

    def __init__(self, settings: Distill, teacher: Family) -> None:
        self.settings, self.teacher = settings, teacher
        self.feature_weight = feature_weight(settings, teacher)
        self.text_family = None if settings.shared else teacher

    @property
    def provenance(self) -> dict[str, Any]:
        return {"teacher_sha256": self.teacher.hash}

    def __call__(self, family: Family, batch: Batch, lam_B: Tensor, generators: list[Generator]) -> dict[str, Tensor]:
        """Parts: "out" and "feature" before their weights, the latter where it has one."""
        z_t, weight = family.schedule.add_noise(batch.x, batch.eps, lam_B), self.feature_weight
        features_T: dict[str, Tensor] = {}
        features_S: dict[str, Tensor] = {}
        with torch.no_grad(), recorded(self.teacher.denoiser, features_T if weight else None):
            target = self.teacher.predict(z_t, lam_B, self.condition(batch)).float()
        with recorded(family.denoiser, features_S if weight else None):
            prediction = family.predict(z_t, lam_B, batch.cond).float()
        squared = (prediction - target).square()
        out = (squared if batch.mask is None else squared * batch.mask).mean()
        parts = {"loss": self.settings.out_weight * out, "out": out.detach()}
        if weight:
            errors = [(features_S[name].float() - f.float()).square().mean() for name, f in features_T.items()]
            feature = torch.stack(errors).sum()
            parts |= {"loss": parts["loss"] + weight * feature, "feature": feature.detach()}
        return parts

    def condition(self, batch: Batch) -> Condition:
        """What the teacher is conditioned on: frozen text encoders throughout."""
        if self.text_family is None:
            return batch.cond if batch.base_cond is None else batch.base_cond
        assert batch.teacher_cond is not None
        return {name: rows for name, rows in batch.cond.items() if name == "size_ids"} | batch.teacher_cond


def feature_weight(settings: Distill, family: Family) -> float:
    """The weight of FeatKD on this base."""
    if settings.feature_weight is not None:
        return settings.feature_weight
    return FEATURE_WEIGHT if settings.shared and family.part == "unet" else 0.0


@contextmanager
def recorded(model: nn.Module, features: dict[str, Tensor] | None) -> Iterator[None]:
    """While it holds, the outputs of the blocks of a U-Net are put into `features`; None records nothing."""

    def keep(name: str) -> Any:
        def hook(block: nn.Module, inputs: Any, output: Any) -> None:
            assert features is not None
            features[name] = output if isinstance(output, Tensor) else output[0]  # a down block's second are the skips

        return hook

    blocks = feature_blocks(model) if features is not None else {}
    handles = [block.register_forward_hook(keep(name)) for name, block in blocks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def feature_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The down, mid and up blocks of a U-Net by name; none for another model."""
    found = {name: part for name in FEATURES if isinstance(part := getattr(model, name, None), nn.Module)}
    lists = {name: part for name, part in found.items() if isinstance(part, nn.ModuleList)}
    single = {name: part for name, part in found.items() if name not in lists}
    return single | {f"{name}.{i}": block for name, blocks in lists.items() for i, block in enumerate(blocks)}


def build(settings: Distill, family: Family) -> Objective:
    """Reads configurations only. Raises UserError without a teacher, and where it cannot teach this base."""
    if not settings.teacher:
        raise UserError("the objective distill needs a base to learn from: --objective.teacher FOLDER_OR_ID")
    teacher = loader.load(settings.teacher, device=family.device, precision=family.precision)
    check_teacher(teacher, family, settings)
    return Distillation(settings, teacher)


def check_teacher(teacher: Any, student: Any, settings: Distill) -> None:
    """Raise UserError, which names the difference, unless both have one architecture, latent space, schedule and
    prediction."""
    ours, theirs = (describe(family, settings.shared) for family in (student, teacher))
    for name, value in ours.items():
        if theirs.get(name) != value:
            difference = f"{name} {theirs.get(name)!r} for the student's {value!r}"
            raise UserError(f"the teacher {settings.teacher!r} does not fit: {difference}; choose another --teacher")
    if not same_schedule(teacher.schedule, student.schedule):
        raise UserError(f"the teacher {settings.teacher!r} does not fit: its noise schedule is another one")
    if settings.feature_weight and student.part != "unet":
        raise UserError("FeatKD compares blocks of a U-Net, which this base is not: --objective.feature-weight 0")


def describe(family: Any, shared: bool) -> dict[str, Any]:
    """What teacher and student must have in common, by name. shared: a text encoder too, and so its width."""
    denoiser, vae = family.config(family.part), family.config(family.autoencoder_part)
    free = {"sample_size"} | (set() if shared else {"cross_attention_dim", "joint_attention_dim"})
    found = {"architecture": type(family).__name__}
    found |= {key: value for key, value in denoiser.items() if not key.startswith("_") and key not in free}
    found |= {f"latent {key}": vae.get(key) for key in ("latent_channels", "scaling_factor", "shift_factor")}
    return found | {"prediction": getattr(family, "prediction", "velocity")}


def same_schedule(one: Schedule, other: Schedule) -> bool:
    """Whether both have the same levels."""
    if isinstance(one, VariancePreserving) and isinstance(other, VariancePreserving):
        return one.levels.shape == other.levels.shape and bool(torch.allclose(one.levels, other.levels, atol=1e-4))
    return type(one) is type(other)
