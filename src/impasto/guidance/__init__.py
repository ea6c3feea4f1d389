"""Guidance: what a model is told, and how its predictions combine, while pictures are drawn."""
