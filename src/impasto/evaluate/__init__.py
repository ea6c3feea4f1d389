"""Scores of generated images: judges, comparison with true images, CLIP; every mean with a 95 % interval."""

from impasto.evaluate.encoders import Encoder, load_encoder
from impasto.evaluate.folder import evaluate
from impasto.evaluate.scores import SCORES, Score
from impasto.evaluate.table import scores_table

__all__ = ["SCORES", "Encoder", "Score", "evaluate", "load_encoder", "scores_table"]
