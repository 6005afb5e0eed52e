"""The same images, object maps and depth maps give the same figures in scikit-image, torchmetrics and plain NumPy."""

import numpy as np
import pytest
import torch
from jaxtyping import Bool, Float, Int
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.functional.classification import multiclass_jaccard_index
from torchmetrics.functional.detection import panoptic_quality as torchmetrics_panoptic_quality
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error
from torchmetrics.functional.segmentation import mean_iou

from osn_gs.evaluation.metrics import depth_ssi_mae, depth_ssi_mse, miou, panoptic_quality, psnr, ssim
from osn_gs.image_similarity import WINDOW_RADIUS, ssim_map

SKIMAGE_SSIM = {
    "gaussian_weights": True,
    "sigma": 1.5,
    "use_sample_covariance": False,
    "data_range": 1.0,
    "channel_axis": -1,
}
NUM_IMAGES, HEIGHT, WIDTH = 4, 45, 63
NUM_IDS = 6  # five true objects with the background, and one more that only predictions have


def natural_maps(*batch: int, seed: int) -> Float[Tensor, "*batch h w"]:
    """Random maps in [0, 1] with the spectrum of photographs, whose amplitudes fall as 1 / frequency."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.fft.fftfreq(HEIGHT, dtype=torch.float64), torch.fft.rfftfreq(WIDTH, dtype=torch.float64)
    frequency = torch.hypot(rows[:, None], columns)
    noise = torch.randn(*batch, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)
    maps = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency.clamp_min(1 / WIDTH), s=(HEIGHT, WIDTH))
    darkest, brightest = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - darkest) / (brightest - darkest)


@pytest.fixture(scope="module")
def images() -> Float[Tensor, "n h w 3"]:
    """The true ones under fine noise, stronger from image to image, and a change of their light."""
    noise = torch.randn(NUM_IMAGES, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    strength = torch.tensor([0.01, 0.03, 0.1, 0.3])[:, None, None, None]
    light = 0.8 + 0.4 * natural_maps(NUM_IMAGES, 1, seed=1).movedim(1, -1)
    return (true_images() * light + strength * noise).clamp(0, 1)


@pytest.fixture(scope="module")
def truths() -> Float[Tensor, "n h w 3"]:
    return true_images()


def true_images() -> Float[Tensor, "n h w 3"]:
    return natural_maps(NUM_IMAGES, 3, seed=2).movedim(1, -1)


@pytest.fixture(scope="module")
def masks() -> Bool[Tensor, "n h w"]:
    """Patches, more than half of each image."""
    return natural_maps(NUM_IMAGES, seed=3) > 0.4


@pytest.fixture(scope="module")
def true_ids() -> Int[Tensor, "n h w"]:
    """Who is nearest at each pixel, of five objects with bumpy depths."""
    return natural_maps(NUM_IMAGES, NUM_IDS - 1, seed=4).argmin(1)


@pytest.fixture(scope="module")
def predicted_ids() -> Int[Tensor, "n h w"]:
    """Good for the first image, worse for each after it, with an object that is not there."""
    depths = torch.cat([natural_maps(NUM_IMAGES, NUM_IDS - 1, seed=4), torch.ones(NUM_IMAGES, 1, HEIGHT, WIDTH)], 1)
    strength = torch.tensor([0.1, 0.5, 1.0, 1.5])[:, None, None, None]
    return (depths + strength * natural_maps(NUM_IMAGES, NUM_IDS, seed=5)).argmin(1)


def channels_first(images: Float[Tensor, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
    return images.movedim(-1, 1)


def test_psnr(images, truths, masks):
    for image, truth, mask, ours, ours_masked in zip(
        images, truths, masks, psnr(images, truths), psnr(images, truths, masks), strict=True
    ):
        assert float(ours) == pytest.approx(peak_signal_noise_ratio(truth.numpy(), image.numpy(), data_range=1.0))
        assert float(ours) == pytest.approx(float(torchmetrics_psnr(image, truth, data_range=1.0)))
        counted, true_counted = image[mask], truth[mask]
        expected = peak_signal_noise_ratio(true_counted.numpy(), counted.numpy(), data_range=1.0)
        assert float(ours_masked) == pytest.approx(expected)
        assert float(ours_masked) == pytest.approx(float(torchmetrics_psnr(counted, true_counted, data_range=1.0)))
        assert abs(expected - float(ours)) > 1e-3


def test_ssim(images, truths):
    for image, truth, ours in zip(images, truths, ssim(images, truths), strict=True):
        expected = structural_similarity(image.numpy(), truth.numpy(), **SKIMAGE_SSIM)
        assert float(ours) == pytest.approx(expected, abs=1e-12)


def test_ssim_at_every_pixel_up_to_the_border(images, truths):
    for image, truth, ours in zip(images, truths, ssim_map(images, truths), strict=True):
        _, expected = structural_similarity(image.numpy(), truth.numpy(), full=True, **SKIMAGE_SSIM)
        np.testing.assert_allclose(ours.numpy(), expected.mean(-1), atol=1e-12)


def test_ssim_where_the_window_is_inside_and_the_mask_is_true(images, truths, masks):
    """torchmetrics reflects the border in another way and counts it, so only its map can be compared, inside."""
    _, maps = structural_similarity_index_measure(
        channels_first(images), channels_first(truths), data_range=1.0, reduction="none", return_full_image=True
    )
    inside = torch.zeros_like(masks)
    inside[:, WINDOW_RADIUS:-WINDOW_RADIUS, WINDOW_RADIUS:-WINDOW_RADIUS] = True
    for k in range(NUM_IMAGES):
        everywhere, counted = maps[k].mean(0)[inside[k]], maps[k].mean(0)[inside[k] & masks[k]]
        assert float(ssim(images[k], truths[k])) == pytest.approx(float(everywhere.mean()), abs=1e-7)
        assert float(ssim(images[k], truths[k], masks[k])) == pytest.approx(float(counted.mean()), abs=1e-7)


def test_miou(predicted_ids, true_ids):
    """torchmetrics also counts an object that only the prediction has (IoU 0); our mean is over the true ones."""
    of_each_id = mean_iou(predicted_ids, true_ids, num_classes=NUM_IDS, per_class=True, input_format="index")
    assert (of_each_id[:, -1] == 0).any(), "some image has the object that is not there"
    for k, ours in enumerate(miou(predicted_ids, true_ids)):
        assert float(ours) == pytest.approx(float(of_each_id[k, true_ids[k].unique()].mean()))


def test_miou_where_the_mask_is_true(predicted_ids, true_ids, masks):
    ignored = NUM_IDS
    for prediction, truth, mask, ours in zip(
        predicted_ids, true_ids, masks, miou(predicted_ids, true_ids, masks), strict=True
    ):
        masked = torch.where(mask, truth, ignored)
        of_each_id = multiclass_jaccard_index(prediction, masked, NUM_IDS, average="none", ignore_index=ignored)
        assert float(ours) == pytest.approx(float(of_each_id[truth[mask].unique()].mean()))


@pytest.mark.parametrize("masked", [False, True])
def test_panoptic_quality(predicted_ids, true_ids, masks, masked):
    """One category whose instances are the objects, background included; masked pixels belong to none (void).

    torchmetrics matches above an IoU of 0.5, we match at 0.5 too: no two segments here overlap by exactly that.
    """
    counted = masks if masked else torch.ones_like(masks)
    renamed = torch.tensor([3, 5, 0, 1, 4, 2])[predicted_ids]  # what an object is called does not matter

    def with_category(ids: Int[Tensor, "n h w"]) -> Int[Tensor, "n h w 2"]:
        void = 1
        return torch.stack([torch.where(counted, 0, void), ids], -1)

    expected = torchmetrics_panoptic_quality(
        with_category(renamed), with_category(true_ids), things={0}, stuffs=set(), allow_unknown_preds_category=True
    )
    assert 0.3 < float(expected) < 0.9, "some segments match, some do not"
    assert float(panoptic_quality(renamed, true_ids, counted)) == pytest.approx(float(expected))
    if not masked:
        assert float(panoptic_quality(renamed, true_ids)) == pytest.approx(float(expected))


@pytest.mark.parametrize("masked", [False, True])
def test_depth_errors_after_alignment(masks, masked):
    truths = 2 + 3 * natural_maps(NUM_IMAGES, seed=6)
    depths = 0.3 * truths + 0.2 * natural_maps(NUM_IMAGES, seed=7) - 5
    ours_mae, ours_mse = (error(depths, truths, masks if masked else None) for error in (depth_ssi_mae, depth_ssi_mse))
    for k in range(NUM_IMAGES):
        counted = masks[k].numpy() if masked else np.ones((HEIGHT, WIDTH), bool)
        depth, truth = depths[k].numpy()[counted], truths[k].numpy()[counted]
        aligned = torch.from_numpy(normalise_depth(depth) * deviation(truth) + middle(truth))
        assert float(ours_mae[k]) == pytest.approx(float(mean_absolute_error(aligned, torch.from_numpy(truth))))
        assert float(ours_mse[k]) == pytest.approx(float(mean_squared_error(aligned, torch.from_numpy(truth))))
        assert float(ours_mae[k]) > 0.01


def middle(values: Float[np.ndarray, "n"]) -> float:
    """The median; the lower of the two middle values of an even count."""
    return np.sort(values)[(len(values) - 1) // 2]


def deviation(values: Float[np.ndarray, "n"]) -> float:
    return np.abs(values - middle(values)).mean()


def normalise_depth(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Ranftl et al. 2022 (MiDaS), eq. 5: without shift and scale."""
    return (values - middle(values)) / deviation(values)
