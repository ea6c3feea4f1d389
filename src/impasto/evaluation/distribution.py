"""Distance between two sets of images in a feature space."""

from torch import Tensor


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """KID (Binkowski et al. 2018): unbiased squared MMD of features x [m, d], y [n, d] of length 1, m, n > 1.

    Kernel (a.b + 1)^3: the usual cubic kernel with features scaled by sqrt(d). 0 for equal distributions on average;
    may be negative.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() @ b.double().T + 1) ** 3

    def within(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())
