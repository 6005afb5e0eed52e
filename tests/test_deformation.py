"""Deformation: none at first, rigid motions are free, smooth between frames, and blind to units and object scales."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from ball_scene import WIDTH, ball_scene
from torch.testing import assert_close

from osn_gs.data.bending_truth import BendingTruth, SurfaceTracks
from osn_gs.data.pinhole import unproject
from osn_gs.evaluation.tracking import tracking_error
from osn_gs.export.configurations import scene_frames
from osn_gs.export.renderings import World
from osn_gs.gaussians.deformation import NodeDeformation, quat_of_rotation_vector, spline_weights, spread_points
from osn_gs.gaussians.object_gaussians import ObjectGaussians
from osn_gs.geometry.se3 import invert_rigid, quat_multiply, quat_to_rotmat
from osn_gs.scene.render import render_layers, render_view
from osn_gs.scene.scene import ObjectGroup, Scene
from osn_gs.viewer.browser_view import BrowserView
from osn_gs.viewer.snapshot import take_snapshot
from osn_gs.viewer.state import ViewState

NUM_FRAMES = 5


@pytest.fixture
def gaussians() -> ObjectGaussians:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(300, 3, generator=generator) * torch.tensor([1.0, 0.5, 2.0])
    gaussians = ObjectGaussians.from_points(points, torch.rand(300, 3, generator=generator), sh_degree=1)
    with torch.no_grad():
        gaussians.params["quats"].copy_(torch.randn(300, 4, generator=generator))
    return gaussians


def deformation_of(gaussians: ObjectGaussians, num_nodes: int = 12, knot_spacing: float = 1.0) -> NodeDeformation:
    return NodeDeformation.on_gaussians(gaussians, num_nodes, NUM_FRAMES, knot_spacing)


def shake(deformation: NodeDeformation, amount: float = 0.2) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for values in (deformation.rotations, deformation.translations):
            values.copy_(amount * torch.randn(values.shape, generator=generator))


def move_rigidly(deformation: NodeDeformation, turn: torch.Tensor, shift: torch.Tensor) -> None:
    """The same rigid motion about the origin for all nodes at all times; its rotation vector and translation."""
    rotation = quat_to_rotmat(quat_of_rotation_vector(turn))
    translations = deformation.nodes @ rotation.T + shift - deformation.nodes
    with torch.no_grad():
        deformation.rotations.copy_(turn.expand_as(deformation.rotations))
        deformation.translations.copy_((translations / deformation.size).expand_as(deformation.translations))


@torch.no_grad()
def test_at_first_nothing_moves_not_even_by_a_bit(gaussians: ObjectGaussians):
    deformation = deformation_of(gaussians)
    means, quats = deformation.move(gaussians.means, gaussians.quats, 1.7)
    assert torch.equal(means, gaussians.means)
    assert_close(quats, gaussians.quats)
    assert float(deformation.stretching(1.7)) == 0
    assert float(deformation.jerkiness()) == 0
    assert float(deformation.magnitude()) == 0


@torch.no_grad()
def test_a_rigid_motion_of_all_nodes_is_one_of_all_gaussians_and_stretches_nothing(gaussians: ObjectGaussians):
    deformation = deformation_of(gaussians)
    turn, shift = torch.tensor([0.5, -0.9, 0.3]), torch.tensor([0.1, 0.4, -0.2])
    move_rigidly(deformation, turn, shift)
    means, quats = deformation.move(gaussians.means, gaussians.quats, 2.5)
    quat = quat_of_rotation_vector(turn)
    assert_close(means, gaussians.means @ quat_to_rotmat(quat).T + shift, atol=1e-5, rtol=1e-5)
    assert_close(quats, quat_multiply(quat.expand_as(quats), gaussians.quats), atol=1e-5, rtol=1e-5)
    assert float(deformation.stretching(2.5)) < 1e-10
    shake(deformation)
    assert float(deformation.stretching(2.5)) > 1e-2


def test_the_blend_moves_gaussians_as_the_formula_says(gaussians: ObjectGaussians):
    """A mean goes to the weighted sum of R_j (x - n_j) + n_j + t_j, with weights that sum to one."""
    deformation = deformation_of(gaussians)
    shake(deformation)
    vectors, translations = deformation.node_motion(1.3)
    rotations = quat_to_rotmat(quat_of_rotation_vector(vectors))
    x, nodes = gaussians.means[7], deformation.nodes
    weights = torch.exp(-((x - nodes) ** 2).sum(1) / (2 * deformation.reach**2))
    carried = (rotations @ (x - nodes)[:, :, None]).squeeze(-1) + nodes + translations
    expected = (weights[:, None] * carried).sum(0) / weights.sum()
    means, _ = deformation.move(gaussians.means, gaussians.quats, 1.3)
    assert_close(means[7], expected, atol=1e-5, rtol=1e-5)
    means[7].sum().backward()
    assert float(deformation.rotations.grad.abs().sum()) > 0
    assert float(deformation.translations.grad.abs().sum()) > 0


@torch.no_grad()
@pytest.mark.parametrize("knot_spacing", [1.0, 1.5])
def test_motion_is_smooth_between_frames(gaussians: ObjectGaussians, knot_spacing: float):
    deformation = deformation_of(gaussians, knot_spacing=knot_spacing)
    shake(deformation)
    times = torch.linspace(0, NUM_FRAMES - 1, 401).tolist()
    path = torch.stack([deformation.move(gaussians.means[:5], gaussians.quats[:5], time)[0] for time in times])
    velocity = path.diff(dim=0) / (times[1] - times[0])
    jump = velocity.diff(dim=0).norm(dim=-1).max()
    assert float(jump) < 0.05 * float(velocity.norm(dim=-1).max())


def test_spline_weights_reproduce_a_straight_line():
    coefficients = torch.arange(9.0) - 1
    for position in (0.0, 0.3, 2.0, 5.9, 6.0):
        first, weights = spline_weights(position, len(coefficients))
        assert sum(weights) == pytest.approx(1)
        assert float(coefficients[first : first + 4] @ torch.tensor(weights)) == pytest.approx(position, abs=1e-5)


def test_an_objects_units_change_nothing(gaussians: ObjectGaussians):
    small, large = (deformation_of(_scaled(gaussians, unit)) for unit in (1.0, 50.0))
    for deformation in (small, large):
        shake(deformation)
    assert_close(small.stretching(2.2), large.stretching(2.2))
    assert_close(small.jerkiness(), large.jerkiness())
    assert_close(small.magnitude(), large.magnitude())
    in_small, _ = small.move(gaussians.means, gaussians.quats, 2.2)
    in_large, _ = large.move(50 * gaussians.means, gaussians.quats, 2.2)
    assert_close(50 * in_small, in_large, atol=1e-3, rtol=1e-4)


def _scaled(gaussians: ObjectGaussians, unit: float) -> ObjectGaussians:
    params = {name: value.detach().clone() for name, value in gaussians.params.items()}
    params["means"] *= unit
    params["scales"] += torch.tensor(unit).log()
    return ObjectGaussians(params)


def test_nodes_are_spread_over_the_points_and_strays_hold_none():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(500, 3, generator=generator)
    nodes = spread_points(torch.cat([points, points.new_tensor([[1.3, 1.3, 1.3]])]), 20)
    assert nodes.shape == (20, 3)
    assert float(torch.cdist(points, nodes).min(dim=1).values.max()) < 0.5
    assert float(torch.cdist(nodes, nodes).fill_diagonal_(torch.inf).min()) > 0.1
    assert len(spread_points(points[:6].repeat(2, 1), 20)) == 6, "no more nodes than there are places"


def bending_ball() -> Scene:
    scene = ball_scene()
    ball = scene.objects[1]
    ball.deformation = NodeDeformation.on_gaussians(ball.gaussians, 12, num_frames=1, knot_spacing=1.0)
    shake(ball.deformation, 0.3)
    return scene


@torch.no_grad()
def test_a_training_view_does_not_change_with_the_scale_of_a_deforming_object():
    scene = bending_ball()
    near, far = (render_view(scene, torch.tensor([1.0, s]), time=0) for s in (0.4, 0.8))
    assert_close(near.rgb, far.rgb, atol=5e-3, rtol=0)
    ball = near.object_weights[..., 1] > 0.99
    assert ball.sum() > 20
    assert_close(far.depth[ball] / near.depth[ball], torch.full_like(far.depth[ball], 2.0), atol=0.05, rtol=0)


@torch.no_grad()
def test_layers_and_views_show_the_deformed_object():
    still, bending = ball_scene(), bending_ball()
    filmed = [render_view(scene, torch.ones(2), 0) for scene in (still, bending)]
    layers = [render_layers(scene, 0) for scene in (still, bending)]
    assert float((filmed[0].rgb - filmed[1].rgb).abs().max()) > 0.1
    assert float((layers[0].depths[1] - layers[1].depths[1]).abs().max()) > 0.1
    assert torch.equal(layers[0].depths[0], layers[1].depths[0]), "the background stays"
    assert layers[1].rgb.shape[2] == WIDTH


@torch.no_grad()
def test_points_of_a_bent_object_find_back(gaussians: ObjectGaussians):
    deformation = deformation_of(gaussians)
    shake(deformation, 0.1)
    bent, _ = deformation.move(gaussians.means, gaussians.quats, 2.0)
    assert float((bent - gaussians.means).norm(dim=1).median()) > 0.03
    assert_close(deformation.unmove(bent, 2.0), gaussians.means, atol=1e-2, rtol=0)


def test_a_tracked_point_of_a_truly_known_motion_has_no_error():
    """Points carried by the Gaussians of a scene, told to be the truth, are found where they are."""
    scene = bending_ball_over_time()
    ball = scene.objects[1]
    with torch.no_grad():
        exact = tracking_error(scene, 1, 1.0, _truth_of(scene, ball, bends=True))
        still = tracking_error(scene, 1, 1.0, _truth_of(scene, ball, bends=False))
    assert exact.num_pairs > 20
    assert exact.mean < 1e-3
    assert still.mean > 1


def bending_ball_over_time() -> Scene:
    scene = ball_scene()
    poses = torch.eye(4).repeat(3, 1, 1)
    poses[:, 0, 3] = torch.tensor([0.0, 0.5, 1.0])
    for group in scene.objects:
        group.cam_from_obj = group.cam_from_obj @ poses
        group.visible = torch.ones(3, dtype=torch.bool)
    ball = scene.objects[1]
    ball.deformation = NodeDeformation.on_gaussians(ball.gaussians, 12, num_frames=3, knot_spacing=1.0)
    shake(ball.deformation, 0.1)
    return scene


def _truth_of(scene: Scene, ball: ObjectGroup, bends: bool) -> BendingTruth:
    """What the pixels of the first frame show, followed by the Gaussians nearest to it, or without their bending."""
    rows, columns = torch.nonzero(render_layers(scene, 0).alphas[1] > 0.9).unbind(-1)
    pixels = torch.stack([columns, rows], dim=1).double() + 0.5
    depths = render_layers(scene, 0).depths[1][rows, columns].double()
    start = unproject(pixels, depths, scene.intrinsics.double()) - ball.cam_from_obj[0, :3, 3]
    means, quats = ball.at(0)
    nearest = torch.cdist(start, means.double()).argmin(dim=1)
    ways = []
    for t in range(3):
        moved, turned = ball.at(t) if bends else (means, quats)
        turn = (quat_to_rotmat(turned) @ quat_to_rotmat(quats).transpose(1, 2))[nearest].double()
        offset = (turn @ (start - means[nearest].double())[:, :, None]).squeeze(-1)
        ways.append(moved[nearest].double() + offset + ball.cam_from_obj[t, :3, 3])
    shares = pixels / torch.tensor([scene.width, scene.height])
    centres = invert_rigid(scene.objects[0].cam_from_obj)[:, :3, 3]
    return BendingTruth((SurfaceTracks(0, shares, torch.stack(ways)),), size=1.0, camera_centres=centres)


@torch.no_grad()
def test_the_viewer_sends_the_splats_of_each_frame_of_a_bending_object_alone():
    scene = bending_ball_over_time()
    snapshot = take_snapshot(scene)
    assert snapshot.objects[0].bending is None
    for t in range(3):
        means, covariances = snapshot.objects[1].splats(t)
        expected, _ = scene.objects[1].at(t)
        assert_close(torch.from_numpy(means).float() * snapshot.objects[1].unit, expected, atol=1e-5, rtol=1e-5)
        assert covariances.shape == (len(means), 3, 3)
    assert (snapshot.objects[1].splats(0)[0] != snapshot.objects[1].splats(2)[0]).any()
    with torch.no_grad():
        scene.objects[1].deformation.translations.zero_()
    assert (snapshot.objects[1].splats(0)[0] != snapshot.objects[1].splats(2)[0]).any(), "training goes on, it does not"


class RecordingScene:
    """Stands in for a client's scene: nodes that count the splats sent to them again."""

    def __init__(self) -> None:
        self.sent_again: dict[str, int] = {}

    def add_gaussian_splats(self, name: str, *_, **__) -> SimpleNamespace:
        self.sent_again[name] = 0

        def set_gaussians(*_) -> None:
            self.sent_again[name] += 1

        return SimpleNamespace(set_gaussians=set_gaussians)

    def add_line_segments(self, *_, **__) -> SimpleNamespace:
        return SimpleNamespace()


