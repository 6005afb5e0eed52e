"""Compositing of object layers on the CPU, with its gradient (see `osn_gs.rendering.layers`)."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from osn_gs.rendering.layers import DEPTH_INTERVAL_STDS, EMPTY_ALPHA
from osn_gs.rendering.projected_gaussians import ALPHA_MIN
from osn_gs.threads import run_over_range

float32 = np.float32
ZERO, ONE = float32(0), float32(1)
# An argument of the kernels: Numba's cache would keep another file's old values when that file changes.
LIMITS = (float32(EMPTY_ALPHA), float32(ALPHA_MIN), float32(DEPTH_INTERVAL_STDS))
PIXELS_PER_BLOCK = 64  # the layers of a block stay in the first-level cache while M configurations read them


def composite_layers_on_cpu(features, alphas, depths, object_scales, depth_stds):
    """`CompositedLayers` as a tuple; all arguments float32."""
    *outputs, interleaved = _CompositeLayers.apply(features, alphas, depths, object_scales, depth_stds)
    return (*outputs, interleaved if depth_stds is not None else None)


class _CompositeLayers(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, alphas, depths, object_scales, depth_stds):
        num_layers, height, width, num_channels = features.shape
        num_scales, num_pixels = len(object_scales), height * width
        inputs = _flat_layers(features, alphas, depths, object_scales)
        finds_interleaved = depth_stds is not None
        stds = depth_stds if finds_interleaved else depths  # ignored unless asked for
        out_features = np.empty((num_scales, height, width, num_channels), np.float32)
        out_depth, out_alphas = (np.empty((num_scales, height, width), np.float32) for _ in range(2))
        out_weights = np.empty((num_scales, height, width, num_layers), np.float32)
        interleaved = np.zeros((num_scales, height, width), np.bool_)
        run_over_range(
            _composite_forward,
            -(-num_pixels // PIXELS_PER_BLOCK),
            *inputs,
            LIMITS,
            stds.detach().contiguous().numpy().reshape(num_layers, num_pixels),
            finds_interleaved,
            out_features.reshape(num_scales, num_pixels, num_channels),
            out_depth.reshape(num_scales, num_pixels),
            out_alphas.reshape(num_scales, num_pixels),
            out_weights.reshape(num_scales, num_pixels, num_layers),
            interleaved.reshape(num_scales, num_pixels),
        )
        outputs = [torch.from_numpy(array) for array in (out_features, out_depth, out_alphas, out_weights, interleaved)]
        ctx.save_for_backward(features, alphas, depths, object_scales)
        ctx.mark_non_differentiable(outputs[-1])
        return tuple(outputs)

    @staticmethod
    def backward(ctx, grad_features, grad_depth, grad_alphas, grad_weights, _grad_interleaved):
        features, alphas, depths, _ = ctx.saved_tensors
        num_layers, height, width, num_channels = features.shape
        num_scales, num_pixels = len(grad_depth), height * width
        outgoing = [np.zeros(tensor.shape, np.float32) for tensor in (features, alphas, depths)]
        run_over_range(
            _composite_backward,
            -(-num_pixels // PIXELS_PER_BLOCK),
            *_flat_layers(*ctx.saved_tensors),
            LIMITS,
            grad_features.contiguous().numpy().reshape(num_scales, num_pixels, num_channels),
            grad_depth.contiguous().numpy().reshape(num_scales, num_pixels),
            grad_alphas.contiguous().numpy().reshape(num_scales, num_pixels),
            grad_weights.contiguous().numpy().reshape(num_scales, num_pixels, num_layers),
            outgoing[0].reshape(num_layers, num_pixels, num_channels),
            outgoing[1].reshape(num_layers, num_pixels),
            outgoing[2].reshape(num_layers, num_pixels),
        )
        return (*(torch.from_numpy(grad) for grad in outgoing), None, None)


def _flat_layers(features, alphas, depths, object_scales):
    num_layers, height, width, num_channels = features.shape
    features, alphas, depths, object_scales = (
        tensor.detach().contiguous().numpy() for tensor in (features, alphas, depths, object_scales)
    )
    flat = (num_layers, height * width)
    return features.reshape(*flat, num_channels), alphas.reshape(flat), depths.reshape(flat), object_scales


@njit(cache=True, nogil=True)
def _covering_layers(pixel, alphas, covering):
    """Writes the layers with any alpha at the pixel and returns how many. A NaN alpha counts."""
    count = 0
    for layer in range(alphas.shape[0]):
        if alphas[layer, pixel] != ZERO:
            covering[count] = layer
            count += 1
    return count


@njit(cache=True, nogil=True)
def _sort_by_depth(pixel, depths, scales, covering, count, order, keys):
    """Writes the `count` covering layers to `order`, near to far under `scales` [K], ties by layer."""
    for unsorted in range(count):
        layer = covering[unsorted]
        key = scales[layer] * depths[layer, pixel]
        place = unsorted
        while place > 0 and keys[place - 1] > key:
            keys[place] = keys[place - 1]
            order[place] = order[place - 1]
            place -= 1
        keys[place] = key
        order[place] = layer


@njit(cache=True, nogil=True, error_model="numpy")
def _composite_forward(
    first_block, last_block, features, alphas, depths, object_scales, limits, depth_stds, finds_interleaved,
    out_features, out_depth, out_alphas, out_weights, interleaved,
):  # fmt: skip
    """Composites the pixels of blocks first_block..last_block-1 for every vector of object scales.

    Nothing is sorted: the light that reaches a layer is the product of what the layers in front of it let
    through, and comparing the few layers of a block pair by pair is vector code over its pixels.
    """
    num_layers, num_pixels, num_channels = features.shape
    empty_alpha = limits[0]
    block_alphas = np.empty((num_layers, PIXELS_PER_BLOCK), np.float32)
    block_depths = np.empty((num_layers, PIXELS_PER_BLOCK), np.float32)
    placed = np.empty((num_layers, PIXELS_PER_BLOCK), np.float32)
    visibility = np.empty((num_layers, PIXELS_PER_BLOCK), np.float32)
    block_features = np.empty((num_layers, num_channels, PIXELS_PER_BLOCK), np.float32)
    color = np.empty((num_channels, PIXELS_PER_BLOCK), np.float32)
    total = np.empty(PIXELS_PER_BLOCK, np.float32)
    depth = np.empty(PIXELS_PER_BLOCK, np.float32)
    present = np.empty(num_layers, np.int64)
    for block in range(first_block, last_block):
        begin = block * PIXELS_PER_BLOCK
        count = min(PIXELS_PER_BLOCK, num_pixels - begin)
        num_present = _layers_of_block(begin, count, alphas, present)
        for n in range(num_present):
            for p in range(count):
                block_alphas[n, p] = alphas[present[n], begin + p]
                block_depths[n, p] = depths[present[n], begin + p]
            for channel in range(num_channels):
                for p in range(count):
                    block_features[n, channel, p] = features[present[n], begin + p, channel]
        for m in range(object_scales.shape[0]):
            for n in range(num_present):
                for p in range(count):
                    placed[n, p] = object_scales[m, present[n]] * block_depths[n, p]
            color[:] = ZERO
            total[:] = ZERO
            depth[:] = ZERO
            out_weights[m, begin : begin + count] = ZERO
            for n in range(num_present):
                _light_that_reaches(n, num_present, count, placed, block_alphas, visibility[n])
                for channel in range(num_channels):
                    for p in range(count):
                        color[channel, p] += visibility[n, p] * block_features[n, channel, p]
                for p in range(count):
                    weight = visibility[n, p] * block_alphas[n, p]
                    total[p] += weight
                    depth[p] += weight * placed[n, p]
                for p in range(count):
                    out_weights[m, begin + p, present[n]] = visibility[n, p] * block_alphas[n, p]
            for channel in range(num_channels):
                for p in range(count):
                    out_features[m, begin + p, channel] = color[channel, p]
            for p in range(count):
                out_alphas[m, begin + p] = total[p]
                out_depth[m, begin + p] = depth[p] / (empty_alpha if total[p] < empty_alpha else total[p])
            if finds_interleaved:
                for p in range(count):
                    interleaved[m, begin + p] = _any_overlap(
                        begin + p, object_scales[m], depths, depth_stds, out_weights[m, begin + p], limits
                    )


@njit(cache=True, nogil=True)
def _layers_of_block(begin, count, alphas, present):
    """Writes the layers that cover any of `count` pixels from `begin` and returns how many. A NaN alpha covers."""
    num_present = 0
    for layer in range(alphas.shape[0]):
        covers = False
        for p in range(begin, begin + count):
            covers |= alphas[layer, p] != ZERO
        if covers:
            present[num_present] = layer
            num_present += 1
    return num_present


@njit(cache=True, nogil=True, error_model="numpy")
def _light_that_reaches(n, num_present, count, placed, alphas, visibility):
    """Product of 1 - alpha over the layers in front of layer n; of two at the same depth the first is in front."""
    for p in range(count):
        visibility[p] = ONE
    for other in range(n):
        for p in range(count):
            visibility[p] *= ONE - alphas[other, p] if placed[other, p] <= placed[n, p] else ONE
    for other in range(n + 1, num_present):
        for p in range(count):
            visibility[p] *= ONE - alphas[other, p] if placed[other, p] < placed[n, p] else ONE


@njit(cache=True, nogil=True)
def _any_overlap(pixel, scales, depths, depth_stds, weights, limits):
    """Whether the depth intervals of two layers that both matter overlap at the pixel."""
    _, least_weight, stds = limits
    for k in range(len(weights)):
        if weights[k] > least_weight:
            for other in range(k):
                if weights[other] > least_weight:
                    distance = abs(scales[k] * depths[k, pixel] - scales[other] * depths[other, pixel])
                    reach = stds * (scales[k] * depth_stds[k, pixel] + scales[other] * depth_stds[other, pixel])
                    if distance < reach:
                        return True
    return False


@njit(cache=True, nogil=True, error_model="numpy")
def _composite_backward(
    first_block, last_block, features, alphas, depths, object_scales, limits,
    grad_features, grad_depth, grad_alphas, grad_weights, out_features, out_alphas, out_depths,
):  # fmt: skip
    """Adds up, over the vectors of object scales, the gradients at the pixels of blocks first_block..last_block-1.

    Per unit of light that reaches layer k, the loss changes by value_k = <grad, c_k> + a_k g_k + (1 - a_k) value_{k+1},
    so d loss / d a_k = T_k (g_k - value_{k+1}): back to front and without a division.
    """
    num_layers, num_pixels, num_channels = features.shape
    empty_alpha = limits[0]
    covering = np.empty(num_layers, np.int64)
    order = np.empty(num_layers, np.int64)
    keys = np.empty(num_layers, np.float32)
    visibility = np.empty(num_layers, np.float32)
    for pixel in range(first_block * PIXELS_PER_BLOCK, min(last_block * PIXELS_PER_BLOCK, num_pixels)):
        count = _covering_layers(pixel, alphas, covering)
        for m in range(object_scales.shape[0]):
            _sort_by_depth(pixel, depths, object_scales[m], covering, count, order, keys)
            transmittance, total, depth = ONE, ZERO, ZERO
            for place in range(count):
                alpha = alphas[order[place], pixel]
                visibility[place] = transmittance
                total += transmittance * alpha
                depth += transmittance * alpha * keys[place]
                transmittance *= ONE - alpha
            # depth = (sum of weight times key) / total: the gradients of its two parts.
            grad_sum = grad_depth[m, pixel] / max(total, empty_alpha)
            grad_total = grad_alphas[m, pixel]
            if total > empty_alpha:
                grad_total -= grad_sum * depth / total
            value_behind = ZERO
            for place in range(count - 1, -1, -1):
                layer = order[place]
                alpha = alphas[layer, pixel]
                grad_weight = grad_total + grad_sum * keys[place] + grad_weights[m, pixel, layer]
                value = alpha * grad_weight + (ONE - alpha) * value_behind
                for channel in range(num_channels):
                    grad = grad_features[m, pixel, channel]
                    value += grad * features[layer, pixel, channel]
                    out_features[layer, pixel, channel] += visibility[place] * grad
                out_alphas[layer, pixel] += visibility[place] * (grad_weight - value_behind)
                out_depths[layer, pixel] += visibility[place] * alpha * grad_sum * object_scales[m, layer]
                value_behind = value
