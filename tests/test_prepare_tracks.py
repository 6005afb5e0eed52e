"""Tracks: points stay on what they began on, come back after an occlusion, and say when something is wrong."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from osn_gs.errors import ConfigError, DatasetError
from osn_gs.files import write_json_atomic
from osn_gs.preprocess.camera import FrameWarp
from osn_gs.preprocess.feature_matches import track_features
from osn_gs.preprocess.features import detect_features
from osn_gs.preprocess.flow import object_flow, sample_bilinear
from osn_gs.preprocess.frames import FramesRecord, SourceFrame, frame_path, write_frames_record
from osn_gs.preprocess.masks import IDS_FOLDER
from osn_gs.preprocess.patch_alignment import align_patches, cut_patches
from osn_gs.preprocess.pictures import write_picture
from osn_gs.preprocess.point_tracking import TracksConfig, track_points
from osn_gs.preprocess.rigid_motion import agrees_with_rigid_motion
from osn_gs.preprocess.track_objects import FEW_TRACKS, PICTURE_FILE, draw_tracks, track_objects, tracking_advice
from osn_gs.preprocess.tracks import Tracks, load_tracks
from osn_gs.threads import set_num_threads

HEIGHT, WIDTH = 96, 128
NAMES = ("background", "ball")


def texture(seed: int, height: int = 2 * HEIGHT, width: int = 2 * WIDTH) -> np.ndarray:
    """A colour picture with details of a few pixels."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0)
    return np.clip((smooth - smooth.mean()) * 5 + 128, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Clip:
    """Flat pictures sliding over each other: where the texel (0, 0) of each lies in every frame."""

    images: np.ndarray
    object_ids: np.ndarray
    places: list[np.ndarray]

    def true_pixels(self, tracks: Tracks) -> np.ndarray:
        """Where every track should be, if it was right in its first frame."""
        truth = np.zeros_like(tracks.pixels)
        for i, k in enumerate(tracks.object_ids):
            first = tracks.visible[i].argmax()
            truth[i] = tracks.pixels[i, first] + self.places[k] - self.places[k][first]
        return truth


def sliding_clip(*motions: np.ndarray, size: tuple[int, int] = (56, 48)) -> Clip:
    """A background, then rectangles of `size` (w, h) in front of it, each with its own path [t, 2]."""
    images, ids = [], []
    textures = [texture(seed) for seed in range(len(motions))]
    for t in range(len(motions[0])):
        image, id_map = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
        for k, motion in enumerate(motions):
            shift = np.float32([[1, 0, motion[t, 0]], [0, 1, motion[t, 1]]])
            moved = cv2.warpAffine(
                textures[k], shift, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP
            )
            inside = np.ones((HEIGHT, WIDTH), bool)
            if k > 0:
                columns, rows = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
                across, down = columns - motion[t, 0], rows - motion[t, 1]
                inside = (across > 0) & (across < size[0]) & (down > 0) & (down < size[1])
            image[inside], id_map[inside] = moved[inside], k
        images.append(image)
        ids.append(id_map)
    return Clip(np.stack(images), np.stack(ids), list(motions))


def line(start: tuple[float, float], step: tuple[float, float], count: int = 8) -> np.ndarray:
    return np.array(start) + np.arange(count)[:, None] * np.array(step)


@pytest.fixture(scope="module")
def two_objects() -> Clip:
    return sliding_clip(line((-40, -30), (1.3, 0.4)), line((20.2, 20.4), (3.7, 1.6)))


@pytest.fixture(scope="module")
def tracks(two_objects: Clip) -> Tracks:
    return track_points(two_objects.images, two_objects.object_ids, TracksConfig())


def test_points_stay_where_they_began_on_their_object(two_objects, tracks):
    errors = np.linalg.norm(tracks.pixels - two_objects.true_pixels(tracks), axis=-1)
    for k in (0, 1):
        of_object = errors[tracks.object_ids == k][tracks.visible[tracks.object_ids == k]]
        assert np.median(of_object) < 0.1
        assert np.mean(of_object > 0.5) < 0.01


def test_every_object_has_many_tracks_in_every_frame_and_none_leaves_its_mask(two_objects, tracks):
    for k in (0, 1):
        assert tracks.visible[tracks.object_ids == k].sum(0).min() > 100
    track, frame = np.nonzero(tracks.visible)
    columns, rows = tracks.pixels[track, frame].astype(int).T
    assert (two_objects.object_ids[frame, rows, columns] == tracks.object_ids[track]).all()


def test_tracks_do_not_depend_on_the_number_of_threads(two_objects, tracks):
    set_num_threads(1)
    try:
        again = track_points(two_objects.images, two_objects.object_ids, TracksConfig())
    finally:
        set_num_threads(None)
    np.testing.assert_array_equal(again.pixels, tracks.pixels)
    np.testing.assert_array_equal(again.visible, tracks.visible)


def test_a_point_hidden_for_some_frames_keeps_its_track():
    clip = sliding_clip(line((-40, -30), (0.6, 0), 10), line((-20, -1), (13, 0), 10), size=(20, 120))
    tracks = track_points(clip.images, clip.object_ids, TracksConfig())
    background = tracks.select(tracks.object_ids == 0)
    seen = background.visible
    last = seen.shape[1] - 1 - seen[:, ::-1].argmax(1)
    has_gap = seen.sum(1) < last - seen.argmax(1) + 1
    assert has_gap.sum() > 50
    errors = np.linalg.norm(background.pixels - clip.true_pixels(background), axis=-1)[has_gap]
    assert np.mean(errors[seen[has_gap]] > 0.5) < 0.02


def test_a_patch_is_found_turned_stretched_and_in_other_light():
    image = cv2.GaussianBlur(texture(3).astype(np.float32), (0, 0), 0.7)
    warp = np.array([[1.08, -0.12], [0.10, 0.95]])
    centre, target = np.array([100.3, 80.7]), np.array([102.7, 79.4])
    # The second picture shows at W (p - centre) + target what the first shows at p; OpenCV's centres are at 0.
    shift = target - 0.5 - warp @ (centre - 0.5)
    moved = cv2.warpAffine(image, np.c_[warp, shift], image.shape[1::-1], flags=cv2.INTER_CUBIC)
    second = moved * (0.8, 0.7, 1.2) + (20, 0, 5)
    everything = np.ones(image.shape[:2], bool)
    patches = cut_patches(channels_of(image), everything, centre[None], 6)
    found = align_patches(patches, channels_of(second), everything, target[None] - 0.9, np.eye(2)[None], iterations=20)
    np.testing.assert_allclose(found.pixels[0], target, atol=0.05)
    np.testing.assert_allclose(found.warps[0], warp, atol=0.03)
    assert found.similarity[0] > 0.95


def channels_of(image: np.ndarray) -> np.ndarray:
    return np.moveaxis(image, -1, 0).astype(np.float32)


def test_pixels_of_other_objects_do_not_pull_a_patch():
    image = texture(4)
    mask, mask_later = np.zeros((2, *image.shape[:2]), bool)
    mask[:, :100] = mask_later[:, :102] = True  # the rest stands still while the object moves on by 2 pixels
    second = np.where(mask_later[..., None], np.roll(image, 2, axis=1), image)
    points = np.stack([np.full(40, 97.5), np.linspace(20, 170, 40)], 1)

    def error(mask, mask_later):
        patches = cut_patches(channels_of(image), mask, points, 4)
        start = points + np.array([1.2, 0.5])
        found = align_patches(patches, channels_of(second), mask_later, start, np.tile(np.eye(2), (len(points), 1, 1)))
        return np.median(np.linalg.norm(found.pixels - points - np.array([2, 0]), axis=1))

    everything = np.ones_like(mask)
    assert error(mask, mask_later) < 0.1
    assert error(everything, everything) > 3 * error(mask, mask_later)


def test_flow_of_an_object_follows_motion_much_larger_than_the_object():
    clip = sliding_clip(line((-40, -30), (0, 0), 2), line((8.0, 8.0), (70, 40), 2), size=(30, 30))
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in clip.images]
    flow = object_flow(grey[0], grey[1], clip.object_ids[0] == 1, clip.object_ids[1] == 1)
    points = np.stack(np.meshgrid(np.linspace(14, 32, 5), np.linspace(14, 32, 5)), -1).reshape(-1, 2)
    np.testing.assert_allclose(flow.at(points), np.tile((70.0, 40.0), (25, 1)), atol=0.3)


