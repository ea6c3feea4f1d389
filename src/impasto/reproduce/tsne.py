"""Points in the plane: principal components, and exact t-SNE (van der Maaten and Hinton 2008) for few points."""

import numpy as np

Points = np.ndarray
STEPS, EXAGGERATED, EXAGGERATION = 750, 250, 12.0
"""Steps in all; in the first ones p is multiplied by the exaggeration."""


def principal_components(x: Points, n: int = 2) -> Points:
    """The first principal components of rows, (rows, n)."""
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return u[:, :n] * s[:n]


def tsne(x: Points, perplexity: float = 15.0) -> Points:
    """The rows of x in the plane, (rows, 2): minimises KL(p || q) from the principal components, deterministic.

    p_ij is symmetrised from Gaussians of the given perplexity, q_ij proportional to 1 / (1 + |y_i - y_j|^2).
    """
    p = affinities(squared_distances(np.asarray(x, np.float64)), perplexity)
    y = principal_components(np.asarray(x, np.float64))
    y = 1e-4 * y / max(float(y[:, 0].std()), 1e-12)
    speed, gain = np.zeros_like(y), np.ones_like(y)
    rate = max(len(y) / EXAGGERATION, 50.0)
    for step in range(STEPS):
        early = step < EXAGGERATED
        kernel = 1 / (1 + squared_distances(y))
        np.fill_diagonal(kernel, 0.0)
        pull = ((EXAGGERATION if early else 1.0) * p - kernel / kernel.sum()) * kernel
        slope = 4 * (pull.sum(1)[:, None] * y - pull @ y)
        gain = np.where(np.sign(slope) == np.sign(speed), np.maximum(gain * 0.8, 0.01), gain + 0.2)
        speed = (0.5 if early else 0.8) * speed - rate * gain * slope
        y = y + speed - speed.mean(0)
    return y - y.mean(0)


def squared_distances(x: Points) -> Points:
    """|x_i - x_j|^2, (rows, rows)."""
    squared = (x**2).sum(1)
    return np.maximum(squared[:, None] + squared[None] - 2 * x @ x.T, 0.0)


def affinities(distances: Points, perplexity: float) -> Points:
    """p of `tsne`, (rows, rows), symmetric, sum 1: the precision of each row by bisection on its entropy."""
    n, wanted = len(distances), np.log(min(perplexity, (len(distances) - 1) / 3))
    p = np.zeros_like(distances)
    for i, row in enumerate(distances):
        others = np.delete(row, i)
        others, scale = others - others.min(), max(float(others.mean()), 1e-12)
        low, high = -20.0, 20.0  # log precision, in units of the mean distance
        for _ in range(60):
            middle = (low + high) / 2
            weights = np.exp(-np.exp(middle) * others / scale)
            own = weights / weights.sum()
            entropy = -(own * np.log(np.maximum(own, 1e-300))).sum()
            low, high = (middle, high) if entropy > wanted else (low, middle)
        p[i, np.arange(n) != i] = own
    return (p + p.T) / (2 * n)
