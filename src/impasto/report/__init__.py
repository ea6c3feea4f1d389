"""The report of a run: reference, images, scores, training, recipe, in one self-contained HTML file."""

from impasto.report.page import report

__all__ = ["report"]
