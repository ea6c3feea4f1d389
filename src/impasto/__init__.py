"""impasto: one picture becomes a style."""

__version__ = "0.1.0"
