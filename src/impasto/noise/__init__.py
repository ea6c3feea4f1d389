"""Noise levels in one unit, the log-SNR `lam = log(alpha^2 / sigma^2)`, float32. A smaller `lam` is noisier."""
