"""Trials on the demo after a short bootstrap: its ring tower bends, its engine and teapot do not."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from osn_gs.data.demo import write_demo_scene
from osn_gs.data.osn_layout import load_scene
from osn_gs.evaluation.tracking import TrackingError, scene_tracking_errors
from osn_gs.scene.scene import ObjectGroup
from osn_gs.training.bending_trial import bend
from osn_gs.training.config import ScheduleConfig, TrainConfig
from osn_gs.training.joint_optimizer import JointOptimizer
from osn_gs.training.start import initial_scene

pytestmark = pytest.mark.slow
TOWER = 2
CONFIG = TrainConfig(schedule=ScheduleConfig(bootstrap_steps=300))


@pytest.fixture(scope="module")
def bootstrapped(tmp_path_factory: pytest.TempPathFactory) -> JointOptimizer:
    data = load_scene(write_demo_scene(tmp_path_factory.mktemp("set") / "demo", 24, 80, 60, num_held_out=1))
    scene = initial_scene(data, CONFIG.gaussians)
    optimizer = JointOptimizer(scene, data, CONFIG, torch.default_generator.manual_seed(0))
    for _ in optimizer.run():
        if optimizer.gaussian_step == CONFIG.schedule.bootstrap_steps:
            break
    return optimizer


def tracking_error(optimizer: JointOptimizer, tower: ObjectGroup) -> TrackingError:
    """Of the points on the tower, were it this one."""
    scene = optimizer.scene
    before = scene.objects[TOWER]
    try:
        scene.objects[TOWER] = tower
        return scene_tracking_errors(scene, optimizer.data)["ring tower"]
    finally:
        scene.objects[TOWER] = before


def test_sparse_points_hold_what_bends_in_depth(bootstrapped: JointOptimizer):
    """Without them its way across the image is found as well, but less of its way in depth. These have true depths."""
    errors = {}
    for sparse_depth in (0.0, CONFIG.deformation.sparse_depth):
        deformation = dataclasses.replace(CONFIG.deformation, sparse_depth=sparse_depth)
        config = dataclasses.replace(CONFIG, deformation=deformation)
        errors[sparse_depth] = tracking_error(bootstrapped, bend(bootstrapped.scene, TOWER, bootstrapped.data, config))
    pictures_alone, with_points = errors.values()
    rigid = tracking_error(bootstrapped, bootstrapped.scene.objects[TOWER])
    assert with_points.along < 0.9 * pictures_alone.along
    assert with_points.across < 1.1 * pictures_alone.across
    assert with_points.across < 0.7 * rigid.across
    assert with_points.mean < 0.75 * rigid.mean


def test_the_tower_is_found_to_bend_and_only_the_tower(bootstrapped: JointOptimizer):
    report = copy.deepcopy(bootstrapped).let_objects_bend()
    assert report.deforming == ("ring tower",)
    assert len(report.trials) == 3
