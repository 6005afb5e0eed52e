"""How alike two images are: PSNR and SSIM, differentiable, per image, with a mask of the pixels that count."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from osn_gs.errors import OsnGsError

# Wang et al. 2004, section III-C: an 11-tap Gaussian window of 1.5 pixels; K1 and K2 for values in [0, 1].
WINDOW_RADIUS = 5
WINDOW_SIGMA = 1.5
LUMINANCE_CONSTANT = 0.01**2
CONTRAST_CONSTANT = 0.03**2

ROWS, COLUMNS = -3, -2  # the dimensions of [..., h, w, 3]


def psnr(
    image: Float[Tensor, "*batch h w 3"],
    truth: Float[Tensor, "*batch h w 3"],
    mask: Bool[Tensor, "*batch h w"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Peak signal-to-noise ratio in dB of each image, for values in [0, 1]; infinite for equal images.

    `mask` is True where a pixel counts; NaN where none does.
    """
    squared_error = (image - truth).square().mean(-1)
    return -10 * torch.log10(masked_mean(squared_error, mask))


def ssim(
    image: Float[Tensor, "*batch h w 3"],
    truth: Float[Tensor, "*batch h w 3"],
    mask: Bool[Tensor, "*batch h w"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Structural similarity of each image, in [-1, 1]: `ssim_map` averaged where the whole window is inside.

    Equals scikit-image's `structural_similarity` with Gaussian weights and no sample covariance. `mask` is True where
    a pixel counts; NaN where none does. Differs from OSN, which blanks masked pixels inside the windows too: here
    the mask only chooses which windows count, so two unequal images never agree better for being masked.
    """
    height, width = image.shape[ROWS], image.shape[COLUMNS]
    window = 2 * WINDOW_RADIUS + 1
    if min(height, width) < window:
        raise OsnGsError(f"SSIM needs images of at least {window}x{window} pixels, got {height}x{width}.")
    inside = (..., slice(WINDOW_RADIUS, -WINDOW_RADIUS), slice(WINDOW_RADIUS, -WINDOW_RADIUS))
    return masked_mean(ssim_map(image, truth)[inside], None if mask is None else mask[inside])


def ssim_map(image: Float[Tensor, "*batch h w 3"], truth: Float[Tensor, "*batch h w 3"]) -> Float[Tensor, "*batch h w"]:
    """Structural similarity at every pixel, mean of the channels, for values in [0, 1] (Wang et al. 2004, eq. 13).

    Windows that reach over the border see the image reflected there. Images need at least 5 pixels a side.
    """
    image_mean, truth_mean = gaussian_blur(image), gaussian_blur(truth)
    mean_product = image_mean * truth_mean
    mean_squares = image_mean.square() + truth_mean.square()
    covariance = gaussian_blur(image * truth) - mean_product
    variances = gaussian_blur(image.square() + truth.square()) - mean_squares
    luminance = (2 * mean_product + LUMINANCE_CONSTANT) / (mean_squares + LUMINANCE_CONSTANT)
    structure = (2 * covariance + CONTRAST_CONSTANT) / (variances + CONTRAST_CONSTANT)
    return (luminance * structure).mean(-1)


def masked_mean(
    values: Float[Tensor, "*batch h w"], mask: Bool[Tensor, "*batch h w"] | None
) -> Float[Tensor, "*batch"]:
    """Mean over the pixels of each image where `mask` is True (all of them without one); NaN where none is."""
    if mask is None:
        return values.mean((-2, -1))
    return torch.where(mask, values, 0).sum((-2, -1)) / mask.sum((-2, -1))


def gaussian_blur(image: Float[Tensor, "*batch h w c"]) -> Float[Tensor, "*batch h w c"]:
    """SSIM's Gaussian window applied to every channel; the image is reflected at its borders (d c b a | a b c d)."""
    return _SelfAdjointBlur.apply(image)


class _SelfAdjointBlur(torch.autograd.Function):
    """The blur is symmetric as a matrix (reflection keeps it so), so its gradient is the blur of the gradient.

    Sums of shifted images, forward and backward, are about twice as fast on a CPU as a grouped convolution.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor) -> Tensor:
        return _blur_along(_blur_along(image, ROWS), COLUMNS)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gaussian_blur(gradient)


def _blur_along(image: Tensor, dim: int) -> Tensor:
    size = image.shape[dim]
    before = image.narrow(dim, 0, WINDOW_RADIUS).flip(dim)
    after = image.narrow(dim, size - WINDOW_RADIUS, WINDOW_RADIUS).flip(dim)
    padded = torch.cat([before, image, after], dim)
    weights = _window_weights()
    blurred = weights[0] * padded.narrow(dim, WINDOW_RADIUS, size)
    for offset in range(1, WINDOW_RADIUS + 1):
        neighbours = padded.narrow(dim, WINDOW_RADIUS - offset, size) + padded.narrow(dim, WINDOW_RADIUS + offset, size)
        blurred.add_(neighbours, alpha=weights[offset])
    return blurred


def _window_weights() -> list[float]:
    """Weights of the middle tap and the taps beside it, to one side; the whole window sums to 1."""
    taps = [math.exp(-0.5 * (offset / WINDOW_SIGMA) ** 2) for offset in range(WINDOW_RADIUS + 1)]
    total = taps[0] + 2 * sum(taps[1:])
    return [tap / total for tap in taps]
