"""Conversion from and to other tools: LoRA layouts, noise settings."""
