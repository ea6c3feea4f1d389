"""Objectives: what the loss compares. OBJECTIVES is the table in which a name is looked up.

A row's builder is `build(settings, family) -> objectives.base.Objective`. The settings class states

    extra_forwards   forward passes without gradient per item
    needs_base       whether they are the frozen base's
    teachers         other models of the base's size that it holds
    masked           whether it is for bases of masked tokens, instead of those with Gaussian noise
    itemwise         whether the loss is a mean over items, so that a batch may be split, see `data.draws.split_batch`
"""

from impasto.registry import Entry

OBJECTIVES: dict[str, Entry] = {
    "denoise": Entry(
        "impasto.objectives.config:Denoise",
        "impasto.objectives.denoise:build",
        "mean squared error of the prediction, optionally weighted by noise level",
    ),
    "dco": Entry(
        "impasto.objectives.config:DCO",
        "impasto.objectives.dco:build",
        "the same, only as far as it is below the base's own error",
    ),
    "distill": Entry(
        "impasto.objectives.config:Distill",
        "impasto.objectives.distill:build",
        "the predictions of another base, the teacher, as targets",
    ),
    "masked-tokens": Entry(
        "impasto.objectives.config:MaskedTokens",
        "impasto.objectives.masked_tokens:build",
        "cross-entropy on the masked tokens of a base such as Muse",
    ),
}
