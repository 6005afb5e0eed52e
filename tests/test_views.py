"""Scores over configurations: averaged over views first, and best means best."""

import torch

from osn_gs.evaluation.views import ViewScores, spread, summarize


def test_a_spread_is_over_configurations_of_their_means_over_views():
    scores = torch.tensor([[10.0, 20.0], [30.0, 10.0], [0.0, 0.0]])
    high = spread(scores, higher_is_better=True)
    assert (high.best, high.median, high.worst) == (20.0, 15.0, 0.0)
    assert abs(high.mean - 35 / 3) < 1e-5
    low = spread(scores, higher_is_better=False)
    assert (low.best, low.worst) == (0.0, 20.0)


def test_scores_a_set_has_no_truth_for_are_left_out():
    psnr = torch.tensor([[20.0], [25.0]])
    scores = ViewScores(psnr=psnr, ssim=psnr / 100, depth_ssi_mae=None, miou=None)
    assert set(summarize(scores)) == {"psnr", "ssim"}
    assert summarize(scores.of_configurations(slice(1, None)))["psnr"].worst == 25.0
