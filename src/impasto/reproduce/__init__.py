"""The bench: each claim of a paper, the runs that test it, and a verdict by a stated rule."""
