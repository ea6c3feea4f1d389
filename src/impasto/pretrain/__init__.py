"""`impasto pretrain`: training of the embedded models, on CPU or GPU."""

from impasto.pretrain.run import pretrain

__all__ = ["pretrain"]
