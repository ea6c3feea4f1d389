"""Reproduction of papers' claims: the runs that test each claim, and a verdict by a fixed rule.

claims.py       claims and the rule of verdicts        statistics.py    paired test, correction
campaign.py     run missing cells, locally or over Ray cells.py         keys and files
runner.py       train -> generate -> scores
small_world.py  held-out styles and the judges         paper.py         the paper's own protocol
page.py         claims.json, page, plots               style_friendly.py, calibration.py  claims
folder_world.py, folder_jobs.py, image_sets.py, subjects.py   training on folders, distillation, subjects
sheets.py       images of arms side by side            styleinject*.py                    claims, router, paper
scenes.py, finestyle_world.py, finestyle_jobs.py              references of several things, trained with their concepts
finestyle.py    claims                                 finestyle_paper.py                 the paper's protocol
"""

from impasto.reproduce.campaign import reproduce

__all__ = ["reproduce"]
