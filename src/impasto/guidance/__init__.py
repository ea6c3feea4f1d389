"""Guidance: what a model is told, and what is done to its predictions, while pictures are drawn."""
