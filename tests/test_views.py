"""Held-out views: the configuration that was filmed scores best, through the camera that filmed it."""

import dataclasses
import weakref

import pytest
import torch
from ball_scene import ball_scene, film
from torch.testing import assert_close

from osn_gs.data.scene_data import HeldOutView
from osn_gs.evaluation import views as evaluation
from osn_gs.evaluation.views import ViewScores, score_views
from osn_gs.scene.render import render_view
from osn_gs.scene.scene import Scene

SAMPLES = torch.tensor([[1.0, 0.6], [1.0, 1.0], [1.0, 1.4]])  # the second one is the one that was filmed
NAMES = ("background", "ball")
ONLY_BYTES_DIFFER = 54  # dB: colours rounded to bytes are off by at most half of 1/255


@pytest.fixture
def scene() -> Scene:
    return ball_scene()


def all_pixels(scene: Scene, *views: HeldOutView) -> ViewScores:
    return score_views(scene, views, SAMPLES)["all"]


def assert_the_filmed_one_is_best(scores: ViewScores) -> None:
    by_name = scores.by_configuration(NAMES)
    for name in ("psnr", "psnr of background", "psnr of ball"):
        assert by_name[name][1] > ONLY_BYTES_DIFFER
        assert (by_name[name][[0, 2]] < 30).all()
    for name in ("depth_ssi_mae", "depth_ssi_mse"):
        assert float(by_name[name][1]) == pytest.approx(0, abs=1e-5)
        assert (by_name[name][[0, 2]] > 1e-4).all()
    for name in ("miou", "panoptic_quality"):
        assert float(by_name[name][1]) == pytest.approx(1)
        assert (by_name[name][[0, 2]] < 0.95).all()
    assert by_name["ssim"].argmax() == 1


def test_the_configuration_that_was_filmed_scores_best(scene: Scene):
    scores = all_pixels(scene, film(scene), film(scene))
    assert scores.pictures["psnr"].shape == (3, 2)
    assert_the_filmed_one_is_best(scores)
    assert_close(scores.by_configuration(NAMES)["psnr"], scores.pictures["psnr"].mean(1))


def test_a_view_is_scored_through_its_own_camera_and_at_its_own_size(scene: Scene):
    other_camera = torch.tensor([[70.0, 0, 30.0], [0, 60.0, 22.0], [0, 0, 1]])
    assert_the_filmed_one_is_best(all_pixels(scene, film(scene, other_camera, (56, 44))))


def test_pixels_without_known_depth_do_not_count(scene: Scene):
    view = film(scene)
    holes = view.depth.clone()
    holes[0], holes[1], holes[2], holes[3] = torch.inf, torch.nan, 0.0, -1.0
    assert_the_filmed_one_is_best(all_pixels(scene, dataclasses.replace(view, depth=holes)))


def test_truth_is_averaged_over_the_views_that_have_it(scene: Scene):
    view = film(scene)
    bare = dataclasses.replace(view, depth=None, object_ids=None)
    unknown = dataclasses.replace(view, depth=torch.zeros_like(view.depth))
    scores = all_pixels(scene, bare, view, unknown)
    assert scores.pictures["depth_ssi_mae"].isnan().sum(1).tolist() == [2, 2, 2]
    assert_the_filmed_one_is_best(scores)
    assert set(all_pixels(scene, bare).by_configuration(NAMES)) == {"psnr", "ssim", "uncovered"}


def test_the_psnr_of_an_object_is_over_its_own_pixels_in_all_views(scene: Scene):
    view = film(scene)
    spoiled = view.image.clone()
    spoiled[view.object_ids == 1] = 255 - spoiled[view.object_ids == 1]
    by_name = all_pixels(scene, view, dataclasses.replace(view, image=spoiled)).by_configuration(NAMES)
    error = ((view.image.float() - spoiled.float()) / 255).square()[view.object_ids == 1].mean()
    assert float(by_name["psnr of ball"][1]) == pytest.approx(-10 * float((error / 2).log10()), abs=0.05)
    assert by_name["psnr of background"][1] > ONLY_BYTES_DIFFER


def test_only_co_visible_pixels_count_where_asked(scene: Scene):
    view = film(scene)
    spoiled = view.image.clone()
    spoiled[:8] = 255 - spoiled[:8]
    mask = torch.ones(view.image.shape[:2], dtype=torch.bool)
    mask[: 8 + 6] = False  # SSIM's window reaches five pixels
    scored = score_views(scene, (dataclasses.replace(view, image=spoiled, co_visible=mask), view), SAMPLES)
    assert scored["all"].pictures["psnr"].shape == (3, 2)
    assert scored["all"].pictures["psnr"][1, 0] < 20
    assert scored["co_visible"].pictures["psnr"].shape == (3, 1), "views without a mask are not among them"
    by_name = scored["co_visible"].by_configuration(NAMES)
    assert by_name["psnr"][1] > ONLY_BYTES_DIFFER
    assert by_name["ssim"][1] > 0.999
    assert int(scored["co_visible"].overlaps[1].sum()) == int(mask.sum())


def test_a_learned_metric_gets_the_picture_the_truth_and_the_mask(scene: Scene):
    class Difference:
        name = "ST-LPIPS"

        def __call__(self, image, truth, mask=None):
            difference = (image - truth).abs().mean(-1)
            return difference.mean() if mask is None else difference[mask].mean()

    scored = score_views(scene, (film(scene),), SAMPLES, perceptual=[Difference()])["all"].by_configuration(NAMES)
    assert scored["st_lpips"].argmin() == 1


def test_pictures_are_let_go_one_by_one(scene: Scene, monkeypatch: pytest.MonkeyPatch):
    pictures: list[weakref.ref] = []

    def counted(*arguments):
        assert sum(picture() is not None for picture in pictures) <= 1
        picture = render_view(*arguments)
        pictures.append(weakref.ref(picture))
        return picture

    monkeypatch.setattr(evaluation, "render_view", counted)
    score_views(scene, (film(scene),), SAMPLES.repeat(3, 1))
    assert len(pictures) == 9


def test_progress_is_told_after_each_view(scene: Scene):
    calls = []
    score_views(scene, (film(scene),) * 2, SAMPLES, on_view=lambda: calls.append(None))
    assert len(calls) == 2
