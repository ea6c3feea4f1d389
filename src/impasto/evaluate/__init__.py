"""Scores of generated pictures: independent judges, the true pictures, CLIP; every mean with its spread."""

from impasto.evaluate.encoders import Encoder, load_encoder
from impasto.evaluate.folder import evaluate
from impasto.evaluate.scores import SCORES, Score
from impasto.evaluate.table import scores_table

__all__ = ["SCORES", "Encoder", "Score", "evaluate", "load_encoder", "scores_table"]
