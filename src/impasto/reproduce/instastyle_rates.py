"""Settings of the arms of InstaStyle's claims that train.

Those of the trial's first default; `python tools/choose_instastyle.py` compares them on secondary styles.
"""

REFINEMENT = {"lr": 1e-4, "text.rows": "all"}
"""Of the recipe instastyle."""
GUIDANCE = 2.5
"""Of inversion-noise arms, see `methods.config.InstaStyle.guidance`."""
BASELINES = {"textual inversion": 5e-3, "custom diffusion": 1e-4, "dreambooth": 5e-5}
"""Learning rates of N9's arms: of Gal et al. (2022) for the token; the others of StyleInject's trial."""