def test_sampling_has_pixel_centres_at_half():
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(sample_bilinear(image, np.array([[0.5, 0.5], [2.0, 1.5], [3.5, 2.5]])), [0, 5.5, 11])
    many = np.tile([[1.5, 1.5]], (40_000, 1))
    assert (sample_bilinear(image, many) == 5).all()


def test_features_join_what_was_seen_before_and_after_a_gap():
    clip = sliding_clip(line((-40, -30), (0, 0), 6), line((10.0, 20.0), (9.3, 2.1), 6))
    clip.object_ids[1:5] = 0  # out of sight
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in clip.images]
    masks = [ids == 1 for ids in clip.object_ids]
    channels = [np.moveaxis(image.astype(np.float32), -1, 0) for image in clip.images]
    features = [detect_features(image, 2000).inside(mask) for image, mask in zip(grey, masks, strict=True)]
    # Frames 0 and 5 are no gap apart that is tried; 1 and 5 are.
    features[1], masks[1] = detect_features(grey[1], 2000).inside(clip.object_ids[0] == 1), clip.object_ids[0] == 1
    joined = track_features(features, channels, masks, 1, 4)
    across = joined.visible[:, 1] & joined.visible[:, 5]
    assert across.sum() >= 10
    motion = joined.pixels[across, 5] - joined.pixels[across, 1]
    assert np.median(np.linalg.norm(motion - (4 * 9.3, 4 * 2.1), axis=1)) < 0.2


