"""What other tools call things: LoRA layouts, noise settings."""
