"""Settings of the methods that do more than one training."""

from dataclasses import dataclass
from typing import Literal

from impasto.coerce import check_numbers
from impasto.errors import UserError

STYLE_WORDS = "style words"


@dataclass(frozen=True, kw_only=True)
class FineStyle:
    """FineStyle, see `methods.finestyle`: how the concepts of the image are found, and the guidance that its style is
    sampled with by default."""

    concepts: str | None = None
    """The concepts, separated by semicolons ("rocket; teapot; white background"), instead of those of the caption."""
    style_words: str | None = None
    """The caption's style words, where it does not say "in ... style"."""
    boxes: str | None = None
    """A box for each thing: "left,top,right,bottom; ...", in pixels; found by the finder when not given."""
    finder: Literal["boxes", "error", "attention"] | None = None
    """What finds the regions: error (embedded bases), attention (others), boxes (where boxes are given)."""
    lambda1: float = 3.0
    """Weight of the style, see `impasto generate --lambda1`."""
    lambda2: float = 2.0
    """Weight of the semantics, see `impasto generate --lambda2`."""
    lambda_base: float = 3.0
    """Weight of the base's own guidance, see `impasto generate --lambda-base`."""
    null: Literal["style words", "empty"] = STYLE_WORDS
    """Null prompt of the semantics: the style words, or the empty prompt (the paper's)."""

    def __post_init__(self) -> None:
        check_numbers(self, at_least_0=("lambda1", "lambda2", "lambda_base"), prefix="method.")
        if self.boxes and self.finder not in (None, "boxes"):
            raise UserError(
                f"method.boxes are given, and method.finder {self.finder} finds its own: leave one of them out"
            )