def rigid_tracks(rng: np.random.Generator, count: int, frames: int = 16) -> Tracks:
    """A box of points turning in front of a camera, all visible."""
    points = rng.uniform(-0.5, 0.5, (count, 3))
    pixels = np.zeros((count, frames, 2))
    for t in range(frames):
        angle = np.deg2rad(3 * t)
        turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        camera = points @ turn.T + (0.02 * t, 0.03 * t, 3)
        pixels[:, t] = 400 * camera[:, :2] / camera[:, 2:] + (160, 120)
    return Tracks(pixels, np.ones((count, frames), bool), np.zeros(count, int))


def test_points_that_slide_over_a_rigid_object_are_told_apart():
    rng = np.random.default_rng(0)
    tracks = rigid_tracks(rng, 200)
    tracks.pixels[:] += rng.normal(0, 0.1, tracks.pixels.shape)
    sliding = np.arange(200) < 20
    tracks.pixels[sliding] += np.arange(16)[:, None] * (0.1, 0.9)
    believed = agrees_with_rigid_motion(tracks)
    assert believed[~sliding].mean() > 0.97
    assert believed[sliding].mean() < 0.1


def test_of_what_is_not_rigid_nothing_is_dropped():
    rng = np.random.default_rng(1)
    tracks = rigid_tracks(rng, 200)
    tracks.pixels[:] += np.cumsum(rng.normal(0, 4, tracks.pixels.shape), 1)
    assert agrees_with_rigid_motion(tracks).all()


def test_faint_texture_is_followed_less_strictly_and_none_is_not_followed():
    clip = sliding_clip(line((-40, -30), (1.1, 0), 5), line((20, 20), (4, 1), 5))
    plain = clip.object_ids == 1
    noise = np.random.default_rng(0).normal(0, 2.5, clip.images.shape)
    faint = np.clip((clip.images - 128.0) * 0.04 + 128 + noise, 0, 255).astype(np.uint8)
    clip.images[plain] = faint[plain]
    tracks = track_points(clip.images, clip.object_ids, TracksConfig())
    followed = tracks.object_ids == 1
    assert followed.sum() > FEW_TRACKS
    errors = np.linalg.norm(tracks.pixels - clip.true_pixels(tracks), axis=-1)[followed][tracks.visible[followed]]
    assert np.median(errors) < 0.6
    clip.images[plain] = 128
    tracks = track_points(clip.images, clip.object_ids, TracksConfig())
    assert (tracks.object_ids == 1).sum() < FEW_TRACKS


