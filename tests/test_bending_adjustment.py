"""Structure from motion of what bends: the adjustment itself, and when it is taken."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic_tracks import DISTANCE, SyntheticClip, make_clip, swung

from osn_gs.errors import DatasetError
from osn_gs.evaluation.poses import pose_errors
from osn_gs.gaussians.deformation import NodeDeformation
from osn_gs.preprocess.arrangement import canonical_object
from osn_gs.preprocess.sfm.bending_adjustment import (
    BendingPrior,
    BentGeometry,
    _normal_equations,
    _prior_terms,
    adjust_bending,
    bending_cost,
    with_nodes,
)
from osn_gs.preprocess.sfm.bundle_adjustment import Geometry, GroupSums, Smoothness, robust_cost, smoothness_terms
from osn_gs.preprocess.sfm.colmap_model import DISPLACEMENTS_FILE, read_model, write_model
from osn_gs.preprocess.sfm.config import SfmConfig
from osn_gs.preprocess.sfm.reconstruct import Hypothesis, better_of_twins, reconstruct_object
from osn_gs.preprocess.sfm.triangulation import observations_of, triangulated

PRIOR = BendingPrior(nodes=6, knot_spacing=3.0)
SMOOTHNESS = Smoothness(rotation=0.1, translation=0.05)
LOSS = 0.5


@pytest.fixture(scope="module")
def clip() -> SyntheticClip:
    return make_clip(num_tracks=150, sway=0.1, noise=0.1, outliers=0, seed=3)


@pytest.fixture(scope="module")
def observations(clip):
    return observations_of(clip.tracks.pixels, clip.tracks.visible)


@pytest.fixture
def moving(clip, observations) -> BentGeometry:
    """Some geometry whose nodes move at random."""
    still = with_nodes(geometry_of(clip), observations, PRIOR)
    generator = np.random.default_rng(0)
    rotations, translations = (generator.normal(0, 0.1, still.rotations.shape) for _ in range(2))
    return replace(still, rotations=rotations, translations=translations)


def geometry_of(clip: SyntheticClip) -> Geometry:
    return triangulated(clip.tracks.pixels, clip.tracks.visible, clip.cam_from_obj, clip.focal, np.array(clip.size) / 2)


def cost(geometry: BentGeometry, observations) -> float:
    poses, _ = smoothness_terms(geometry, SMOOTHNESS)
    return robust_cost(geometry, observations, LOSS) + float((poses**2).sum()) + bending_cost(geometry, PRIOR)


def test_an_object_that_does_not_move_is_the_rigid_one(clip, observations):
    rigid = geometry_of(clip)
    still = with_nodes(rigid, observations, PRIOR)
    np.testing.assert_allclose(still.residuals(observations), rigid.residuals(observations), atol=1e-9)
    assert bending_cost(still, PRIOR) == 0


def test_points_move_as_in_training(moving, observations):
    """The same nodes, coefficients and reach give the same places in the object's frame."""
    theirs = NodeDeformation(
        torch.from_numpy(moving.node_places), moving.object_size, len(moving.cam_from_obj), PRIOR.knot_spacing
    )
    theirs.rotations.data, theirs.translations.data = (
        torch.from_numpy(part) for part in (moving.rotations, moving.translations)
    )
    distances = np.linalg.norm(moving.points[:, None] - moving.node_places, axis=-1)
    reach = float(theirs.reach)
    weights = np.exp(-(distances**2) / (2 * reach**2))
    ours = replace(moving, nodes=replace(moving.nodes, weights=weights / weights.sum(1, keepdims=True)))
    quats = torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=torch.float64).expand(len(moving.points), 4)
    for frame in (0, 5):
        seen = observations.select(observations.frames == frame)
        moved, _ = theirs.move(torch.from_numpy(moving.points), quats, frame)
        np.testing.assert_allclose(ours.in_object(seen), moved.detach().numpy()[seen.points], atol=1e-6)


@pytest.mark.parametrize("part", ["rotations", "translations"])
def test_derivatives_by_the_nodes_motion_are_those_of_the_cost(moving, observations, part):
    sums = GroupSums(observations, len(moving.cam_from_obj), len(moving.points))
    system = _normal_equations(moving, observations, sums, PRIOR, SMOOTHNESS, LOSS)
    gradient = system.cameras_gradient[6 * len(moving.cam_from_obj) :].reshape(*moving.rotations.shape[:2], 6)
    own = gradient[..., :3] if part == "rotations" else gradient[..., 3:]
    generator = np.random.default_rng(1)
    for _ in range(4):
        way = generator.normal(size=own.shape)
        step = 1e-6 * way
        ahead, behind = (replace(moving, **{part: getattr(moving, part) + sign * step}) for sign in (1, -1))
        numeric = (cost(ahead, observations) - cost(behind, observations)) / 2e-6
        np.testing.assert_allclose(2 * (own * way).sum(), numeric, rtol=1e-4)


def test_the_cost_of_bending_does_not_depend_on_the_scale(moving, observations):
    poses = moving.cam_from_obj.copy()
    poses[:, :3, 3] *= 2.5
    larger = replace(moving, cam_from_obj=poses, points=2.5 * moving.points)
    np.testing.assert_allclose(larger.residuals(observations), moving.residuals(observations), atol=1e-9)
    assert bending_cost(larger, PRIOR) == pytest.approx(bending_cost(moving, PRIOR))


