"""Front-to-back alpha blending of projected Gaussians on the CPU, with its gradient.

A tile is blended Gaussian by Gaussian; each walks the pixel rows of its ellipse, and the loops over the pixels
of a row are what the compiler turns into vector code. Three things make that code fast (twice the plain loops):
rows are widened to whole groups of LANES pixels, so that no scalar remainder is left; all that is known
of a pixel row lies in one flat array at constant distances, so that the compiler sees that nothing overlaps; and
channels go four at a time.
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

from osn_gs.rendering.numba_backend.tiles import make_tile_lists
from osn_gs.rendering.projected_gaussians import ALPHA_MAX, ALPHA_MIN, TRANSMITTANCE_MIN, ProjectedGaussians
from osn_gs.threads import run_over_range

float32 = np.float32
ZERO, ONE, TWO, HALF = float32(0), float32(1), float32(2), float32(0.5)
# An argument of the kernels: Numba's cache would keep another file's old values when that file changes.
ALPHA_LIMITS = (float32(ALPHA_MIN), float32(ALPHA_MAX), float32(TRANSMITTANCE_MIN))
LOG2_E, SMALLEST_EXPONENT = float32(1.4426950408889634), float32(-126)
# Slack of the row bounds: rounding must never lose a pixel; every pixel is tested for itself anyway.
LOG_SLACK, PIXEL_SLACK = float32(1e-4), float32(1e-3)
# Without "nnan" and "ninf": a NaN must stay a NaN.
FASTMATH = {"reassoc", "contract", "nsz", "arcp"}

LANES = 8  # float32 numbers in an AVX2 register
TILE_WIDTH, TILE_HEIGHT = 64, 16  # wide rows suit the row-by-row vector loops
CHANNEL_GROUP = 4  # features are padded to a multiple of this
FIELD = TILE_WIDTH  # the state of a pixel row is one flat array: field after field, a number per column
# Where the fields begin: shared, then of the forward and of the backward pass.
PIXEL_X, TRANSMITTANCE, LAST_POSITION, WEIGHT, FORWARD_CHANNELS = (FIELD * i for i in range(5))
BEHIND, GRAD_WEIGHT, GRAD_SIGMA, BACKWARD_CHANNELS = (FIELD * i for i in range(4, 8))
# The same for the column sums of backward: d loss / d sigma times 1, dy, dy^2; absolute gradients; features.
SUM_1, SUM_Y, SUM_YY, SUM_ABSOLUTE_X, SUM_ABSOLUTE_Y, SUM_FEATURES = (FIELD * i for i in range(6))
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
        arrays = _kernel_inputs(means2d, conics, opacities, features)
        tile_lists = []
        for camera, gaussians in enumerate(zip(*arrays, strict=True)):
            visible = (gaussians[0], depths[camera].numpy(), radii[camera].numpy())
            tiles = make_tile_lists(*visible, width, height, TILE_WIDTH, TILE_HEIGHT)
            tile_lists.append(tiles)
            outputs = (images[camera], transmittances[camera], last_positions[camera])
            inputs = (*gaussians, ALPHA_LIMITS, tiles.offsets, tiles.gaussians)
            run_over_range(_blend_forward, tiles.count, *inputs, *outputs)
        ctx.save_for_backward(means2d, conics, opacities, features)
        ctx.saved_arrays = (tile_lists, transmittances, last_positions)
        ctx.absgrad = absgrad
        return torch.from_numpy(images), torch.from_numpy(ONE - transmittances)

    @staticmethod
    def backward(ctx, grad_images, grad_alphas):
        means2d, features = ctx.saved_tensors[0], ctx.saved_tensors[-1]
        inputs = _kernel_inputs(*ctx.saved_tensors)
        grad_images, grad_alphas = _as_arrays(grad_images, grad_alphas)
        features_end = FEATURES + features.shape[-1]
        num_columns = features_end + (2 if ctx.absgrad else 0)
        grads = np.empty((*means2d.shape[:2], num_columns), np.float32)
        for camera, gaussians in enumerate(zip(*inputs, strict=True)):
            tiles, transmittances, last_positions = (saved[camera] for saved in ctx.saved_arrays)
            lists = (tiles.offsets, tiles.gaussians, tiles.slots)
            pixels = (transmittances, last_positions, grad_images[camera], grad_alphas[camera])
            slots = np.empty((len(tiles.slots), num_columns), np.float32)
            run_over_range(_blend_backward, tiles.count, *gaussians, ALPHA_LIMITS, *lists, *pixels, ctx.absgrad, slots)
            count = len(grads[camera])
            run_over_range(_sum_slots, count, slots, tiles.slot_offsets, grads[camera], smallest_chunk=4096)
        grads = torch.from_numpy(grads)
        if ctx.absgrad:  # where gsplat's DefaultStrategy looks for it
            means2d.absgrad = grads[..., features_end:]
        groups = (slice(0, CONIC_XX), slice(CONIC_XX, OPACITY), OPACITY, slice(FEATURES, features_end))
        return (*(grads[..., columns] for columns in groups), *(None,) * 5)


def _kernel_inputs(means2d, conics, opacities, features) -> tuple[np.ndarray, ...]:
    padding = -features.shape[-1] % CHANNEL_GROUP
    return _as_arrays(means2d, conics, opacities, torch.nn.functional.pad(features, (0, padding)))


def _as_arrays(*tensors: Tensor) -> tuple[np.ndarray, ...]:
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


@intrinsic
def _float_from_bits(typing_context, bits):
    def bitcast(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), bitcast


@njit(inline="always")
def _exp(x):
    """exp(x) for x <= 0 to 2e-7 relative (at least 2^-126): 2^integer by the exponent bits, 2^fraction by a polynomial.

    Vectorizes, which the library's expf does not.
    """
    exponent = x * LOG2_E
    exponent = SMALLEST_EXPONENT if exponent < SMALLEST_EXPONENT else exponent
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
def _tile_bounds(tile, width, height):
    """Left and top pixel of the tile, and how many of its columns and rows lie in the image."""
    tiles_x = (width + TILE_WIDTH - 1) // TILE_WIDTH
    left, top = (tile % tiles_x) * TILE_WIDTH, (tile // tiles_x) * TILE_HEIGHT
    return left, top, min(TILE_WIDTH, width - left), min(TILE_HEIGHT, height - top)


@njit(cache=True, nogil=True, error_model="numpy")
def _ellipse_rows(y, conic_xx, conic_xy, conic_yy, level, rows):
    """First row of the tile and one behind the last that the ellipse sigma <= level / 2 can touch; y in the tile."""
    reach = math.sqrt(level * conic_xx / (conic_xx * conic_yy - conic_xy * conic_xy)) + PIXEL_SLACK
    low, high = y - reach - HALF, y + reach + HALF
    if high < ZERO or low >= float32(rows):
        return 0, 0
    return np.int64(max(low, ZERO)), np.int64(min(high, float32(rows)))


@njit(cache=True, nogil=True, error_model="numpy")
def _ellipse_columns(x, dy, conic_xx, conic_xy, conic_yy, level, columns):
    """The same for the columns of the row `dy` below the centre, widened to whole groups of LANES."""
    slope = conic_xy * dy
    discriminant = slope * slope - conic_xx * (conic_yy * dy * dy - level)
    if discriminant < ZERO:
        return 0, 0
    reach = math.sqrt(discriminant) / conic_xx + PIXEL_SLACK
    middle = x - slope / conic_xx
    low, high = middle - reach - HALF, middle + reach + HALF
    if high < ZERO or low >= float32(columns):
        return 0, 0
    first, behind_last = np.int64(max(low, ZERO)), np.int64(min(high, float32(columns)))
    return first // LANES * LANES, (behind_last + LANES - 1) // LANES * LANES


@njit(cache=True, nogil=True, fastmath=FASTMATH, error_model="numpy")
def _blend_forward(
    first_tile, last_tile, means2d, conics, opacities, features, alpha_limits, tile_offsets, tile_gaussians,
    image, transmittance_image, last_position_image,
):  # fmt: skip
    """Blends tiles first_tile..last_tile-1.

    Writes the premultiplied features, the transmittance left behind the last Gaussian, and that Gaussian's
    position in the tile's list (-1: none), which is where backward starts.
    """
    height, width, num_channels = image.shape
    state = _new_state(FORWARD_CHANNELS + FIELD * features.shape[1])
    for tile in range(first_tile, last_tile):
        left, top, columns, rows = _tile_bounds(tile, width, height)
        # A negative transmittance marks a pixel that has stopped; those outside the image never begin.
        state[:, TRANSMITTANCE : TRANSMITTANCE + FIELD] = -ONE
        state[:, TRANSMITTANCE : TRANSMITTANCE + columns] = ONE
        state[:, LAST_POSITION : LAST_POSITION + FIELD] = -ONE
        state[:, FORWARD_CHANNELS:] = ZERO
        pixels_left = float32(rows * columns)
        for place in range(tile_offsets[tile], tile_offsets[tile + 1]):
            position = float32(place - tile_offsets[tile])
            i = tile_gaussians[place]
            x, y, opacity = means2d[i, 0] - float32(left), means2d[i, 1] - float32(top), opacities[i]
            conic_xx, conic_xy, conic_yy = conics[i, 0], conics[i, 1], conics[i, 2]
            level = TWO * math.log(opacity / alpha_limits[0]) + LOG_SLACK
            first_row, behind_last_row = _ellipse_rows(y, conic_xx, conic_xy, conic_yy, level, rows)
            for row in range(first_row, behind_last_row):
                dy = float32(row) + HALF - y
                begin, end = _ellipse_columns(x, dy, conic_xx, conic_xy, conic_yy, level, columns)
                if begin < end:
                    line = state[row][begin:]
                    pixels_left -= _blend_row(
                        line,
                        end - begin,
                        x,
                        dy,
                        conic_xx,
                        conic_xy,
                        conic_yy,
                        opacity,
                        alpha_limits,
                        features[i],
                        position,
                    )
            if pixels_left <= ZERO:
                break
        for row in range(rows):
            for column in range(columns):
                transmittance_image[top + row, left + column] = abs(state[row, TRANSMITTANCE + column])
                last_position_image[top + row, left + column] = np.int32(state[row, LAST_POSITION + column])
                for channel in range(num_channels):
                    image[top + row, left + column, channel] = state[row, FORWARD_CHANNELS + FIELD * channel + column]


@njit(cache=True, nogil=True)
def _new_state(row_length):
    """Working memory of a tile [row, field and column], zero but for the pixel centres."""
    state = np.zeros((TILE_HEIGHT, row_length), np.float32)
    for column in range(TILE_WIDTH):
        state[:, PIXEL_X + column] = float32(column) + HALF
    return state


@njit(cache=True, nogil=True, fastmath=FASTMATH, error_model="numpy")
def _blend_row(line, count, x, dy, conic_xx, conic_xy, conic_yy, opacity, alpha_limits, features, position):
    """Blends one Gaussian over part of a row, from the state `line` on; returns how many pixels stopped."""
    quadratic, linear, constant = -HALF * conic_xx, -conic_xy * dy, -HALF * conic_yy * dy * dy
    f0, f1, f2, f3 = features[0], features[1], features[2], features[3]
    alpha_min, alpha_max, transmittance_min = alpha_limits
    stopped = ZERO
    for k in range(count):
        dx = line[PIXEL_X + k] - x
        minus_sigma = (quadratic * dx + linear) * dx + constant
        alpha = min(opacity * _exp(minus_sigma), alpha_max)
        before = line[TRANSMITTANCE + k]
        after = before * (ONE - alpha)
        touched = (before > ZERO) & (alpha >= alpha_min) & (minus_sigma <= ZERO)
        blends = touched & (after > transmittance_min)
        stops = touched & (after <= transmittance_min)
        weight = before * alpha if blends else ZERO
        line[TRANSMITTANCE + k] = after if blends else (-before if stops else before)
        line[LAST_POSITION + k] = position if blends else line[LAST_POSITION + k]
        line[WEIGHT + k] = weight
        line[FORWARD_CHANNELS + k] += f0 * weight
        line[FORWARD_CHANNELS + FIELD + k] += f1 * weight
        line[FORWARD_CHANNELS + 2 * FIELD + k] += f2 * weight
        line[FORWARD_CHANNELS + 3 * FIELD + k] += f3 * weight
        stopped += ONE if stops else ZERO
    for channel in range(CHANNEL_GROUP, len(features), CHANNEL_GROUP):
        f0, f1, f2, f3 = features[channel], features[channel + 1], features[channel + 2], features[channel + 3]
        group = line[FORWARD_CHANNELS + channel * FIELD :]
        for k in range(count):
            weight = line[WEIGHT + k]
            group[k] += f0 * weight
            group[FIELD + k] += f1 * weight
            group[2 * FIELD + k] += f2 * weight
            group[3 * FIELD + k] += f3 * weight
    return stopped


@njit(cache=True, nogil=True, fastmath=FASTMATH, error_model="numpy")
def _blend_backward(
    first_tile, last_tile, means2d, conics, opacities, features, alpha_limits, tile_offsets, tile_gaussians, tile_slots,
    transmittance_image, last_position_image, grad_image, grad_alpha_image, absgrad, slots,
):  # fmt: skip
    """Walks tiles first_tile..last_tile-1 far to near and writes one gradient slot for every Gaussian of a tile.

    At a pixel with colour C = sum_i T_i alpha_i c_i and T_{i+1} = T_i (1 - alpha_i), the chain rule gives
    dL/d alpha_i = T_i <c_i, dL/dC> - (sum of what lies behind i) / (1 - alpha_i); the field BEHIND is that sum,
    which begins with the final transmittance times its gradient.
    """
    height, width, num_channels = grad_image.shape
    state = _new_state(BACKWARD_CHANNELS + FIELD * features.shape[1])
    sums = np.zeros(SUM_FEATURES + FIELD * features.shape[1], np.float32)
    for tile in range(first_tile, last_tile):
        left, top, columns, rows = _tile_bounds(tile, width, height)
        state[:, TRANSMITTANCE : TRANSMITTANCE + FIELD] = ONE
        state[:, LAST_POSITION : LAST_POSITION + FIELD] = -ONE
        state[:, BEHIND : BEHIND + FIELD] = ZERO
        state[:, BACKWARD_CHANNELS:] = ZERO
        deepest = np.int32(-1)
        for row in range(rows):
            for column in range(columns):
                final = transmittance_image[top + row, left + column]
                last_position = last_position_image[top + row, left + column]
                state[row, TRANSMITTANCE + column] = final
                state[row, BEHIND + column] = -final * grad_alpha_image[top + row, left + column]
                state[row, LAST_POSITION + column] = float32(last_position)
                deepest = max(deepest, last_position)
                for channel in range(num_channels):
                    state[row, BACKWARD_CHANNELS + FIELD * channel + column] = grad_image[
                        top + row, left + column, channel
                    ]

        first_place = tile_offsets[tile]
        for place in range(first_place + deepest + 1, tile_offsets[tile + 1]):  # hidden everywhere in this tile
            slots[tile_slots[place], :] = ZERO
        for place in range(first_place + deepest, first_place - 1, -1):
            position = float32(place - first_place)
            i = tile_gaussians[place]
            x, y, opacity = means2d[i, 0] - float32(left), means2d[i, 1] - float32(top), opacities[i]
            conic_xx, conic_xy, conic_yy = conics[i, 0], conics[i, 1], conics[i, 2]
            level = TWO * math.log(opacity / alpha_limits[0]) + LOG_SLACK
            first_row, behind_last_row = _ellipse_rows(y, conic_xx, conic_xy, conic_yy, level, rows)
            leftmost, rightmost = TILE_WIDTH, 0
            for row in range(first_row, behind_last_row):
                dy = float32(row) + HALF - y
                begin, end = _ellipse_columns(x, dy, conic_xx, conic_xy, conic_yy, level, columns)
                if begin < end:
                    leftmost, rightmost = min(leftmost, begin), max(rightmost, end)
                    line, column_sums = state[row][begin:], sums[begin:]
                    _add_hidden_channels(line, end - begin, features[i])
                    _unblend_row(
                        line,
                        end - begin,
                        x,
                        dy,
                        conic_xx,
                        conic_xy,
                        conic_yy,
                        opacity,
                        alpha_limits,
                        features[i],
                        position,
                        column_sums,
                    )
                    if absgrad:
                        _add_absolute_gradients(line, end - begin, x, dy, conic_xx, conic_xy, conic_yy, column_sums)
            slot = slots[tile_slots[place]]
            _fill_slot(slot, state[0], x, conic_xx, conic_xy, conic_yy, opacity, sums, leftmost, rightmost)
            for channel in range(num_channels):
                slot[FEATURES + channel] = _sum(sums, SUM_FEATURES + channel * FIELD + leftmost, rightmost - leftmost)
            if absgrad:
                slot[FEATURES + num_channels] = _sum(sums, SUM_ABSOLUTE_X + leftmost, rightmost - leftmost)
                slot[FEATURES + num_channels + 1] = _sum(sums, SUM_ABSOLUTE_Y + leftmost, rightmost - leftmost)
            for field in range(0, len(sums), FIELD):
                sums[field + leftmost : field + rightmost] = ZERO


@njit(cache=True, nogil=True, fastmath=FASTMATH, error_model="numpy")
def _add_hidden_channels(line, count, features):
    """Writes <feature, d loss / d pixel> of the channels behind the first group, which `_unblend_row` adds itself."""
    if len(features) == CHANNEL_GROUP:
        return  # the field is zero since the state was made
    for k in range(count):
        line[GRAD_WEIGHT + k] = ZERO
    for channel in range(CHANNEL_GROUP, len(features), CHANNEL_GROUP):
        f0, f1, f2, f3 = features[channel], features[channel + 1], features[channel + 2], features[channel + 3]
        group = line[BACKWARD_CHANNELS + channel * FIELD :]
        for k in range(count):
            line[GRAD_WEIGHT + k] += (
                f0 * group[k] + f1 * group[FIELD + k] + f2 * group[2 * FIELD + k] + f3 * group[3 * FIELD + k]
            )


@njit(cache=True, nogil=True, fastmath=FASTMATH, error_model="numpy")
def _unblend_row(line, count, x, dy, conic_xx, conic_xy, conic_yy, opacity, alpha_limits, features, position, sums):
    """Takes one Gaussian off part of a row and adds its gradients to the column sums."""
    quadratic, linear, constant = -HALF * conic_xx, -conic_xy * dy, -HALF * conic_yy * dy * dy
    f0, f1, f2, f3 = features[0], features[1], features[2], features[3]
    alpha_min, alpha_max, _ = alpha_limits
    for k in range(count):
        dx = line[PIXEL_X + k] - x
        minus_sigma = (quadratic * dx + linear) * dx + constant
        unclamped = opacity * _exp(minus_sigma)
        alpha = min(unclamped, alpha_max)
        blended = (position <= line[LAST_POSITION + k]) & (alpha >= alpha_min) & (minus_sigma <= ZERO)
        alpha = alpha if blended else ZERO
        keeps = ONE / (ONE - alpha)
        before = line[TRANSMITTANCE + k] * keeps
        weight = alpha * before
        v0, v1 = line[BACKWARD_CHANNELS + k], line[BACKWARD_CHANNELS + FIELD + k]
        v2, v3 = line[BACKWARD_CHANNELS + 2 * FIELD + k], line[BACKWARD_CHANNELS + 3 * FIELD + k]
        grad_weight = line[GRAD_WEIGHT + k] + f0 * v0 + f1 * v1 + f2 * v2 + f3 * v3
        grad_alpha = before * grad_weight - keeps * line[BEHIND + k]
        grad_sigma = -alpha * grad_alpha if unclamped <= alpha_max else ZERO
        line[BEHIND + k] += grad_weight * weight
        line[TRANSMITTANCE + k] = before
        line[WEIGHT + k] = weight
        line[GRAD_SIGMA + k] = grad_sigma
        sums[SUM_1 + k] += grad_sigma
        sums[SUM_Y + k] += grad_sigma * dy
        sums[SUM_YY + k] += grad_sigma * dy * dy
        sums[SUM_FEATURES + k] += weight * v0
        sums[SUM_FEATURES + FIELD + k] += weight * v1
        sums[SUM_FEATURES + 2 * FIELD + k] += weight * v2
        sums[SUM_FEATURES + 3 * FIELD + k] += weight * v3
    for channel in range(CHANNEL_GROUP, len(features), CHANNEL_GROUP):
        group, group_sums = line[BACKWARD_CHANNELS + channel * FIELD :], sums[SUM_FEATURES + channel * FIELD :]
        for k in range(count):
            weight = line[WEIGHT + k]
            group_sums[k] += weight * group[k]
            group_sums[FIELD + k] += weight * group[FIELD + k]
            group_sums[2 * FIELD + k] += weight * group[2 * FIELD + k]
            group_sums[3 * FIELD + k] += weight * group[3 * FIELD + k]


@njit(cache=True, nogil=True, fastmath=FASTMATH, error_model="numpy")
def _add_absolute_gradients(line, count, x, dy, conic_xx, conic_xy, conic_yy, sums):
    """Adds |d loss / d mean| of each pixel, from d sigma / d mean = -conic (dx, dy)."""
    for k in range(count):
        dx = line[PIXEL_X + k] - x
        sums[SUM_ABSOLUTE_X + k] += abs(line[GRAD_SIGMA + k] * (conic_xx * dx + conic_xy * dy))
        sums[SUM_ABSOLUTE_Y + k] += abs(line[GRAD_SIGMA + k] * (conic_xy * dx + conic_yy * dy))


@njit(cache=True, nogil=True, fastmath=FASTMATH, error_model="numpy")
def _fill_slot(slot, line, x, conic_xx, conic_xy, conic_yy, opacity, sums, leftmost, rightmost):
    """Gradients of mean, conic and opacity from the sums of d loss / d sigma times 1, dx, dy, dx^2, dx dy, dy^2."""
    sum_1, sum_x, sum_y, sum_xx, sum_xy, sum_yy = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    for column in range(leftmost, rightmost):
        dx = line[PIXEL_X + column] - x
        sum_1 += sums[SUM_1 + column]
        sum_x += sums[SUM_1 + column] * dx
        sum_xx += sums[SUM_1 + column] * dx * dx
        sum_y += sums[SUM_Y + column]
        sum_xy += sums[SUM_Y + column] * dx
        sum_yy += sums[SUM_YY + column]
    slot[MEAN_X] = -(conic_xx * sum_x + conic_xy * sum_y)
    slot[MEAN_Y] = -(conic_xy * sum_x + conic_yy * sum_y)
    slot[CONIC_XX] = HALF * sum_xx
    slot[CONIC_XY] = sum_xy
    slot[CONIC_YY] = HALF * sum_yy
    slot[OPACITY] = -sum_1 / opacity


@njit(cache=True, nogil=True, fastmath=FASTMATH)
def _sum(values, first, count):
    total = ZERO
    for k in range(count):
        total += values[first + k]
    return total


@njit(cache=True, nogil=True)
def _sum_slots(first, last, slots, slot_offsets, grads):
    """Adds up, in a fixed order, the slots of Gaussians first..last-1."""
    for i in range(first, last):
        for column in range(grads.shape[1]):
            grads[i, column] = ZERO
        for slot in range(slot_offsets[i], slot_offsets[i + 1]):
            for column in range(grads.shape[1]):
                grads[i, column] += slots[slot, column]
