"""Settings of the adapters, without torch."""

from dataclasses import dataclass

from impasto.errors import UserError, nearest

LOCATIONS = {
    "kv": ("cross_attention_kv",),
    "q": ("cross_attention_q",),
    "out": ("cross_attention_out",),
    "all": ("cross_attention_kv", "cross_attention_q", "cross_attention_out"),
}
"""Kinds of layers of a family, by location of a `KVBottleneck`."""


@dataclass(frozen=True)
class KVBottleneck:
    """FineStyle's adapter, see `adapters.kv_bottleneck`.

    dim: width of the bottleneck. shared: one pair of matrices for all layers, with a bias per layer. location: behind
    the keys and values of cross-attention ("kv", FineStyle), its queries "q", its output "out", or "all".
    """

    dim: int = 4
    shared: bool = False
    location: str = "kv"

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise UserError(f"dim must be at least 1, not {self.dim}")
        if self.location not in LOCATIONS:
            raise UserError(f"unknown location {self.location!r}: {nearest(str(self.location), list(LOCATIONS))}")
