"""Held-out views: the configuration that was filmed scores best, through the camera that filmed it."""

import dataclasses
import weakref

import pytest
import torch
from ball_scene import ball_scene, film
from torch.testing import assert_close

from osn_gs.evaluation import views as evaluation
from osn_gs.evaluation.views import ViewScores, score_views, spread, summarize
from osn_gs.scene.render import render_view
from osn_gs.scene.scene import Scene

SAMPLES = torch.tensor([[1.0, 0.6], [1.0, 1.0], [1.0, 1.4]])  # the second one is the one that was filmed
ONLY_BYTES_DIFFER = 54  # dB: colours rounded to bytes are off by at most half of 1/255


@pytest.fixture
def scene() -> Scene:
    return ball_scene()


def assert_the_filmed_one_is_best(scores: ViewScores) -> None:
    assert (scores.psnr[1] > ONLY_BYTES_DIFFER).all()
    assert_close(scores.depth_ssi_mae[1], torch.zeros_like(scores.depth_ssi_mae[1]), atol=1e-5, rtol=0)
    assert_close(scores.miou[1], torch.ones_like(scores.miou[1]))
    for others in (0, 2):
        assert (scores.psnr[others] < 25).all()
        assert (scores.ssim[others] < scores.ssim[1]).all()
        assert (scores.depth_ssi_mae[others] > 0.01).all()
        assert (scores.miou[others] < 0.95).all()


def test_the_configuration_that_was_filmed_scores_best(scene: Scene):
    scores = score_views(scene, (film(scene), film(scene)), SAMPLES)
    assert scores.psnr.shape == (3, 2)
    assert_the_filmed_one_is_best(scores)
    assert summarize(scores)["psnr"].best == pytest.approx(float(scores.psnr[1].mean()))


def test_a_view_is_scored_through_its_own_camera_and_at_its_own_size(scene: Scene):
    other_camera = torch.tensor([[70.0, 0, 30.0], [0, 60.0, 22.0], [0, 0, 1]])
    assert_the_filmed_one_is_best(score_views(scene, (film(scene, other_camera, (56, 44)),), SAMPLES))


def test_pixels_without_known_depth_do_not_count(scene: Scene):
    view = film(scene)
    holes = view.depth.clone()
    holes[0], holes[1], holes[2], holes[3] = torch.inf, torch.nan, 0.0, -1.0
    assert_the_filmed_one_is_best(score_views(scene, (dataclasses.replace(view, depth=holes),), SAMPLES))


def test_truth_is_averaged_over_the_views_that_have_it(scene: Scene):
    view = film(scene)
    bare = dataclasses.replace(view, depth=None, object_ids=None)
    unknown = dataclasses.replace(view, depth=torch.zeros_like(view.depth))
    scores = score_views(scene, (bare, view, unknown), SAMPLES)
    assert scores.psnr.shape == (3, 3)
    assert scores.depth_ssi_mae.shape == (3, 1)
    assert scores.miou.shape == (3, 2)
    assert_the_filmed_one_is_best(scores)
    assert score_views(scene, (bare,), SAMPLES).depth_ssi_mae is None


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


def test_a_spread_is_over_configurations_of_their_means_over_views():
    scores = torch.tensor([[10.0, 20.0], [30.0, 10.0], [0.0, 0.0]])
    high = spread(scores, higher_is_better=True)
    assert (high.best, high.median, high.worst) == (20.0, 15.0, 0.0)
    assert abs(high.mean - 35 / 3) < 1e-5
    low = spread(scores, higher_is_better=False)
    assert (low.best, low.worst) == (0.0, 20.0)


def test_the_median_of_an_even_count_lies_in_the_middle():
    assert spread(torch.tensor([[1.0], [2.0], [4.0], [9.0]]), higher_is_better=True).median == 3.0


def test_scores_a_set_has_no_truth_for_are_left_out():
    psnr = torch.tensor([[20.0], [25.0]])
    scores = ViewScores(psnr=psnr, ssim=psnr / 100, depth_ssi_mae=None, miou=None)
    assert set(summarize(scores)) == {"psnr", "ssim"}
    assert summarize(scores.of_configurations(slice(1, None)))["psnr"].worst == 25.0
