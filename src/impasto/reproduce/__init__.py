"""The bench: each claim of a paper, the runs that test it, and a verdict by a stated rule.

claims.py       what a claim is, and the rule          statistics.py    paired test, correction
campaign.py     which cells are missing, and on        fan.py           here, or over Ray
cells.py        keys and files                         runner.py        train -> generate -> scores
small_world.py  held-out styles and the judges         paper.py         the paper's own protocol
page.py         claims.json, page, pictures            style_friendly.py, calibration.py  claims
"""

from impasto.reproduce.campaign import reproduce

__all__ = ["reproduce"]
