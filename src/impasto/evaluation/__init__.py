"""Scores of generated images: judges, comparison with true images, CLIP; every mean with a 95 % interval."""

from impasto.evaluation.encoders import Encoder, load_encoder
from impasto.evaluation.folder import evaluate
from impasto.evaluation.scores import SCORES, Score
from impasto.evaluation.table import encoders_table, range_columns, scores_table

__all__ = ["SCORES", "Encoder", "Score", "encoders_table", "evaluate", "load_encoder", "range_columns", "scores_table"]
