"""Settings of the methods that run in several stages."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from impasto.adapters.config import TextToken
from impasto.coerce import check_numbers, check_share
from impasto.errors import UserError
from impasto.methods.style_caption import StyleCaption, read_caption

if TYPE_CHECKING:
    from impasto.config import TrainConfig

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


@dataclass(frozen=True, kw_only=True)
class InstaStyle:
    """InstaStyle: the inversion noise of one reference, candidates from it, refinement on those that are selected."""

    objects: tuple[str, ...] = ()
    """Objects of the candidates; 15 that the base knows when not given."""
    style_words: str = ""
    """The style words of the caption; found by its form when not given."""
    steps: int = 50
    """Steps of inversion and sampling."""
    guidance: float = 2.5
    """Guidance scale of the candidates, and of the finished style."""
    until: float | None = None
    """Terminal timestep of the inversion, 0 to 1000 (a rectified flow's noise share times 1000), where sampling starts
    too: less of it keeps more of the reference's structure. All steps when not given."""
    fixed_point: int | None = None
    """Fixed-point iterations of each inversion step: nearer to the image, each costs another inversion. 1 on a
    rectified flow, else 0, when not given."""
    random: float = 0.0
    """Share of the noise's positions that each candidate draws anew."""
    select: Literal["score", "random", "human"] = "score"
    """Selection of candidates: score (least of the worse rank of style and content), random, or human: the run stops
    with a numbered sheet, and `impasto select` goes on."""
    n: int = 5
    """Number of candidates that are selected."""
    encoder: str = ""
    """A CLIP that scores candidates: a transformers folder or hub id; the small packaged one when not given."""
    include_reference: bool = False
    """Refine on the reference itself too, as the authors' code does."""
    TRAINED_IN = "refinement"  # folder of the training on the selected candidates

    @property
    def least_selected(self) -> int:
        """Fewest candidates that a person may select."""
        return self.n

    def __post_init__(self) -> None:
        check_numbers(self, above_0=("steps", "n", "until"), at_least_0=("guidance", "fixed_point"), prefix="method.")
        check_share(self.random, "method.random")
        if self.objects and len(self.objects) < self.n:
            raise UserError(f"{self.n} of {len(self.objects)} objects cannot be selected: lower --method.n")

    def caption(self, config: "TrainConfig") -> StyleCaption:
        """The reference's caption in its parts. Raises UserError unless there is one image with one caption."""
        images, captions = config.data.image, config.data.caption
        if len(images) != 1 or len(captions) != 1:
            raise UserError(
                f"instastyle takes one --image with one --caption, not {len(images)} and {len(captions)}: train one "
                "style on each reference, and join them with impasto mix"
            )
        if images[0].is_dir():
            raise UserError(f"instastyle takes one image, and {str(images[0])!r} is a folder: name the file")
        return read_caption(captions[0], self.style_words)

    def training(self, config: "TrainConfig") -> "TrainConfig":
        """The config of its refinement, the reference in place of the candidates."""
        if not isinstance(config.text, TextToken) or len(config.text.tokens) != 1:
            raise UserError("instastyle trains one token: --text token, as its recipes have it")
        if config.log.push_to_hub:
            raise UserError("--push-to-hub would lose the token and the noise of this style: leave it out")
        caption = self.caption(config)
        token, words = config.text.tokens[0], caption.text[caption.words]
        data = replace(config.data, caption=(caption.prompt(caption.thing, token),), trigger=token)
        return replace(config, text=replace(config.text, words=(words,)), data=data)


@dataclass(frozen=True, kw_only=True)
class StyleDrop:
    """StyleDrop: an adapter trained on the references, and a fresh one on selected images of the first."""

    rounds: int = 2
    """2, or 1 for the first alone; the same command with 2 goes on."""
    objects: tuple[str, ...] = ()
    """Objects of the candidates' prompts; 30, on an embedded base 15 that it knows, when not given."""
    style_words: str = ""
    """The style words of the caption; found by its form when not given."""
    images: int = 64
    """Candidates per object."""
    select: Literal["clip", "random", "human"] = "clip"
    """Selection of candidates: clip (per object the one nearest to its prompt), random (one per object), or human: the
    run stops with a numbered sheet, and `impasto select` goes on."""
    encoder: str = ""
    """A CLIP that scores candidates: a transformers folder or hub id; the small packaged one when not given."""
    dim: int = 32
    """Width of the second round's bottlenecks, which share nothing, where the adapter is StyleDrop's."""
    lambda_a: float = 2.0
    """Weight of the style against the base, of candidates and of the finished style (--lambda1 of generate)."""
    lambda_b: float | None = None
    """Weight of the base's own guidance (--lambda-base); the base's guidance scale less 1 when not given."""
    TRAINED_IN = "round-2"  # folder of the training on the selected candidates
    least_selected = 1  # fewest candidates that a person may select

    def __post_init__(self) -> None:
        check_numbers(self, above_0=("images", "dim"), at_least_0=("lambda_a", "lambda_b"), prefix="method.")
        if self.rounds not in (1, 2):
            raise UserError(f"method.rounds must be 1 or 2, not {self.rounds}")


@dataclass(frozen=True, kw_only=True)
class StyleMix(InstaStyle):
    """Joint refinement of the styles of several runs of instastyle; `impasto mix` writes its settings."""

    styles: tuple[str, ...] = ()
    """The runs' style folders."""
