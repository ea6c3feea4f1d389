"""The page that a person looks at: reference, pictures, scores, training, recipe, in one self-contained HTML file."""

from impasto.report.page import report

__all__ = ["report"]
