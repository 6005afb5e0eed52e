"""`tools/evaluate.py` as a user calls it: the figures it writes, the masks it makes, and what it refuses."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console
from short_run import write_short_run

from osn_gs.image_similarity import psnr
from osn_gs.run.command import EXIT_BAD_INPUT, run_tool
from osn_gs.run.evaluate import evaluate_from_arguments, print_evaluation
from osn_gs.run.open_run import open_run
from osn_gs.run.sample import sample_from_arguments
from osn_gs.scene.render import render_view


def evaluate(*arguments: object) -> int:
    return run_tool(evaluate_from_arguments, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def short_run(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one short round and sixteen samples."""
    root = write_short_run(tmp_path_factory.mktemp("evaluate") / "run", demo_folder, 40, 100)
    assert run_tool(sample_from_arguments, [str(root), "--num", "16"]) == 0
    return root


@pytest.fixture(scope="module")
def evaluation(short_run: Path) -> dict:
    assert evaluate(short_run, "--num-configurations", 16, "--baselines") == 0
    return json.loads((short_run / "stats" / "eval_test.json").read_text())


def test_every_score_has_every_statistic(evaluation: dict):
    names = {"psnr", "ssim", "depth_ssi_mae", "depth_ssi_mse", "panoptic_quality", "miou"}
    over_samples = {"best", "mean", "median", "worst"}
    statistics = over_samples | {"contact", "released", "true_scales", "middle"} | {f"random_{s}" for s in over_samples}
    assert set(evaluation["scores"]) == {"all", "co_visible"}
    for scores in evaluation["scores"].values():
        assert names < set(scores)
        assert {name.partition(" of ")[2] for name in scores} > {"background", "teapot"}
        assert all(set(found) == statistics for found in scores.values())
    assert set(evaluation["object_scales"]["scale_mse"]) == statistics
    assert evaluation["object_scales"]["scale_mse"]["true_scales"] == pytest.approx(0, abs=1e-12)


def test_objects_that_bend_are_told_apart(evaluation: dict):
    console = Console(record=True, width=120, file=io.StringIO())
    print_evaluation({**evaluation, "bends": ["ring tower"]}, console)
    rigid, _, bending = console.export_text().partition("Objects that bend, all pixels")
    bending = bending.partition("co-visible")[0]
    assert "teapot" in rigid
    assert "ring tower" not in rigid
    assert "ring tower" in bending


def test_a_figure_is_that_of_the_picture(evaluation: dict, short_run: Path):
    run = open_run(short_run, Console(quiet=True))
    contact = torch.tensor(run.configurations[0].object_scales)
    errors = []
    for view in run.data.held_out["test"]:
        with torch.no_grad():
            picture = render_view(
                run.trained.scene, contact, view.time_step, view.cam_from_background, view.intrinsics, (64, 48)
            )
        errors.append(float(psnr(picture.rgb.clamp(0, 1), view.image / 255)))
    assert evaluation["scores"]["all"]["psnr"]["contact"] == pytest.approx(np.mean(errors), abs=1e-3)


def test_scales_and_poses_are_compared_with_the_truth(evaluation: dict):
    truth = evaluation["truth"]
    assert 0 <= truth["true_depth_set"]["iou"] <= 1
    assert 0 <= truth["true_depth_set"]["calibration_error"] <= 1
    assert 0 < max(truth["nearest_sample_error"]) < 0.5
    assert [errors["object"] for errors in evaluation["poses"]] == ["background", "engine", "ring tower", "teapot"]
    assert all(errors["rotation_max"] < 0.01 for errors in evaluation["poses"]), "the demo's poses are exact"
    assert all(errors["centre_max"] < 0.01 for errors in evaluation["poses"])


def test_masks_of_co_visible_pixels_are_kept_and_read_again(evaluation: dict, short_run: Path):
    paths = sorted((short_run / "covis_mask" / "test").iterdir())
    assert [path.name[:4] for path in paths] == ["0000", "0001", "0002"]
    shares = [(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 0).mean() for path in paths]
    assert evaluation["co_visible_share"] == pytest.approx(np.mean(shares), abs=1e-6)
    assert 0.3 < np.mean(shares) < 1
    cv2.imwrite(str(paths[0]), np.zeros((48, 64), np.uint8))
    assert evaluate(short_run, "--num-configurations", 1, "--out", short_run / "again.json") == 0
    again = json.loads((short_run / "again.json").read_text())
    assert again["co_visible_share"] == pytest.approx(np.mean([0, *shares[1:]]), abs=1e-6)


def test_training_views_have_no_masks(short_run: Path, tmp_path: Path):
    out = tmp_path / "train.json"
    assert evaluate(short_run, "--split", "train", "--num-configurations", 1, "--out", out) == 0
    found = json.loads(out.read_text())
    assert found["num_views"] == 8
    assert set(found["scores"]) == {"all"}
    assert found["scores"]["all"]["psnr"]["mean"] > 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--num-configurations", "900"], "draw more with python tools/sample.py"),
        (["--num-configurations", "0"], "at least 1"),
        (["--num-configurations", "16", "--lpips-weights", "nowhere.pth"], "nowhere.pth"),
    ],
)
def test_what_cannot_be_scored_is_told_in_one_line(
    short_run: Path, tmp_path: Path, capsys, options: list[str], said: str
):
    out = tmp_path / "out.json"
    assert evaluate(short_run, *options, "--out", out) == EXIT_BAD_INPUT
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert not out.exists()


def test_a_run_whose_video_has_gone_cannot_be_scored(short_run: Path, tmp_path: Path, capsys):
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    config = (run / "config.yml").read_text()
    data = next(line for line in config.splitlines() if line.startswith("data:"))
    (run / "config.yml").write_text(config.replace(data, f"data: {tmp_path / 'gone'}"))
    assert evaluate(run) == EXIT_BAD_INPUT
    assert "not at hand" in capsys.readouterr().err
