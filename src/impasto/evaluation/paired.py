"""Paired pixel similarity of a generated image and the true image of the same concept in the same style.

On 128 x 128 RGB in [0, 1]; often half of the canvas is empty, so that even different objects have a high SSIM:
compare with the base's scores.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

LUMA = (0.299, 0.587, 0.114)  # BT.601
BORDER = 6  # pixels


def mse(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error [n] over pixels and channels of images [n, 3, h, w] in [0, 1]: 0 equal, 1 black on white."""
    return (x - y).square().mean(dim=(1, 2, 3))


def palette(x: Tensor, y: Tensor) -> Tensor:
    """Wasserstein-1 distance [n] of the channels' values, mean over the channels, 0 to 255, of images [n, 3, h, w] in
    [0, 1]: mean |sort(x) - sort(y)|, wherever in the image a value is."""
    return 255 * (x.flatten(2).sort().values - y.flatten(2).sort().values).abs().mean(dim=(1, 2))


def ground(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference [n] of the outer BORDER pixels, 0 to 255, of images [n, 3, h, w] in [0, 1]."""
    border = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    return 255 * (x - y).abs()[..., border].mean(dim=(1, 2))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity [n] in [-1, 1] of images [n, 3, h, w] in [0, 1], h, w >= 11; 1 is equal.

    mean of (2 mx my + C1)(2 cov + C2) / ((mx^2 + my^2 + C1)(vx + vy + C2)) on luma, 11 x 11 Gaussian window of
    standard deviation 1.5, no padding, C1 = .01^2, C2 = .03^2 (Wang et al. 2004, doi:10.1109/TIP.2003.819861).
    """
    a, b = luma(x), luma(y)
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return (top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean(dim=(1, 2, 3))


def luma(x: Tensor) -> Tensor:
    """Luma [n, 1, h, w] in [0, 1], float64, since the variances are differences of nearly equal numbers."""
    return (x.double() * torch.tensor(LUMA, dtype=torch.float64).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def blur(x: Tensor) -> Tensor:
    """Gaussian mean over 11 x 11 pixels, standard deviation 1.5, valid region only."""
    taps = torch.exp(-((torch.arange(11, dtype=x.dtype) - 5) ** 2) / (2 * 1.5**2))
    taps = taps / taps.sum()
    return conv2d(conv2d(x, taps.view(1, 1, 1, 11)), taps.view(1, 1, 11, 1))
