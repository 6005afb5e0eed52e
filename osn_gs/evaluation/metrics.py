"""The figures of the evaluation protocol (METHOD 4): PSNR, SSIM, aligned depth errors, mIoU, panoptic quality.

Every function takes an optional mask, True where a pixel counts (the co-visibility masks of real sets).
LPIPS, which needs weights, is in `lpips.py`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from osn_gs.image_similarity import masked_mean, psnr, ssim

__all__ = [
    "align_depth",
    "count_overlaps",
    "depth_ssi_mae",
    "depth_ssi_mse",
    "miou",
    "miou_of_overlaps",
    "panoptic_quality",
    "panoptic_quality_of_overlaps",
    "psnr",
    "ssim",
]

PANOPTIC_MATCH_IOU = 0.5  # METHOD 4; Kirillov et al. 2019 ask for more than 0.5, the released code for at least 0.5


def depth_ssi_mae(
    depth: Float[Tensor, "*batch h w"],
    truth: Float[Tensor, "*batch h w"],
    mask: Bool[Tensor, "*batch h w"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Mean absolute error of each depth map after `align_depth`, in the truth's units; NaN where no pixel counts."""
    return masked_mean((align_depth(depth, truth, mask) - truth).abs(), mask)


def depth_ssi_mse(
    depth: Float[Tensor, "*batch h w"],
    truth: Float[Tensor, "*batch h w"],
    mask: Bool[Tensor, "*batch h w"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Mean squared error of each depth map after `align_depth`; NaN where no pixel counts."""
    return masked_mean((align_depth(depth, truth, mask) - truth).square(), mask)


def align_depth(
    depth: Float[Tensor, "*batch h w"],
    truth: Float[Tensor, "*batch h w"],
    mask: Bool[Tensor, "*batch h w"] | None = None,
) -> Float[Tensor, "*batch h w"]:
    """Shift and scale each depth map to the median and mean absolute deviation of its truth (MiDaS, eq. 5).

    What is left does not depend on the unknown scale and shift of `depth`. A constant map becomes the truth's median.
    Median and deviation are over the pixels where `mask` is True.
    """
    depth_median, depth_deviation = _median_and_deviation(depth, mask)
    truth_median, truth_deviation = _median_and_deviation(truth, mask)
    scale = torch.where(depth_deviation > 0, truth_deviation / depth_deviation, 0)
    return scale * (depth - depth_median) + truth_median


def _median_and_deviation(
    depth: Float[Tensor, "*batch h w"], mask: Bool[Tensor, "*batch h w"] | None
) -> tuple[Float[Tensor, "*batch 1 1"], Float[Tensor, "*batch 1 1"]]:
    """Of the two middle values of an even count the lower one is the median, as in the released code."""
    counted = depth if mask is None else depth.masked_fill(~mask, torch.nan)
    median = counted.flatten(-2).nanmedian(dim=-1).values[..., None, None]
    deviation = masked_mean((depth - median).abs(), mask)[..., None, None]
    return median, deviation


def miou(
    object_ids: Int[Tensor, "*batch h w"],
    truth: Int[Tensor, "*batch h w"],
    mask: Bool[Tensor, "*batch h w"] | None = None,
) -> Float[Tensor, "*batch"]:
    """Mean over each image's true objects, background included, of the intersection over union with the same id.

    NaN where no pixel counts.
    """
    return miou_of_overlaps(count_overlaps(object_ids, truth, mask))


def miou_of_overlaps(overlaps: Int[Tensor, "*batch k k"]) -> Float[Tensor, "*batch"]:
    """`miou` of each image whose pixels were counted by `count_overlaps`."""
    same_id = _intersection_over_union(overlaps).diagonal(dim1=-2, dim2=-1)
    num_true_objects = (overlaps.sum(-1) > 0).sum(-1)
    return same_id.sum(-1) / num_true_objects


def panoptic_quality(
    object_ids: Int[Tensor, "*batch h w"],
    truth: Int[Tensor, "*batch h w"],
    mask: Bool[Tensor, "*batch h w"] | None = None,
) -> Float[Tensor, ""]:
    """Panoptic quality over all images together (Kirillov et al. 2019): sum of IoU / (TP + FP / 2 + FN / 2).

    In each image a predicted segment (background included) matches the true one it overlaps best if their
    intersection over union is at least 0.5, whatever their ids. NaN where no pixel counts.
    """
    overlaps = count_overlaps(object_ids, truth, mask)
    return panoptic_quality_of_overlaps(overlaps.reshape(-1, *overlaps.shape[-2:]))


def panoptic_quality_of_overlaps(overlaps: Int[Tensor, "*sets n k k"]) -> Float[Tensor, "*sets"]:
    """`panoptic_quality` of each set of n images whose pixels were counted by `count_overlaps`."""
    iou = _intersection_over_union(overlaps)
    # At exactly 0.5 a segment can match two; the best of both its row and its column is matched once.
    best_of_prediction = torch.zeros_like(iou).scatter_(-2, iou.argmax(-2, keepdim=True), 1)
    best_of_truth = torch.zeros_like(iou).scatter_(-1, iou.argmax(-1, keepdim=True), 1)
    matched = (iou >= PANOPTIC_MATCH_IOU) & (best_of_prediction * best_of_truth > 0)
    num_segments = (overlaps.sum(-1) > 0).sum((-2, -1)) + (overlaps.sum(-2) > 0).sum((-2, -1))  # = 2 TP + FP + FN
    return torch.where(matched, iou, 0).sum((-3, -2, -1)) / (0.5 * num_segments)


def count_overlaps(
    object_ids: Int[Tensor, "*batch h w"],
    truth: Int[Tensor, "*batch h w"],
    mask: Bool[Tensor, "*batch h w"] | None = None,
    num_ids: int | None = None,
) -> Int[Tensor, "*batch k k"]:
    """Pixels that count, by image, true id (rows) and predicted id (columns); ids are below `num_ids`, if given."""
    truth_ids, found_ids = truth.flatten(-2).long(), object_ids.flatten(-2).long()
    if num_ids is None:
        num_ids = int(max(truth_ids.max(), found_ids.max())) + 1
    batch = truth_ids.shape[:-1]
    image_index = torch.arange(batch.numel(), device=truth.device).reshape(*batch, 1)
    cells = (image_index * num_ids + truth_ids) * num_ids + found_ids
    counted = cells.flatten() if mask is None else cells[mask.flatten(-2)]
    return torch.bincount(counted, minlength=batch.numel() * num_ids**2).reshape(*batch, num_ids, num_ids)


def _intersection_over_union(overlaps: Int[Tensor, "*batch k k"]) -> Float[Tensor, "*batch k k"]:
    """Of every true id (rows) with every predicted id (columns); 0 where neither has a pixel."""
    union = overlaps.sum(-1, keepdim=True) + overlaps.sum(-2, keepdim=True) - overlaps
    return overlaps / union.clamp_min(1)
