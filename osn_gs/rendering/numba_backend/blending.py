"""Front-to-back alpha blending of projected Gaussians on the CPU, with its gradient.

A tile is blended Gaussian by Gaussian; each walks the pixel rows of its ellipse, and the loops over the pixels
of a row are what the compiler turns into vector code.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from osn_gs.rendering.numba_backend.threads import run_over_range
from osn_gs.rendering.numba_backend.tiles import TILE_HEIGHT, TILE_WIDTH, make_tile_lists
from osn_gs.rendering.projected_gaussians import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN, ProjectedGaussians

float32 = np.float32
ZERO, ONE, TWO, HALF = float32(0), float32(1), float32(2), float32(0.5)
FAINTEST, MOST_OPAQUE, STOP = float32(ALPHA_MIN), float32(ALPHA_MAX), float32(TRANSMITTANCE_MIN)
LOG2_E = float32(1.4426950408889634)
# Slack of the row bounds: rounding must never lose a pixel; every pixel is tested for itself anyway.
LOG_SLACK, PIXEL_SLACK = float32(1e-4), float32(1e-3)
# Without "nnan" and "ninf": a NaN must stay a NaN.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}

# Columns of a gradient slot, before those of the features and (with absgrad) two more for |d loss / d mean|.
MEAN_X, MEAN_Y, CONIC_XX, CONIC_XY, CONIC_YY, OPACITY, FEATURES = range(7)


def blend(
    projected: ProjectedGaussians, features: Float[Tensor, "c n d"], width: int, height: int, absgrad: bool = False
) -> tuple[Float[Tensor, "c h w d"], Float[Tensor, "c h w 1"]]:
    """As `torch_reference.blend`, in float32."""
    image, alphas = _Blend.apply(
        projected.means2d,
        projected.conics,
        projected.opacities,
        features,
        projected.depths.detach(),
        projected.radii,
        width,
        height,
        absgrad,
    )
    return image, alphas[..., None]


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means2d, conics, opacities, features, depths, radii, width, height, absgrad):
        num_cameras, _, num_channels = features.shape
        images = np.empty((num_cameras, height, width, num_channels), np.float32)
        transmittances = np.empty((num_cameras, height, width), np.float32)
        last_positions = np.empty((num_cameras, height, width), np.int32)
        inputs = _as_arrays(means2d, conics, opacities, features)
        tile_lists = []
        for camera, gaussians in enumerate(zip(*inputs, strict=True)):
            tiles = make_tile_lists(gaussians[0], depths[camera].numpy(), radii[camera].numpy(), width, height)
            tile_lists.append(tiles)
            outputs = (images[camera], transmittances[camera], last_positions[camera])
            num_tiles = tiles.tiles_x * tiles.tiles_y
            run_over_range(_blend_forward, num_tiles, *gaussians, tiles.offsets, tiles.gaussians, *outputs)
        ctx.save_for_backward(means2d, conics, opacities, features)
        ctx.saved_arrays = (tile_lists, transmittances, last_positions)
        ctx.absgrad = absgrad
        return torch.from_numpy(images), torch.from_numpy(ONE - transmittances)

    @staticmethod
    def backward(ctx, grad_images, grad_alphas):
        means2d = ctx.saved_tensors[0]
        inputs = _as_arrays(*ctx.saved_tensors)
        grad_images, grad_alphas = _as_arrays(grad_images, grad_alphas)
        num_columns = FEATURES + inputs[-1].shape[-1] + (2 if ctx.absgrad else 0)
        grads = np.empty((*means2d.shape[:2], num_columns), np.float32)
        for camera, gaussians in enumerate(zip(*inputs, strict=True)):
            tiles, transmittances, last_positions = (saved[camera] for saved in ctx.saved_arrays)
            slots = np.empty((len(tiles.slots), num_columns), np.float32)
            run_over_range(
                _blend_backward,
                tiles.tiles_x * tiles.tiles_y,
                *gaussians,
                tiles.offsets,
                tiles.gaussians,
                tiles.slots,
                transmittances,
                last_positions,
                grad_images[camera],
                grad_alphas[camera],
                ctx.absgrad,
                slots,
            )
            run_over_range(
                _sum_slots, len(grads[camera]), slots, tiles.slot_offsets, grads[camera], smallest_chunk=4096
            )
        grads = torch.from_numpy(grads)
        features_end = FEATURES + inputs[-1].shape[-1]
        if ctx.absgrad:  # where gsplat's DefaultStrategy looks for it
            means2d.absgrad = grads[..., features_end:]
        return (
            grads[..., :CONIC_XX],
            grads[..., CONIC_XX:OPACITY],
            grads[..., OPACITY],
            grads[..., FEATURES:features_end],
            *(None,) * 5,
        )


def _as_arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


@intrinsic
def _float_from_bits(typing_context, bits):
    def bitcast(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), bitcast


@njit(inline="always")
def _exp(x):
    """exp(x) for -80 < x <= 0 to 2e-7 relative: 2^integer by the exponent bits, 2^fraction by a polynomial.

    Vectorizes, which the library's expf does not.
    """
    exponent = x * LOG2_E
    whole = np.floor(exponent + HALF)
    fraction = exponent - whole
    power = float32(1.5403530e-4)
    power = power * fraction + float32(1.3333558e-3)
    power = power * fraction + float32(9.6181291e-3)
    power = power * fraction + float32(5.5504109e-2)
    power = power * fraction + float32(2.4022651e-1)
    power = power * fraction + float32(6.9314718e-1)
    power = power * fraction + ONE
    return power * _float_from_bits((np.int32(whole) + np.int32(127)) << np.int32(23))


@njit(cache=True, nogil=True, error_model="numpy")
def _ellipse_rows(y, conic_xx, conic_xy, conic_yy, level, top, bottom):
    """First and last pixel row, within top..bottom, of the ellipse sigma <= level / 2."""
    reach = math.sqrt(level * conic_xx / (conic_xx * conic_yy - conic_xy * conic_xy)) + PIXEL_SLACK
    first = max(math.ceil(y - reach - HALF), top)
    last = min(math.floor(y + reach - HALF), bottom)
    return np.int64(first), np.int64(last)


@njit(cache=True, nogil=True, error_model="numpy")
def _ellipse_columns(x, dy, conic_xx, conic_xy, conic_yy, level, left, right):
    """First and last pixel column, within left..right, of that ellipse in the row `dy` below its centre."""
    slope = conic_xy * dy
    discriminant = slope * slope - conic_xx * (conic_yy * dy * dy - level)
    if discriminant < ZERO:
        return left, left - 1
    reach = math.sqrt(discriminant) / conic_xx + PIXEL_SLACK
    middle = x - slope / conic_xx - HALF
    first = max(math.ceil(middle - reach), left)
    last = min(math.floor(middle + reach), right)
    return np.int64(first), np.int64(last)


@njit(cache=True, nogil=True, fastmath=FASTMATH, error_model="numpy")
def _blend_forward(
    first_tile, last_tile, means2d, conics, opacities, features, tile_offsets, tile_gaussians,
    image, transmittance_image, last_position_image,
):  # fmt: skip
    """Blends tiles first_tile..last_tile-1.

    Writes the premultiplied features, the transmittance left behind the last Gaussian, and that Gaussian's
    position in the tile's list (-1: none), which is where backward starts.
    """
    height, width, num_channels = image.shape
    tiles_x = (width + TILE_WIDTH - 1) // TILE_WIDTH
    transmittance = np.empty((TILE_HEIGHT, TILE_WIDTH), np.float32)  # negative: this pixel has stopped
    last_position = np.empty((TILE_HEIGHT, TILE_WIDTH), np.int32)
    blended = np.empty((num_channels, TILE_HEIGHT, TILE_WIDTH), np.float32)
    weights = np.empty(TILE_WIDTH, np.float32)
    for tile in range(first_tile, last_tile):
        left, top = (tile % tiles_x) * TILE_WIDTH, (tile // tiles_x) * TILE_HEIGHT
        right, bottom = min(left + TILE_WIDTH, width) - 1, min(top + TILE_HEIGHT, height) - 1
        transmittance[:] = ONE
        last_position[:] = -1
        blended[:] = ZERO
        pixels_left = (right - left + 1) * (bottom - top + 1)
        for place in range(tile_offsets[tile], tile_offsets[tile + 1]):
            position = np.int32(place - tile_offsets[tile])
            i = tile_gaussians[place]
            x, opacity = means2d[i, 0], opacities[i]
            conic_xx, conic_xy, conic_yy = conics[i, 0], conics[i, 1], conics[i, 2]
            level = TWO * math.log(opacity / FAINTEST) + LOG_SLACK
            first_row, last_row = _ellipse_rows(means2d[i, 1], conic_xx, conic_xy, conic_yy, level, top, bottom)
            for row in range(first_row, last_row + 1):
                dy = float32(row) + HALF - means2d[i, 1]
                first, last = _ellipse_columns(x, dy, conic_xx, conic_xy, conic_yy, level, left, right)
                count = last - first + 1
                if count <= 0:
                    continue
                in_row = slice(first - left, last + 1 - left)
                row_transmittance = transmittance[row - top, in_row]
                row_last_position = last_position[row - top, in_row]
                quadratic, linear, constant = -HALF * conic_xx, -conic_xy * dy, -HALF * conic_yy * dy * dy
                first_dx = float32(first) + HALF - x
                stopped = np.int32(0)
                for column in range(count):
                    dx = first_dx + float32(column)
                    minus_sigma = (quadratic * dx + linear) * dx + constant
                    alpha = min(opacity * _exp(minus_sigma), MOST_OPAQUE)
                    before = row_transmittance[column]
                    after = before * (ONE - alpha)
                    touched = (before > ZERO) & (alpha >= FAINTEST) & (minus_sigma <= ZERO)
                    blends = touched & (after > STOP)
                    stops = touched & (after <= STOP)
                    weights[column] = before * alpha if blends else ZERO
                    row_transmittance[column] = after if blends else (-before if stops else before)
                    row_last_position[column] = position if blends else row_last_position[column]
                    stopped += np.int32(stops)
                pixels_left -= stopped
                for channel in range(num_channels):
                    feature = features[i, channel]
                    row_blended = blended[channel, row - top, in_row]
                    for column in range(count):
                        row_blended[column] += feature * weights[column]
            if pixels_left <= 0:
                break
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                transmittance_image[row, column] = abs(transmittance[row - top, column - left])
                last_position_image[row, column] = last_position[row - top, column - left]
                for channel in range(num_channels):
                    image[row, column, channel] = blended[channel, row - top, column - left]


@njit(cache=True, nogil=True, fastmath=FASTMATH, error_model="numpy")
def _blend_backward(
    first_tile, last_tile, means2d, conics, opacities, features, tile_offsets, tile_gaussians, tile_slots,
    transmittance_image, last_position_image, grad_image, grad_alpha_image, absgrad, slots,
):  # fmt: skip
    """Walks tiles first_tile..last_tile-1 far to near and writes one gradient slot for every Gaussian of a tile.

    At a pixel with colour C = sum_i T_i alpha_i c_i and T_{i+1} = T_i (1 - alpha_i), the chain rule gives
    dL/d alpha_i = T_i <c_i, dL/dC> - (sum of what lies behind i) / (1 - alpha_i); `behind` is that sum, which
    begins with the final transmittance times its gradient.
    """
    height, width, num_channels = grad_image.shape
    tiles_x = (width + TILE_WIDTH - 1) // TILE_WIDTH
    transmittance = np.empty((TILE_HEIGHT, TILE_WIDTH), np.float32)
    behind = np.empty((TILE_HEIGHT, TILE_WIDTH), np.float32)
    last_position = np.empty((TILE_HEIGHT, TILE_WIDTH), np.int32)
    grad_blended = np.empty((num_channels, TILE_HEIGHT, TILE_WIDTH), np.float32)
    weights = np.empty(TILE_WIDTH, np.float32)
    grad_weights = np.empty(TILE_WIDTH, np.float32)
    grad_sigmas = np.empty(TILE_WIDTH, np.float32)
    grad_features = np.empty(num_channels, np.float32)
    for tile in range(first_tile, last_tile):
        left, top = (tile % tiles_x) * TILE_WIDTH, (tile // tiles_x) * TILE_HEIGHT
        right, bottom = min(left + TILE_WIDTH, width) - 1, min(top + TILE_HEIGHT, height) - 1
        deepest = np.int32(-1)
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                r, c = row - top, column - left
                transmittance[r, c] = transmittance_image[row, column]
                behind[r, c] = -transmittance_image[row, column] * grad_alpha_image[row, column]
                last_position[r, c] = last_position_image[row, column]
                deepest = max(deepest, last_position[r, c])
                for channel in range(num_channels):
                    grad_blended[channel, r, c] = grad_image[row, column, channel]

        begin = tile_offsets[tile]
        for place in range(begin + deepest + 1, tile_offsets[tile + 1]):  # hidden everywhere in this tile
            slots[tile_slots[place], :] = ZERO
        for place in range(begin + deepest, begin - 1, -1):
            position = np.int32(place - begin)
            i = tile_gaussians[place]
            x, opacity = means2d[i, 0], opacities[i]
            conic_xx, conic_xy, conic_yy = conics[i, 0], conics[i, 1], conics[i, 2]
            level = TWO * math.log(opacity / FAINTEST) + LOG_SLACK
            first_row, last_row = _ellipse_rows(means2d[i, 1], conic_xx, conic_xy, conic_yy, level, top, bottom)
            # Sums over the pixels of d loss / d sigma times 1, dx, dy, dx^2, dx dy, dy^2.
            sum_1, sum_x, sum_y, sum_xx, sum_xy, sum_yy = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
            absolute_x, absolute_y = ZERO, ZERO
            grad_features[:] = ZERO
            for row in range(first_row, last_row + 1):
                dy = float32(row) + HALF - means2d[i, 1]
                first, last = _ellipse_columns(x, dy, conic_xx, conic_xy, conic_yy, level, left, right)
                count = last - first + 1
                if count <= 0:
                    continue
                in_row = slice(first - left, last + 1 - left)
                for column in range(count):
                    grad_weights[column] = ZERO
                for channel in range(num_channels):
                    feature = features[i, channel]
                    row_grad_blended = grad_blended[channel, row - top, in_row]
                    for column in range(count):
                        grad_weights[column] += feature * row_grad_blended[column]
                row_transmittance = transmittance[row - top, in_row]
                row_behind = behind[row - top, in_row]
                row_last_position = last_position[row - top, in_row]
                quadratic, linear, constant = -HALF * conic_xx, -conic_xy * dy, -HALF * conic_yy * dy * dy
                first_dx = float32(first) + HALF - x
                row_1, row_x, row_xx = ZERO, ZERO, ZERO
                for column in range(count):
                    dx = first_dx + float32(column)
                    minus_sigma = (quadratic * dx + linear) * dx + constant
                    unclamped = opacity * _exp(minus_sigma)
                    alpha = min(unclamped, MOST_OPAQUE)
                    blended = (position <= row_last_position[column]) & (alpha >= FAINTEST) & (minus_sigma <= ZERO)
                    alpha = alpha if blended else ZERO
                    keeps = ONE / (ONE - alpha)
                    before = row_transmittance[column] * keeps
                    weight = alpha * before
                    grad_alpha = before * grad_weights[column] - keeps * row_behind[column]
                    row_behind[column] += grad_weights[column] * weight
                    row_transmittance[column] = before
                    weights[column] = weight
                    grad_sigma = -alpha * grad_alpha if unclamped <= MOST_OPAQUE else ZERO
                    grad_sigmas[column] = grad_sigma
                    row_1 += grad_sigma
                    row_x += grad_sigma * dx
                    row_xx += grad_sigma * dx * dx
                for channel in range(num_channels):
                    row_grad_blended = grad_blended[channel, row - top, in_row]
                    total = ZERO
                    for column in range(count):
                        total += weights[column] * row_grad_blended[column]
                    grad_features[channel] += total
                sum_1 += row_1
                sum_x += row_x
                sum_y += dy * row_1
                sum_xx += row_xx
                sum_xy += dy * row_x
                sum_yy += dy * dy * row_1
                if absgrad:
                    row_absolute_x, row_absolute_y = ZERO, ZERO
                    for column in range(count):
                        dx = first_dx + float32(column)
                        row_absolute_x += abs(grad_sigmas[column] * (conic_xx * dx + conic_xy * dy))
                        row_absolute_y += abs(grad_sigmas[column] * (conic_xy * dx + conic_yy * dy))
                    absolute_x += row_absolute_x
                    absolute_y += row_absolute_y
            slot = slots[tile_slots[place]]
            slot[MEAN_X] = -(conic_xx * sum_x + conic_xy * sum_y)
            slot[MEAN_Y] = -(conic_xy * sum_x + conic_yy * sum_y)
            slot[CONIC_XX] = HALF * sum_xx
            slot[CONIC_XY] = sum_xy
            slot[CONIC_YY] = HALF * sum_yy
            slot[OPACITY] = -sum_1 / opacity
            for channel in range(num_channels):
                slot[FEATURES + channel] = grad_features[channel]
            if absgrad:
                slot[FEATURES + num_channels] = absolute_x
                slot[FEATURES + num_channels + 1] = absolute_y


@njit(cache=True, nogil=True)
def _sum_slots(first, last, slots, slot_offsets, grads):
    """Adds up, in a fixed order, the slots of Gaussians first..last-1."""
    for i in range(first, last):
        for column in range(grads.shape[1]):
            grads[i, column] = ZERO
        for slot in range(slot_offsets[i], slot_offsets[i + 1]):
            for column in range(grads.shape[1]):
                grads[i, column] += slots[slot, column]
