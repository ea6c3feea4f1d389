"""Other tools' LoRA layouts: read and written."""
