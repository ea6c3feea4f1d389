"""Read and write other tools' LoRA layouts."""
