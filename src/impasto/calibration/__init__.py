"""Calibration: the noise levels at which a base decides style."""
