"""Where along the sampling a base decides style."""
