"""Methods side by side: the same references, prompts and seeds; scores, cost, style at equal text, one page.

references.py  what is compared on            cells.py  a cell = method x reference x seed: train, generate, score
methods.py     recipes, styles, training-free  table.py  rows and the reading at equal text
comparison.py  which cells, and their runs     page.py   one HTML page, grids
"""

from impasto.compare.comparison import compare

__all__ = ["compare"]
