"""The joint optimizer: what its losses ask for, the order of its phases, and runs that can be stopped and resumed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from osn_gs.data.demo import write_demo_scene
from osn_gs.data.osn_layout import load_scene
from osn_gs.data.scene_data import SceneData
from osn_gs.errors import CheckpointError, DatasetError, OsnGsError
from osn_gs.gaussians.density import DensityConfig
from osn_gs.scene.render import render_layers
from osn_gs.training import losses
from osn_gs.training.checkpoints import (
    checkpoint_folders,
    latest_checkpoint,
    load_trained,
    restore,
    save_checkpoint,
)
from osn_gs.training.config import DeformationConfig, ObjectScalesConfig, ScheduleConfig, TrainConfig
from osn_gs.training.joint_optimizer import BendingReport, JointOptimizer, RoundReport, StepReport, phases
from osn_gs.training.start import initial_scene

SHORT = TrainConfig(
    schedule=ScheduleConfig(bootstrap_steps=12, rounds=1, network_steps=5, scene_steps=4, final_steps=3),
    density=DensityConfig(start_step=3, every=4, stop_fraction=1.0, grow_grad2d=1e-5),
    deformation=DeformationConfig(default="rigid"),  # what bends is test_bending.py's
)


@pytest.fixture(scope="module")
def data(demo_folder: Path) -> SceneData:
    return load_scene(demo_folder)


def new_run(data: SceneData, config: TrainConfig = SHORT) -> JointOptimizer:
    generator = torch.default_generator.manual_seed(0)
    return JointOptimizer(initial_scene(data, config.gaussians), data, config, generator)


@pytest.fixture(scope="module")
def straight_run(data: SceneData) -> JointOptimizer:
    optimizer = new_run(data)
    list(optimizer.run())
    return optimizer


def parameters(optimizer: JointOptimizer) -> list[torch.Tensor]:
    gaussians = [p.detach() for group in optimizer.scene.objects for p in group.gaussians.params.values()]
    return gaussians + [p.detach() for p in optimizer.network.parameters()]


def test_the_schedule_is_the_papers_with_the_network_first():
    plan = phases(SHORT)
    assert [(phase.kind, phase.steps) for phase in plan] == [
        ("bootstrap", 12),
        ("network", 5),
        ("scene", 4),
        ("scene", 3),
        ("network", 5),
    ]
    moved = sum(phase.steps for phase in plan if phase.kind != "network")
    assert moved == SHORT.schedule.gaussian_steps


@pytest.mark.parametrize("label_rule", ["relative", "paper"])
@pytest.mark.parametrize("transparent", [False, True], ids=["sparse points cover", "nothing covers"])
def test_without_a_bootstrap_the_network_begins_on_the_start(data: SceneData, label_rule: str, transparent: bool):
    """Even layers that say nothing of depth order, which make all vectors alike, can be labelled and drawn from."""
    config = dataclasses.replace(
        SHORT,
        schedule=dataclasses.replace(SHORT.schedule, bootstrap_steps=0),
        object_scales=ObjectScalesConfig(label_rule=label_rule, accuracy=(0.98, 0.99), top_k=(0.02, 0.01)),
        deformation=DeformationConfig(),
    )
    optimizer = new_run(data, config)
    if transparent:
        with torch.no_grad():
            for group in optimizer.scene.objects:
                group.gaussians.params["opacities"].fill_(-7.0)
    choice, first, *_ = reports = list(optimizer.run())
    assert isinstance(choice, BendingReport)
    assert choice.trials == (), "there is nothing yet to try bending on"
    assert isinstance(first, RoundReport)
    assert first.gaussian_step == 0
    steps = [report for report in reports if isinstance(report, StepReport)]
    assert len(steps) == config.schedule.gaussian_steps == 7
    assert all(report.kind == "scene" for report in steps)


def test_a_run_fits_the_images_and_learns_the_set(data: SceneData):
    config = dataclasses.replace(
        SHORT,
        schedule=ScheduleConfig(bootstrap_steps=150, rounds=1, network_steps=150, scene_steps=20, final_steps=10),
        density=DensityConfig(),
    )
    reports = list(new_run(data, config).run())
    steps = [report for report in reports if isinstance(report, StepReport)]
    rounds = [report for report in reports if isinstance(report, RoundReport)]
    assert len(steps) == 180
    assert len(rounds) == 2
    psnr = torch.tensor([step.psnr for step in steps])
    assert psnr[-20:].mean() > psnr[:20].mean() + 2.5
    assert rounds[-1].learned_set.iou > 0.5


@pytest.mark.parametrize("stop_after", [7, 15], ids=["in the bootstrap", "in a round"])
def test_a_resumed_run_takes_the_same_steps_bit_for_bit(
    data: SceneData, straight_run: JointOptimizer, tmp_path: Path, stop_after: int
):
    stopped = new_run(data)
    for count, _ in enumerate(stopped.run(), start=1):
        if count == stop_after:
            break
    save_checkpoint(tmp_path, stopped)
    torch.manual_seed(12345)  # nothing may depend on what happened in between
    resumed = new_run(data)
    restore(resumed, latest_checkpoint(tmp_path))
    list(resumed.run())

    for expected, arrived in zip(parameters(straight_run), parameters(resumed), strict=True):
        assert torch.equal(expected, arrived)
    assert resumed.rounds == straight_run.rounds


def test_a_checkpoint_opens_without_the_data(data: SceneData, tmp_path: Path):
    optimizer = new_run(data)
    for _ in range(3):
        optimizer.gaussian_update("bootstrap")
    scene, network, _ = load_trained(save_checkpoint(tmp_path, optimizer))
    assert scene.object_names == data.object_names
    scales = data.truth.object_scales
    expected = optimizer.scene.place(scales.float(), 2)
    for arrived, wanted in zip(scene.place(scales.float(), 2), expected, strict=True):
        assert_close(arrived, wanted)
    assert_close(network(scales[None]), optimizer.network(scales[None]))


def test_only_the_last_checkpoints_are_kept_and_none_is_half_written(data: SceneData, tmp_path: Path, monkeypatch):
    optimizer = new_run(data)
    for _ in range(4):
        optimizer.gaussian_update("bootstrap")
        save_checkpoint(tmp_path, optimizer)
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == ["step_0000003_00", "step_0000004_00"]

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("osn_gs.training.checkpoints.save_file", disk_full)
    optimizer.gaussian_update("bootstrap")
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, optimizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000003_00", "step_0000004_00"]


def test_a_broken_checkpoint_is_named(data: SceneData, tmp_path: Path):
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        latest_checkpoint(tmp_path)
    folder = save_checkpoint(tmp_path, new_run(data))
    tensors = folder / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot read this checkpoint"):
        load_trained(folder)


def test_an_object_with_too_few_points_is_named(data: SceneData):
    points = data.sparse_points[2]
    few = type(points)(*(getattr(points, field.name)[:5] for field in dataclasses.fields(points)))
    broken = dataclasses.replace(data, sparse_points=(*data.sparse_points[:2], few, data.sparse_points[3]))
    with pytest.raises(DatasetError, match=r"object 2 \(.+\): \d+ distinct sparse points, at least 16"):
        initial_scene(broken, SHORT.gaussians)


def test_start_points_lie_on_the_true_surfaces(data: SceneData):
    """Sparse points, taken to the canonical frame and back into a camera, stand at the depths the truth has there."""
    scene = initial_scene(data, SHORT.gaussians)
    for k, group in enumerate(scene.objects):
        pose = group.cam_from_obj[0]
        in_camera = group.gaussians.means.detach() @ pose[:3, :3].T + pose[:3, 3]
        pixels = in_camera @ scene.intrinsics.T
        columns, rows = (pixels[:, :2] / pixels[:, 2:]).floor().long().unbind(-1)
        inside = (columns >= 0) & (rows >= 0) & (columns < data.width) & (rows < data.height) & (in_camera[:, 2] > 0)
        truth = data.truth.layer_depths[0, k][rows[inside], columns[inside]]
        error = (in_camera[inside, 2] / truth - 1).abs()
        # about half of an object's points are on its back in this frame: those stand behind the seen surface
        assert error.quantile(0.3) < 0.02


def test_mask_loss_asks_nothing_where_another_object_may_hide_this_one():
    """At a pixel that shows mover 1, mover 2 may be hidden: its opacity there is free."""
    object_ids = torch.tensor([[1, 1]])
    alphas = torch.full((3, 1, 2), 0.5, requires_grad=True)
    losses.layer_mask_loss(alphas, object_ids).backward()
    assert_close(alphas.grad[2], torch.zeros(1, 2))
    assert (alphas.grad[1] < 0).all(), "the shown object is drawn to opaque"


def test_mask_loss_clears_movers_off_the_background():
    alphas = torch.full((3, 1, 2), 0.5, requires_grad=True)
    losses.layer_mask_loss(alphas, torch.zeros(1, 2, dtype=torch.long)).backward()
    assert (alphas.grad[1:] > 0).all()
    assert (alphas.grad[0] < 0).all()


def test_the_labelled_composite_takes_each_pixel_from_its_object():
    rgb = torch.arange(3.0)[:, None, None, None].expand(3, 2, 2, 3)
    object_ids = torch.tensor([[0, 1], [2, 1]])
    assert_close(losses.labelled_composite(rgb, object_ids)[..., 0], object_ids.float())


def test_a_plane_costs_nothing_and_a_bent_surface_does():
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(24.0), indexing="ij")
    plane = 1 / (0.3 + 0.004 * columns - 0.006 * rows)
    image, alphas, extents = torch.full((20, 24, 3), 0.5), torch.ones(1, 20, 24), torch.tensor([3.0])
    flat = losses.planarity_loss(plane[None], alphas, image, extents)
    bent = losses.planarity_loss((plane + 0.2 * torch.sin(columns))[None], alphas, image, extents)
    assert float(flat) < 1e-5
    assert float(bent) > 1e-2


def test_planarity_does_not_depend_on_an_objects_units():
    generator = torch.Generator().manual_seed(0)
    depths, image = 2 + torch.rand(1, 8, 9, generator=generator), torch.rand(8, 9, 3, generator=generator)
    alphas = torch.ones(1, 8, 9)
    one = losses.planarity_loss(depths, alphas, image, torch.tensor([2.0]))
    other = losses.planarity_loss(7 * depths, alphas, image, torch.tensor([14.0]))
    assert_close(one, other)


def test_while_the_network_calls_nothing_valid_the_oracle_stands_in(data: SceneData, straight_run: JointOptimizer):
    optimizer = new_run(data)
    with torch.no_grad():
        optimizer.network.layers[-1].bias.fill_(-5.0)
    optimizer.oracle = oracle = straight_run.current_oracle()
    threshold = straight_run.accuracy_threshold()
    samples = optimizer.sample_valid_scales(16, threshold)
    assert samples.shape == (16, data.num_objects)
    assert (oracle.accuracy(samples) >= threshold).all()


def test_the_papers_label_rule_changes_by_round_and_then_stays():
    paper = ObjectScalesConfig(label_rule="paper", accuracy=(0.97, 0.985), top_k=(0.03, 0.02, 0.01))
    rules = [paper.rule(round_number) for round_number in (1, 2, 3, 4)]
    assert [rule.threshold for rule in rules] == [0.97, 0.985, 0.985, 0.985]
    assert [rule.least_share for rule in rules] == [0.03, 0.02, 0.01, 0.01]


def test_gaussians_are_shared_out_whole(data: SceneData):
    optimizer = new_run(data)
    shares = [control.max_gaussians for control in optimizer.density]
    assert sum(shares) <= SHORT.density.max_gaussians
    assert min(shares) > SHORT.density.max_gaussians / (3 * data.num_objects), "no object starves"


def test_several_valid_configurations_ask_for_one_and_the_same_picture(tmp_path: Path):
    """Vectors that keep the depth order give the same training view, so scene steps may draw any of them.

    With toys that are rigid, as the objects of this run are.
    """
    data = load_scene(write_demo_scene(tmp_path / "rigid", 8, 64, 48, num_held_out=1, bending=False))
    optimizer = new_run(data)
    for _ in range(60):
        optimizer.gaussian_update("bootstrap")
    true_scales = data.truth.object_scales.float()
    nearer = true_scales * torch.tensor([1.0, 0.9, 0.9, 0.9])
    with torch.no_grad():
        pictures = render_layers(optimizer.scene, 3).composite(torch.stack([true_scales, nearer])).features
    assert (pictures[0] - pictures[1]).abs().mean() < 0.01 * pictures[0].abs().mean()


def test_a_diverged_run_says_so(data: SceneData):
    optimizer = new_run(data)
    with torch.no_grad():
        optimizer.scene.objects[1].gaussians.params["sh0"].fill_(torch.inf)
    with pytest.raises(OsnGsError, match="training diverged"):
        optimizer.gaussian_update("bootstrap")


def test_a_checkpoint_of_another_scene_is_refused(data: SceneData, tmp_path: Path):
    folder = save_checkpoint(tmp_path, new_run(data))
    renamed = dataclasses.replace(data, object_names=("background", "cat", "dog", "bird"))
    with pytest.raises(CheckpointError, match="put the scene back"):
        restore(new_run(renamed), folder)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_scene_on_the_gpu_trains_saves_and_comes_back(data: SceneData, tmp_path: Path):
    """The scene lives on the GPU, the data, the network and the random numbers on the CPU."""
    optimizer = JointOptimizer(
        initial_scene(data, SHORT.gaussians, "cuda"), data, SHORT, torch.default_generator.manual_seed(0)
    )
    reports = list(optimizer.run())
    assert all(report.loss == report.loss for report in reports if isinstance(report, StepReport))
    restored = JointOptimizer(
        initial_scene(data, SHORT.gaussians, "cuda"), data, SHORT, torch.default_generator.manual_seed(1)
    )
    restore(restored, save_checkpoint(tmp_path, optimizer))
    for expected, arrived in zip(parameters(optimizer), parameters(restored), strict=True):
        assert arrived.device == expected.device
        assert torch.equal(expected, arrived)
