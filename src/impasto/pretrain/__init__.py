"""`impasto pretrain`: the embedded models are made here, by the same command on CPU and GPU."""

from impasto.pretrain.run import pretrain

__all__ = ["pretrain"]
