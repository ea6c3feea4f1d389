"""Learning rates of the StyleInject claims' arms, chosen on secondary styles by style at equal text.

`python tools/choose_folder_rates.py` chose them; its table is docs/results/styleinject/rates.json.
"""

RATES = {"styleinject": 1e-3, "lora": 1e-3, "lora, large": 1e-3, "full": 5e-5}
"""By kind of arm; "lora, large" for ranks above 48."""
