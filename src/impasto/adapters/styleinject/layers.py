"""StyleInject's layer: a frozen Linear or Conv2d h(x) becomes, per image,

    h* = h + w [(g - 1)(h - mu) + (alpha / r) B A_s x],   A_s = sum_i s_i A_i,   s = softmax(R pool(x)).

mu is the mean of h over the image's tokens (positions). The hypernetwork gives g - 1 = Gamma s + c per channel or, with
hyper = "additive", (Gamma s + c) / sigma, sigma^2 the biased variance over tokens plus 1e-5. The first term is
AdaIN, (h - mu) / sigma (sigma g) + mu - h, written so that h* is h bit for bit where Gamma, c and B are 0, as they
start; the difference g - 1 is what is stored, so that weight decay pulls towards the frozen layer.

Shapes: x (B, L, in), h (B, L, out), A (n, r, in), B (out, r), R (n, in), Gamma (out, n), c (out); on a convolution
x (B, in, H, W) and A (n, r, in, k, k). The A_i share B, so they are mixed per image *before* they meet x: one
batched product instead of n, on a convolution one with a group per image.

The StyleInject paper, eqs. 2-4, read as its Table IV counts parameters: Gamma and c are its one-layer hypernetwork.
"""

import math
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from impasto.adapters.tuners import UnmergeableLayer
from impasto.errors import UserError

EPS = 1e-5
TENSORS = tuple(f"styleinject_{name}" for name in ("down", "up", "router", "gamma", "shift"))  # A, B, R, Gamma, c
NOT_MERGEABLE = (
    "StyleInject cannot be merged: what it adds depends on each image. Load it beside the base (load_style), or "
    "distil it into a LoRA, which can be merged (impasto distill --adapter lora)"
)


class Settings(NamedTuple):
    """Of one adapter on one layer. n: 1 without dynamic mixing. full: False for a plain LoRA. For the others see
    `adapters.config.StyleInject`."""

    r: int
    n: int
    alpha: float
    full: bool
    sta: bool
    pool: str
    hyper: str


def tensor_shapes(layer: nn.Module, of: Settings) -> dict[str, tuple[int, ...]]:
    """Shapes of an adapter's tensors on a frozen layer. Raises UserError for a layer that cannot carry one."""
    if isinstance(layer, nn.Linear):
        inner, out = (layer.in_features,), layer.out_features
    elif not isinstance(layer, nn.Conv2d):
        raise UserError(f"StyleInject goes on linear and convolution layers, not on {type(layer).__name__}")
    elif layer.groups > 1:
        raise UserError(f"StyleInject does not go on grouped convolutions, and one target has {layer.groups} groups")
    else:
        inner, out = (layer.in_channels, *layer.kernel_size), layer.out_channels
    shapes: dict[str, tuple[int, ...]] = {"styleinject_down": (of.n, of.r, *inner), "styleinject_up": (out, of.r)}
    if of.full:
        shapes["styleinject_router"] = (of.n, inner[0])
    if of.full and of.sta:
        shapes |= {"styleinject_gamma": (out, of.n), "styleinject_shift": (out,)}
    return shapes


def initial_bound(tensor: str, shape: torch.Size) -> float:
    """A and R start uniformly within +- 1 / sqrt(fan in), as nn.Linear's weights do; the others at 0."""
    fan_in = {"styleinject_down": shape[2:], "styleinject_router": shape[1:]}.get(tensor)
    return 1 / math.sqrt(math.prod(fan_in)) if fan_in else 0.0


