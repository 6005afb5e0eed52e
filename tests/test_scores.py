"""How one score is spread over configurations, and which of them each row of a report is of."""

import dataclasses

import pytest
import torch
from ball_scene import ball_scene, film

from osn_gs.evaluation.report import Candidates, report_views
from osn_gs.evaluation.scores import object_score, released_selection, scale_mse, score_kind, spread


def test_a_spread_names_its_ends_by_what_is_good():
    scores = torch.tensor([15.0, 20.0, 0.0])
    high, low = spread(scores, higher_is_better=True), spread(scores, higher_is_better=False)
    assert (high.best, high.median, high.worst) == (20, 15, 0)
    assert high.mean == low.mean == pytest.approx(35 / 3)
    assert (low.best, low.worst) == (0, 20)


def test_the_median_of_an_even_count_lies_in_the_middle():
    assert spread(torch.tensor([1.0, 2.0, 4.0, 9.0]), higher_is_better=True).median == 3


def test_the_score_of_an_object_is_of_its_kind():
    kind = score_kind(object_score("psnr", "toy of wood"))
    assert kind.title == "PSNR (dB) of toy of wood"
    assert kind.higher_is_better


def test_the_released_protocol_takes_five_nearest_and_five_of_the_next_ten():
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    samples = torch.stack([torch.ones(40), 1 + 0.01 * order], dim=1)
    chosen = released_selection(samples, torch.tensor([1.0, 1.0]), torch.Generator().manual_seed(0))
    ranks = sorted(order[chosen].tolist())
    assert ranks[:5] == [0, 1, 2, 3, 4]
    assert len(set(ranks[5:])) == 5
    assert all(5 <= rank < 15 for rank in ranks[5:])
    assert released_selection(samples[:14], samples[0], torch.Generator()) is None, "too few to choose from"


def test_the_background_does_not_count_in_the_scale_error():
    errors = scale_mse(torch.tensor([[1.0, 1.5, 0.5], [1.0, 1.0, 1.0]]), torch.tensor([1.0, 1.0, 1.0]))
    assert errors.tolist() == [0.25, 0]


def test_a_score_that_is_no_number_is_none():
    scene = ball_scene()
    view = film(scene)
    away = torch.eye(4)
    away[2, 3] = -1000.0  # all is behind the camera: black, as the truth, so there is no error at all
    view = dataclasses.replace(view, cam_from_background=away, image=torch.zeros_like(view.image))
    psnr = report_views(scene, (view,), Candidates(torch.tensor([[1.0, 1.0]])))["all"]["psnr"]
    assert psnr == {"best": None, "mean": None, "median": None, "worst": None}
    assert score_kind("psnr").write(None) == "-"


def test_every_row_of_a_report_is_of_its_own_configurations():
    scene = ball_scene()
    right, wrong = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.6])
    candidates = Candidates(
        samples=torch.stack([wrong, right, wrong]),
        named={"contact": right, "middle": wrong},
        random=torch.stack([wrong, wrong]),
        released=torch.tensor([0, 2]),
    )
    psnr = report_views(scene, (film(scene),), candidates)["all"]["psnr"]
    assert psnr["best"] == psnr["contact"] > 54
    assert psnr["worst"] == psnr["median"] == psnr["middle"] == psnr["released"] == psnr["random_best"] < 30
    assert psnr["mean"] == pytest.approx((psnr["best"] + 2 * psnr["worst"]) / 3, rel=1e-5)
    assert psnr["random_mean"] == pytest.approx(psnr["random_worst"])
