"""Learning rates of the StyleInject claims' arms, by kind of arm.

They are those of the trial on one style. `python tools/choose_folder_rates.py` chooses them on secondary styles, by
style at equal text, and writes its table to docs/results/styleinject/rates.json; it has not been run to its end yet.
"""

RATES = {"styleinject": 1e-3, "lora": 1e-3, "lora, large": 1e-3, "full": 5e-5}
"""By kind of arm; "lora, large" for ranks above 48."""
