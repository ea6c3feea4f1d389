"""A training run: plan, run folder, checkpoints, previews, several processes."""