def test_few_tracks_and_a_camera_that_hardly_moves_bring_advice(two_objects, tracks):
    few = tracks.select(np.r_[np.flatnonzero(tracks.object_ids == 0), np.flatnonzero(tracks.object_ids == 1)[:40]])
    (advice,) = tracking_advice(few, two_objects.object_ids, NAMES)
    assert "object 1 (ball)" in advice
    assert "40" in advice
    (advice,) = tracking_advice(
        Tracks(tracks.pixels * 0.05, tracks.visible, tracks.object_ids), two_objects.object_ids, NAMES
    )
    assert "stands still" in advice
    visible = tracks.visible.copy()
    visible[tracks.object_ids == 1, 5] = False
    (advice,) = tracking_advice(Tracks(tracks.pixels, visible, tracks.object_ids), two_objects.object_ids, NAMES)
    assert "in frame 5" in advice


def test_good_tracks_bring_no_advice_and_a_picture(two_objects, tracks):
    assert tracking_advice(tracks, two_objects.object_ids, NAMES) == ()
    still = draw_tracks(two_objects.images, tracks.select(np.zeros(len(tracks), bool)))
    picture = draw_tracks(two_objects.images, tracks)
    assert picture.shape == still.shape
    assert (picture != still).any()


def write_frames_and_masks(scene: Path, clip: Clip) -> None:
    """What the frames and masks steps leave."""
    frames = tuple(SourceFrame(t, "", t / 10, 1.0) for t in range(len(clip.images)))
    size = (WIDTH, HEIGHT)
    write_frames_record(scene, FramesRecord(frames, FrameWarp(size, (0, 0, *size), size), None, None))
    for t, (image, ids) in enumerate(zip(clip.images, clip.object_ids, strict=True)):
        write_picture(frame_path(scene, t), image)
        path = scene / IDS_FOLDER / f"{t:04d}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, ids)
    write_json_atomic(scene / "scene.json", {"objects": list(NAMES)})


def test_the_step_writes_tracks_and_a_picture_and_tells_how_far_it_is(two_objects, tracks, tmp_path):
    write_frames_and_masks(tmp_path / "scene", two_objects)
    calls = []
    advice = track_objects(tmp_path / "scene", tmp_path / "staging", TracksConfig(), lambda *call: calls.append(call))
    assert advice == ()
    read = load_tracks(tmp_path / "staging" / "sfm")
    np.testing.assert_allclose(read.pixels, tracks.pixels, atol=1e-4)
    np.testing.assert_array_equal(read.object_ids, tracks.object_ids)
    assert (tmp_path / "staging" / PICTURE_FILE).read_bytes().startswith(b"\x89PNG")
    done, totals = zip(*calls, strict=True)
    assert list(done) == list(range(1, totals[0] + 1))
    assert set(totals) == {len(calls)}


def test_a_camera_that_stands_still_is_refused_and_nothing_is_written(tmp_path):
    clip = sliding_clip(line((-40, -30), (0, 0), 4), line((20.2, 20.4), (2.5, 1.5), 4))
    write_frames_and_masks(tmp_path / "scene", clip)
    with pytest.raises(DatasetError, match="stands still"):
        track_objects(tmp_path / "scene", tmp_path / "staging", TracksConfig())
    assert not (tmp_path / "staging").exists()


@pytest.mark.parametrize("wrong", [{"spacing": 0.5}, {"spacing": float("nan")}, {"per_object": 3}, {"shortest": 1}])
def test_impossible_options_are_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TracksConfig(**wrong)
