"""Which objects bend, and runs in which some do: chosen by the user or by a trial, stopped and resumed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from osn_gs.config import config_to_yaml, load_config
from osn_gs.data.osn_layout import load_scene
from osn_gs.data.scene_data import SceneData
from osn_gs.errors import ConfigError
from osn_gs.gaussians.density import DensityConfig
from osn_gs.training.checkpoints import latest_checkpoint, load_trained, restore, save_checkpoint
from osn_gs.training.config import DeformationConfig, ScheduleConfig, TrainConfig
from osn_gs.training.deformation import deformation_modes
from osn_gs.training.joint_optimizer import BendingReport, JointOptimizer, StepReport
from osn_gs.training.start import initial_scene

NAMES = ("background", "cactus", "robot")
SHORT = TrainConfig(
    schedule=ScheduleConfig(bootstrap_steps=6, rounds=1, network_steps=5, scene_steps=4, final_steps=3),
    density=DensityConfig(start_step=3, every=4, stop_fraction=1.0, grow_grad2d=1e-5),
    deformation=DeformationConfig(nodes=8, trial_steps=10, default="rigid", objects=("2=deformable",)),
)


@pytest.fixture(scope="module")
def data(demo_folder: Path) -> SceneData:
    return load_scene(demo_folder)


def new_run(data: SceneData, config: TrainConfig = SHORT) -> JointOptimizer:
    generator = torch.default_generator.manual_seed(0)
    return JointOptimizer(initial_scene(data, config.gaussians), data, config, generator)


def with_deformation(**options) -> TrainConfig:
    return dataclasses.replace(SHORT, deformation=dataclasses.replace(SHORT.deformation, **options))


@pytest.fixture(scope="module")
def straight_run(data: SceneData) -> JointOptimizer:
    optimizer = new_run(data)
    list(optimizer.run())
    return optimizer


def state(optimizer: JointOptimizer) -> list[torch.Tensor]:
    return [*optimizer.scene.state_dict().values(), *optimizer.network.state_dict().values()]


def test_objects_are_chosen_by_name_or_number_over_the_default():
    config = DeformationConfig(default="auto", objects=("robot=deformable", "1=rigid"))
    assert deformation_modes(config, NAMES) == ("rigid", "rigid", "deformable")
    assert deformation_modes(DeformationConfig(default="deformable"), NAMES) == ("rigid", "deformable", "deformable")


def test_what_cannot_bend_is_said_in_one_line():
    with pytest.raises(ConfigError, match=r"there is no object 'cat'; the objects are background, cactus, robot\."):
        deformation_modes(DeformationConfig(objects=("cat=rigid",)), NAMES)
    with pytest.raises(ConfigError, match="the background is rigid"):
        deformation_modes(DeformationConfig(objects=("background=deformable",)), NAMES)
    for wrong in ("cactus", "cactus=soft", "=rigid"):
        with pytest.raises(ConfigError, match="expected NAME=MODE"):
            DeformationConfig(objects=(wrong,))


def test_the_choice_is_kept_with_the_run(tmp_path: Path):
    path = tmp_path / "config.yml"
    path.write_text(config_to_yaml(SHORT))
    assert load_config(TrainConfig, path) == SHORT


def test_only_the_object_that_is_said_to_bend_does_and_its_nodes_learn(straight_run: JointOptimizer):
    bending = [group.deformation is not None for group in straight_run.scene.objects]
    assert bending == [False, False, True, False]
    assert straight_run.bending == BendingReport(6, (straight_run.data.object_names[2],), ())
    assert straight_run.scene.objects[2].deformation.magnitude().item() > 0


@pytest.mark.parametrize("stop_after", [3, 8, 10], ids=["in the bootstrap", "after the choice", "in a round"])
def test_a_run_with_a_bending_object_resumes_bit_for_bit(
    data: SceneData, straight_run: JointOptimizer, tmp_path: Path, stop_after: int
):
    stopped = new_run(data)
    for count, _ in enumerate(stopped.run(), start=1):
        if count == stop_after:
            break
    save_checkpoint(tmp_path, stopped)
    torch.manual_seed(12345)
    resumed = new_run(data)
    restore(resumed, latest_checkpoint(tmp_path))
    list(resumed.run())
    for expected, arrived in zip(state(straight_run), state(resumed), strict=True):
        assert torch.equal(expected, arrived)
    assert resumed.bending == straight_run.bending


@torch.no_grad()
def test_a_checkpoint_opens_with_its_deformation(straight_run: JointOptimizer, tmp_path: Path):
    trained = load_trained(save_checkpoint(tmp_path, straight_run))
    for time in (0, 2.4):
        for arrived, expected in zip(trained.scene.objects, straight_run.scene.objects, strict=True):
            assert_close(arrived.at(time), expected.at(time))
    assert (trained.scene.objects[2].at(0)[0] != trained.scene.objects[2].at(2.4)[0]).any()


def test_a_checkpoint_from_before_objects_bent_opens_as_rigid(data: SceneData, tmp_path: Path):
    folder = save_checkpoint(tmp_path, new_run(data))
    values = json.loads((folder / "state.json").read_text())
    del values["bending"], values["knot_spacing"]
    (folder / "state.json").write_text(json.dumps(values))
    restore(new_run(data), folder)
    assert all(group.deformation is None for group in load_trained(folder).scene.objects)


def test_a_trial_that_finds_nothing_leaves_no_trace(data: SceneData):
    """A run in which nothing is found to bend takes the steps of one in which nothing may, bit for bit."""
    never = with_deformation(default="auto", objects=(), least_gain=1.0)
    tried = new_run(data, never)
    reports = list(tried.run())
    rigid = new_run(data, with_deformation(default="rigid", objects=()))  # seeds the generator again
    list(rigid.run())
    for expected, arrived in zip(state(rigid), state(tried), strict=True):
        assert torch.equal(expected, arrived)
    (report,) = [report for report in reports if isinstance(report, BendingReport)]
    assert report.deforming == ()
    assert [trial.object_name for trial in report.trials] == list(data.object_names[1:])
    assert all(trial.gain is not None and not trial.bends for trial in report.trials)


def test_an_object_told_to_bend_that_hardly_shows_is_named(data: SceneData):
    hidden = dataclasses.replace(data, object_ids=data.object_ids.clone().masked_fill(data.object_ids == 2, 0))
    with pytest.raises(ConfigError, match="ring tower: told to bend, but no frame shows 30 pixels"):
        new_run(hidden).let_objects_bend()


def test_sparse_points_of_one_frame_are_its_own(data: SceneData):
    points = data.sparse_points[1]
    (rows,) = torch.nonzero(points.frames == 3, as_tuple=True)
    found = points.in_frame(3, torch.device("cpu"))
    for name in ("pixels", "depths", "errors", "weights"):
        assert_close(getattr(found, name), getattr(points, name)[rows].float())
    assert len(points.in_frame(99, torch.device("cpu")).depths) == 0


def test_the_background_has_no_trial_and_a_rare_object_stays_rigid(data: SceneData):
    rare = data.object_ids.clone()
    rare[4:][rare[4:] == 1] = 0
    optimizer = new_run(dataclasses.replace(data, object_ids=rare), with_deformation(default="auto", objects=()))
    report = optimizer.let_objects_bend()
    assert len(report.trials) == data.num_objects - 1
    assert report.trials[0].gain is None
    assert not report.trials[0].bends


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_bending_object_trains_on_the_gpu_and_comes_back(data: SceneData, tmp_path: Path):
    optimizer = JointOptimizer(
        initial_scene(data, SHORT.gaussians, "cuda"), data, SHORT, torch.default_generator.manual_seed(0)
    )
    reports = list(optimizer.run())
    assert all(report.loss == report.loss for report in reports if isinstance(report, StepReport))
    restored = JointOptimizer(
        initial_scene(data, SHORT.gaussians, "cuda"), data, SHORT, torch.default_generator.manual_seed(1)
    )
    restore(restored, save_checkpoint(tmp_path, optimizer))
    for expected, arrived in zip(state(optimizer), state(restored), strict=True):
        assert arrived.device == expected.device
        assert torch.equal(expected, arrived)
