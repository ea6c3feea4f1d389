"""Settings of the adapters, without torch."""

from dataclasses import dataclass

from impasto.errors import UserError, nearest

POOLS, HYPERS, VARIANTS = ("mean", "sum", "token"), ("multiplicative", "additive"), ("all", "paper-text")


@dataclass(frozen=True)
class StyleInject:
    """StyleInject; the equations are in `adapters.styleinject.layers`.

    rank: rows of each A_i. alpha: the low-rank update is scaled by alpha / rank; None for rank. n: number of A_i.
    targets: kinds of layers of the family, or name endings. dma: the router mixes the A_i per image;
    without it n is 1. sta: the AdaIN term; without both it is a LoRA. router_pool: what is routed, the "mean" or "sum"
    over an image's tokens, or each "token". hyper: AdaIN's new standard deviation is sigma (1 + Gamma s + c),
    "multiplicative", or sigma + Gamma s + c, "additive". variant: "all" puts the full layer on all targets (the
    paper's Table IV), "paper-text" a LoRA on to_v (its section V-A).
    """

    rank: int = 32
    alpha: float | None = None
    n: int = 16
    targets: tuple[str, ...] = ("to_q", "to_v")
    dma: bool = True
    sta: bool = True
    router_pool: str = "mean"
    hyper: str = "multiplicative"
    variant: str = "all"

    def __post_init__(self) -> None:
        for name in ("rank", "n"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise UserError(f"alpha must be above 0, not {self.alpha}")
        for name, known in (("router_pool", POOLS), ("hyper", HYPERS), ("variant", VARIANTS)):
            if getattr(self, name) not in known:
                raise UserError(f"unknown {name} {getattr(self, name)!r}: {nearest(str(getattr(self, name)), known)}")

    @property
    def plain(self) -> tuple[str, ...]:
        """Endings of the layers that get a LoRA instead of the full layer."""
        return ("to_v",) if self.variant == "paper-text" else ()
