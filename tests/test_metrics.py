"""The figures of the evaluation against closed forms; test_metrics_against_others.py has other implementations."""

import math

import pytest
import torch

from osn_gs.errors import OsnGsError
from osn_gs.evaluation.metrics import align_depth, depth_ssi_mae, depth_ssi_mse, miou, panoptic_quality, psnr, ssim
from osn_gs.image_similarity import gaussian_blur, ssim_map


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def image_pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images and noisy copies of them, so that SSIM takes values all over its range."""
    truth = gaussian_blur(uniform(*shape))
    noise = 0.5 * uniform(*shape, seed=1) * torch.linspace(0, 1, shape[-2], dtype=torch.float64)[:, None]
    return (truth + noise).clamp(0, 1), truth


def test_float32_is_accurate_enough_for_a_loss():
    image, truth = image_pair(40, 52, 3)
    torch.testing.assert_close(
        ssim_map(image.float(), truth.float()).double(), ssim_map(image, truth), atol=5e-5, rtol=0
    )


def test_ssim_gradients_are_those_of_the_function():
    image, truth = image_pair(11, 12, 3)
    assert torch.autograd.gradcheck(ssim_map, (image.requires_grad_(), truth.requires_grad_()), atol=1e-6)


def test_equal_images_are_as_alike_as_can_be():
    image, _ = image_pair(16, 16, 3)
    assert float(psnr(image, image)) == math.inf
    assert float(ssim(image, image)) == pytest.approx(1)


def test_pixels_outside_the_mask_do_not_count():
    image, truth = image_pair(2, 30, 40, 3)
    mask = torch.zeros(2, 30, 40, dtype=torch.bool)
    mask[:, 5:20, 5:25] = True
    spoiled = image.clone()
    spoiled[:, 26:] = 1  # farther than a window from any pixel that counts
    assert not torch.allclose(psnr(image, truth), psnr(spoiled, truth), atol=1e-3)
    torch.testing.assert_close(psnr(image, truth, mask), psnr(spoiled, truth, mask))
    torch.testing.assert_close(ssim(image, truth, mask), ssim(spoiled, truth, mask))
    expected = -10 * (image[0, 5:20, 5:25] - truth[0, 5:20, 5:25]).square().mean().log10()
    torch.testing.assert_close(psnr(image, truth, mask)[0], expected)


def test_no_pixel_that_counts_is_no_number():
    image, truth = image_pair(12, 12, 3)
    nothing = torch.zeros(12, 12, dtype=torch.bool)
    assert psnr(image, truth, nothing).isnan()
    assert ssim(image, truth, nothing).isnan()
    assert depth_ssi_mae(image[..., 0], truth[..., 0], nothing).isnan()
    assert miou(nothing.long(), nothing.long(), nothing).isnan()
    assert panoptic_quality(nothing.long(), nothing.long(), nothing).isnan()


def test_an_image_smaller_than_the_window_is_refused():
    with pytest.raises(OsnGsError, match="11x11 pixels, got 10x40"):
        ssim(torch.zeros(10, 40, 3), torch.zeros(10, 40, 3))


def test_depth_errors_do_not_see_scale_and_shift():
    truth = 1 + 4 * uniform(3, 20, 30)
    assert float(depth_ssi_mae(0.2 * truth + 7, truth).max()) < 1e-12
    estimate = truth + 0.3 * uniform(3, 20, 30, seed=1)
    for error in (depth_ssi_mae, depth_ssi_mse):
        torch.testing.assert_close(error(3.7 * estimate - 2, truth), error(estimate, truth))
        assert error(estimate, truth).min() > 1e-4


def test_aligned_depth_has_the_truths_median_and_deviation():
    truth, estimate = 1 + 4 * uniform(21, 31), 9 * uniform(21, 31, seed=1)
    aligned = align_depth(estimate, truth)
    assert float(aligned.median()) == pytest.approx(float(truth.median()))
    deviation = (aligned - aligned.median()).abs().mean()
    assert float(deviation) == pytest.approx(float((truth - truth.median()).abs().mean()))


def test_depth_error_in_closed_form():
    # Median 2 and deviation 4/3 become median 3 and deviation 2/3: (0, 2, 4, ...) -> (2, 3, 4).
    truth = torch.tensor([[2.0, 3.0, 4.0]])
    assert align_depth(torch.tensor([[0.0, 2.0, 4.0]]), truth).tolist() == [[2, 3, 4]]
    flat = torch.full((1, 3), 5.0)  # a constant map tells nothing: the truth's median everywhere
    assert float(depth_ssi_mae(flat, truth)) == pytest.approx(2 / 3)
    assert float(depth_ssi_mse(flat, truth)) == pytest.approx(2 / 3)


def test_depth_outside_the_mask_may_be_anything():
    truth, estimate = 1 + uniform(2, 20, 30), 1 + uniform(2, 20, 30, seed=1)
    mask = torch.ones(2, 20, 30, dtype=torch.bool)
    mask[:, :4] = False
    cropped = depth_ssi_mae(estimate[:, 4:], truth[:, 4:])
    truth[:, :4], estimate[:, :4] = torch.inf, torch.nan
    torch.testing.assert_close(depth_ssi_mae(estimate, truth, mask), cropped)


def test_segmentation_figures_of_perfect_maps_are_one():
    ids = torch.randint(0, 5, (3, 20, 30), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert miou(ids, ids).tolist() == [1, 1, 1]
    assert float(panoptic_quality(ids, ids)) == 1


def test_segmentation_figures_by_hand():
    truth = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
    found = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]])  # IoU 4/5 and 3/4
    assert float(miou(found, truth)) == pytest.approx((4 / 5 + 3 / 4) / 2)
    assert float(panoptic_quality(found, truth)) == pytest.approx((4 / 5 + 3 / 4) / 2)
    split = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2]])  # object 2 is a false positive
    assert float(miou(split, truth)) == pytest.approx((1 + 3 / 4) / 2)
    assert float(panoptic_quality(split, truth)) == pytest.approx((1 + 3 / 4) / (2 + 0.5))
    lost = torch.zeros_like(truth)  # the background at IoU 1/2 just matches, object 1 is a false negative
    assert float(miou(lost, truth)) == pytest.approx(0.25)
    assert float(panoptic_quality(lost, truth)) == pytest.approx(0.5 / 1.5)


def test_swapped_ids_cost_miou_but_not_panoptic_quality():
    truth = torch.randint(0, 3, (2, 12, 15), generator=torch.Generator().manual_seed(0))
    swapped = torch.tensor([0, 2, 1])[truth]
    assert float(panoptic_quality(swapped, truth)) == 1
    torch.testing.assert_close(miou(swapped, truth), torch.full((2,), 1 / 3))


def test_a_segment_is_matched_once_even_at_a_tie():
    truth = torch.tensor([[1, 1, 2, 2]])
    merged = torch.tensor([[1, 1, 1, 1]])  # IoU 1/2 with both
    assert float(panoptic_quality(merged, truth)) == pytest.approx(0.5 / 1.5)


def test_panoptic_quality_counts_segments_of_all_images_together():
    truth = torch.tensor([[[0, 0, 1, 1]], [[0, 0, 0, 0]]])
    found = torch.tensor([[[0, 0, 0, 0]], [[0, 0, 0, 0]]])  # 1 FN in the first image; one match at 1/2, one at 1
    assert float(panoptic_quality(found, truth)) == pytest.approx(1.5 / 2.5)


def test_ids_outside_the_mask_do_not_count():
    truth = torch.tensor([[0, 0, 1, 1, 2]])
    found = torch.tensor([[0, 0, 1, 1, 0]])
    mask = torch.tensor([[True, True, True, True, False]])
    assert float(miou(found, truth, mask)) == 1
    assert float(panoptic_quality(found, truth, mask)) == 1