class StyleInjectLayer(nn.Module, UnmergeableLayer):
    """What a Linear and a Conv2d share. scaling: the weight w of each adapter; r: its rank."""

    not_mergeable = NOT_MERGEABLE
    adapter_layer_names = TENSORS
    other_param_names = ("r", "settings", "scaling")
    positions: tuple[int, ...]  # dimensions of x and h that are an image's tokens
    base_layer: nn.Module
    styleinject_down: nn.ParameterDict
    styleinject_up: nn.ParameterDict
    styleinject_router: nn.ParameterDict
    styleinject_gamma: nn.ParameterDict
    styleinject_shift: nn.ParameterDict

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        widths = ("channels", "features")[isinstance(base_layer, nn.Linear)]
        self.in_features: int = getattr(base_layer, f"in_{widths}")
        self.out_features: int = getattr(base_layer, f"out_{widths}")
        self.r: dict[str, int] = {}
        self.settings: dict[str, Settings] = {}
        self.scaling: dict[str, float] = {}
        for tensor in TENSORS:
            setattr(self, tensor, nn.ParameterDict())
        self._disable_adapters, self.merged_adapters = False, []

    def update_layer(self, name: str, of: Settings, init: bool, inference_mode: bool) -> None:
        """Add an adapter. init: with the frozen layer's output; else what would be 0 is drawn, too."""
        self.r[name], self.settings[name], self.scaling[name] = of.r, of, 1.0
        for tensor, shape in tensor_shapes(self.get_base_layer(), of).items():
            p = nn.Parameter(torch.zeros(shape))
            bound = initial_bound(tensor, p.shape) or (0.0 if init else 0.1)
            getattr(self, tensor)[name] = nn.init.uniform_(p, -bound, bound) if bound else p
        if of.n == 1:  # s = 1: no gradient reaches the router
            self.frozen_peft_weight_names = self.frozen_peft_weight_names | {name: ("styleinject_router",)}
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        h = self.base_layer(x, *args, **kwargs)
        names = [] if self.disable_adapters else [name for name in self.active_adapters if self.scaling.get(name)]
        result = h
        for name in sorted(names):  # one order: the sum rounds alike, however the adapters were activated
            result = self.add(name, x, h, result)
        return result.to(h.dtype)

    def add(self, name: str, x: Tensor, h: Tensor, result: Tensor) -> Tensor:
        """`result` plus w [(g - 1)(h - mu) + (alpha / r) B A_s x] of one adapter."""
        of, w, up = self.settings[name], self.scaling[name], self.styleinject_up[name]
        factor = w * of.alpha / of.r
        x = x if torch.is_autocast_enabled(x.device.type) else self._cast_input_dtype(x, up.dtype)
        s = self.route(name, x, h) if of.full and of.n > 1 else None
        result = result + self.update(self.styleinject_down[name], up if factor == 1 else factor * up, s, x)
        if name not in self.styleinject_gamma:
            return result
        gate = self.gate(name, s) if w == 1 else w * self.gate(name, s)
        if of.hyper == "additive":
            gate = gate / (h.float().var(self.positions, correction=0, keepdim=True) + EPS).sqrt()
        minus_mu = -self.pool(h, "mean", keepdim=True)  # `h - mu` would negate a whole tensor in the backward pass
        return torch.addcmul(result, gate, h + minus_mu)

    def route(self, name: str, x: Tensor, h: Tensor) -> Tensor:
        """s in float32: (B, n), or (B, *positions, n) where each token has its own."""
        how = self.settings[name].pool
        pooled = self.tokens(x, h).float() if how == "token" else self.pool(x, how)
        return float32_linear(pooled, self.styleinject_router[name]).softmax(-1)

    def pool(self, x: Tensor, how: str, keepdim: bool = False) -> Tensor:
        """Sum or mean over an image's positions in float32. Not `mean`, whose backward pass writes a whole tensor."""
        pooled = x.sum(self.positions, keepdim=keepdim, dtype=torch.float32)
        return pooled if how == "sum" else pooled / (x.numel() // pooled.numel())

    def gate(self, name: str, s: Tensor | None) -> Tensor:
        """Gamma s + c in float32, to be multiplied with h."""
        gamma, shift = self.styleinject_gamma[name], self.styleinject_shift[name]
        return self.along(gamma[:, 0].float() + shift if s is None else float32_linear(s, gamma, shift))

    def tokens(self, x: Tensor, h: Tensor) -> Tensor:
        """x at the positions of h, (B, *positions, in)."""
        raise NotImplementedError

    def along(self, values: Tensor) -> Tensor:
        """Values per channel, (out,), (B, out) or (B, *positions, out), as they broadcast with h."""
        raise NotImplementedError

    def update(self, down: Tensor, up: Tensor, s: Tensor | None, x: Tensor) -> Tensor:
        """B A_s x of down A, up B; s None where there is one A."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"styleinject.{super().__repr__()}"


def float32_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """In float32, under autocast as well."""
    autocast = torch.is_autocast_enabled(x.device.type)
    with torch.autocast(x.device.type, enabled=False) if autocast else nullcontext():
        return F.linear(x, weight.float(), None if bias is None else bias.float())


def mix(down: Tensor, s: Tensor) -> Tensor:
    """A_s of down A (n, r, ...) and s (B, n): (B, r, ...)."""
    return (s.to(down.dtype) @ down.flatten(1)).unflatten(1, down.shape[1:])


class StyleInjectLinear(StyleInjectLayer):
    """On a Linear. x of two dimensions is one token per image, of four or more has its positions in the middle."""

    positions = (1,)

    def add(self, name: str, x: Tensor, h: Tensor, result: Tensor) -> Tensor:
        flat = [t.reshape(len(t), -1, t.shape[-1]) for t in (x, h, result)]
        return super().add(name, *flat).view_as(h)

    def tokens(self, x: Tensor, h: Tensor) -> Tensor:
        return x

    def along(self, values: Tensor) -> Tensor:
        return values[:, None] if values.ndim == 2 else values

    def update(self, down: Tensor, up: Tensor, s: Tensor | None, x: Tensor) -> Tensor:
        if s is None:
            low = F.linear(x, down[0])
        elif s.ndim == 2:
            low = x @ mix(down, s).mT
        else:
            low = (F.linear(x, down.flatten(0, 1)).unflatten(-1, down.shape[:2]) * s[..., None]).sum(-2).to(up.dtype)
        return F.linear(low, up)


class StyleInjectConv2d(StyleInjectLayer):
    """On a Conv2d; A has its kernel, stride and padding, B is 1 x 1."""

    positions = (2, 3)

    @property
    def groups(self) -> int:
        """A LoRA that wraps this layer asks for it."""
        return 1

    def tokens(self, x: Tensor, h: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, (h.shape[2], h.shape[3])).movedim(1, -1)

    def along(self, values: Tensor) -> Tensor:
        return values.movedim(-1, 1) if values.ndim == 4 else values[..., None, None]

    def update(self, down: Tensor, up: Tensor, s: Tensor | None, x: Tensor) -> Tensor:
        base: Any = self.get_base_layer()
        placed = {"stride": base.stride, "padding": base.padding, "dilation": base.dilation}
        if s is None:
            low = F.conv2d(x, down[0], **placed)
        elif s.ndim == 2:
            images = x.reshape(1, -1, *x.shape[2:])
            low = F.conv2d(images, mix(down, s).flatten(0, 1), groups=len(x), **placed)[0].unflatten(0, (len(x), -1))
        else:
            every = F.conv2d(x, down.flatten(0, 1), **placed).unflatten(1, down.shape[:2])
            low = (every * s.movedim(-1, 1)[:, :, None]).sum(1).to(up.dtype)
        return F.conv2d(low, up[:, :, None, None])