def test_the_browser_gets_again_only_what_bends_and_only_for_another_frame():
    snapshot, scene = take_snapshot(bending_ball_over_time()), RecordingScene()
    world = World("as filmed", (1.0, 1.0))
    state = ViewState(world, (world,), shown=(True, True), held=(False, False))
    view = BrowserView(SimpleNamespace(scene=scene, atomic=nullcontext), snapshot, state)
    assert scene.sent_again == {"/objects/0": 0, "/objects/1": 0}
    for time_step in (1, 1, 2):
        view.place(dataclasses.replace(state, time_step=time_step))
    assert scene.sent_again == {"/objects/0": 0, "/objects/1": 2}
    view.place(dataclasses.replace(state, time_step=2, world=World("larger", (1.0, 1.3))))
    view.place(dataclasses.replace(state, time_step=0, shown=(True, False)))
    assert scene.sent_again["/objects/1"] == 2, "a slider sends nothing, and what is hidden can wait"


@torch.no_grad()
def test_an_export_holds_the_shape_of_its_frame():
    scene = bending_ball_over_time()
    frames = list(scene_frames(scene, torch.ones(2), [0, 2]))
    for frame, t in zip(frames, (0, 2), strict=True):
        assert_close(frame.objects[1].gaussians.means, scene.objects[1].at(t)[0])
        assert torch.equal(frame.objects[0].gaussians.means, scene.objects[0].gaussians.means)
