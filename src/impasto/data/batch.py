"""A batch of training items."""

from dataclasses import dataclass

from torch import Tensor

from impasto.families.base import Condition


@dataclass(frozen=True)
class Batch:
    """n draws: latents x_BCHW, noise eps_BCHW, and the conditions of each. All on the model's device.

    mask: weights of the loss (B, 1, h, w), each item's with mean 1; None weighs everything alike.
    prompts: the captions, "" where one was dropped. base_cond: what the base itself makes of them, where cond comes
    from text encoders that are trained; None says that it is cond.
    teacher_cond: what a distillation's teacher makes of its captions, None without a teacher.
    part: where these n are only a part, the number of the first one and how many the whole batch has.
    """

    x: Tensor
    eps: Tensor
    cond: Condition
    mask: Tensor | None = None
    prompts: tuple[str, ...] = ()
    base_cond: Condition | None = None
    part: tuple[int, int] | None = None
    teacher_cond: Condition | None = None