def test_growing_as_a_whole_costs_more_than_stretching_here_and_shrinking_there(moving):
    still = replace(moving, rotations=0 * moving.rotations, translations=0 * moving.translations)
    outwards = still.node_places / still.object_size
    grown = replace(still, translations=np.broadcast_to(0.05 * outwards, still.translations.shape))
    squeezed = replace(still, translations=np.broadcast_to(0.05 * outwards * [1, -0.5, -0.5], still.translations.shape))
    growth = [float((_prior_terms(geometry, PRIOR)[1] ** 2).sum()) for geometry in (grown, squeezed)]
    assert growth[0] == pytest.approx(len(moving.cam_from_obj) * (0.05 / PRIOR.growth) ** 2, rel=1e-6)
    assert growth[1] < 0.2 * growth[0]


def test_the_adjustment_explains_what_a_rigid_model_cannot(clip, observations):
    rigid, prior = geometry_of(clip), BendingPrior()
    start = with_nodes(rigid, observations, prior)
    adjusted, final = adjust_bending(start, observations, prior, SMOOTHNESS, LOSS, max_steps=30, tolerance=1e-4)
    assert final < 0.7 * robust_cost(rigid, observations, LOSS)
    before, after = (np.median(np.linalg.norm(g.residuals(observations), axis=1)) for g in (rigid, adjusted))
    assert after < 0.5 * before


# In structure from motion


@pytest.fixture(scope="module")
def swaying() -> SyntheticClip:
    return make_clip(num_frames=20, num_tracks=400, arc=60.0, sway=0.1, noise=0.15, outliers=0, seed=1)


@pytest.fixture(scope="module")
def reconstructed(swaying):
    return reconstruct_object(swaying.tracks, swaying.size, swaying.focal, SfmConfig(), seed=0)


def depth_errors(model, clip: SyntheticClip) -> np.ndarray:
    """Of all observations, in shares of the object's extent, after one factor for all of them."""
    places = swung(clip)[model.observed_frames]
    pixels = clip.tracks.pixels[:, model.observed_frames].swapaxes(0, 1)
    tracks = np.linalg.norm(pixels - model.observed_pixels[:, None], axis=-1).argmin(axis=1)
    pose = clip.cam_from_obj[model.observed_frames]
    true = (pose[:, :3, :3] @ places[np.arange(len(tracks)), tracks][..., None])[:, 2, 0] + pose[:, 2, 3]
    depths = model.observed_in_camera()[:, 2]
    return np.abs(np.median(true / depths) * depths - true)


def test_what_sways_is_found_to_bend_and_lies_where_it_is(swaying, reconstructed):
    model, report = reconstructed
    assert model.displacements is not None
    assert report.chosen.endswith("bending")
    assert report.rigid_explained < 0.8 < 0.97 < report.explained
    assert report.confidence == "weak"
    assert any("bends" in line for line in report.advice)
    assert model.reprojection_errors().max() < 1.5
    assert pose_errors(model.cam_from_obj, model.registered, swaying.cam_from_obj, DISTANCE).rotation.mean() < 3
    assert depth_errors(model, swaying).mean() < 0.04


def test_sparse_points_of_what_bends_are_where_each_frame_saw_them(reconstructed):
    model, _ = reconstructed
    points = canonical_object(model, "egg").points
    kept = np.isin(model.observed_in_camera()[:, 2], points.depths.numpy())
    assert kept.mean() > 0.95
    assert not np.isin(replace(model, displacements=None).observed_in_camera()[kept, 2], points.depths.numpy()).any()


def test_a_model_that_bends_reads_back(tmp_path, reconstructed):
    model, _ = reconstructed
    write_model(tmp_path, model, np.zeros((len(model.points), 3), np.uint8))
    ours = read_model(tmp_path, 20)
    np.testing.assert_array_equal(ours.observed_frames, model.observed_frames)
    np.testing.assert_allclose(ours.observed_in_camera(), model.observed_in_camera(), atol=1e-9)
    np.save(tmp_path / DISPLACEMENTS_FILE, model.displacements[1:])
    with pytest.raises(DatasetError, match=r"displacements\.npy: has shape"):
        read_model(tmp_path, 20)


def test_the_background_never_bends(swaying):
    tracks = replace(swaying.tracks, object_ids=np.zeros(len(swaying.tracks), int))
    model, report = reconstruct_object(tracks, swaying.size, swaying.focal, SfmConfig(), seed=0)
    assert model.displacements is None
    assert not any(candidate.name.endswith("bending") for candidate in report.candidates)


def test_a_frame_without_tracks_does_not_stop_what_bends():
    clip = make_clip(num_frames=14, num_tracks=400, arc=45.0, sway=0.1, noise=0.15, outliers=0, seed=3, hidden=(6,))
    model, report = reconstruct_object(clip.tracks, clip.size, clip.focal, SfmConfig(), seed=0)
    assert report.missing_frames == [6]
    assert model.displacements is not None
    assert report.explained > 0.95


def test_a_twin_must_be_clearly_better():
    geometry = Geometry(np.tile(np.eye(4), (3, 1, 1)), np.zeros((1, 3)), 500.0, np.zeros(2))
    first, little, much = (Hypothesis("", geometry, np.ones(3, bool), 0.9, score) for score in (0.90, 0.905, 0.92))
    assert better_of_twins(first, little) is first
    assert better_of_twins(first, much) is much
    assert better_of_twins(None, little) is little
    assert better_of_twins(first, None) is first
    assert better_of_twins(None, None) is None


def test_bad_tracks_do_not_make_a_rigid_object_bend():
    clip = make_clip(outliers=0.3)
    model, report = reconstruct_object(clip.tracks, clip.size, clip.focal, SfmConfig(), seed=0)
    assert report.explained < 0.9  # so it was let bend
    assert report.candidates[-1].name.endswith("bending")
    assert model.displacements is None
    assert report.rigid_explained is None
