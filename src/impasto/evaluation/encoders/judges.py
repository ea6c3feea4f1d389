"""The embedded judges (`impasto.judges`) as encoders: style features, and the log-odds of the prompt's concept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from impasto.artworld import load_meta
from impasto.evaluation.encoders.base import Encoder, Reward
from impasto.evaluation.labels import Labels
from impasto.evaluation.leakage import log_odds
from impasto.evaluation.samples import to_tensor
from impasto.judges.model import Judges


@dataclass(frozen=True)
class StyleJudge(Encoder):
    """Unit vectors [n, 528] of the style judge; no text tower."""

    judges: Judges

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        return self.judges.style_features(to_tensor(list(images)))


@dataclass(frozen=True)
class ConceptJudge(Reward):
    """The concept judge's log-odds that an image shows what its prompt asks for; NaN for a prompt without a label."""

    judges: Judges
    labels: Labels

    @torch.no_grad()
    def rewards(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        odds = log_odds(self.judges.concept(to_tensor(list(images)))).float()
        asked = [self.labels.concept(prompt) for prompt in prompts]
        return torch.stack(
            [row[c] if c is not None else row.new_tensor(torch.nan) for row, c in zip(odds, asked, strict=True)]
        )


def load_style(source: Any = None, device: str = "cpu", row: str = "style-judge") -> StyleJudge:
    """source: the folder of other judges, None for the packaged ones; on the CPU."""
    judges = Judges.load(source)
    return StyleJudge(row, _network(judges, "_style"), None, None, judges)


def load_concept(source: Any = None, device: str = "cpu", row: str = "concept-judge") -> ConceptJudge:
    """As `load_style`."""
    judges = Judges.load(source)
    return ConceptJudge(row, _network(judges, "_concept"), judges, Labels.from_meta(load_meta()))


def _network(judges: Judges, which: str) -> nn.Module:
    return getattr(judges, which)
