"""The tracks step: points of all objects followed through the clip, a picture of them, and what looks too weak."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from osn_gs.errors import DatasetError
from osn_gs.preprocess.frames import read_frames
from osn_gs.preprocess.masks import read_object_ids
from osn_gs.preprocess.object_names import read_object_names, title_of
from osn_gs.preprocess.pictures import contact_sheet, object_palette, write_picture
from osn_gs.preprocess.point_tracking import BACKGROUND, FEWEST_PIXELS, TracksConfig, track_points
from osn_gs.preprocess.progress import Progress, no_progress
from osn_gs.preprocess.tracks import Tracks, save_tracks

PICTURE_FILE = Path("prepare") / "tracks.png"
FRAMES_SHOWN = 9  # in the picture
TAIL = 6  # frames of a track's past that the picture shows
FEW_TRACKS = 100  # too few for dependable poses
FEW_IN_FRAME = 20  # tracks of an object in a frame that shows it; fewer and its pose there is doubtful
LEAST_MOTION = 0.01  # of the image's width: smaller motion of the background over the clip shows no depth
STILL = 0.5  # pixels: a background that moves less over the clip stands still, as well as it can be measured


def track_objects(
    scene: Path, staging: Path, config: TracksConfig, progress: Progress = no_progress
) -> tuple[str, ...]:
    """The tracks step: write sfm/{trajectories,visibilities,segm_preds}.npy and a picture; advice for the user.

    Raises:
        DatasetError: frames or masks of the earlier steps are missing, or the background stands still.
    """
    images, object_ids = read_frames(scene), read_object_ids(scene)
    tracks = track_points(images, object_ids, config, progress)
    _check_motion(tracks)
    save_tracks(staging / "sfm", tracks)
    write_picture(staging / PICTURE_FILE, draw_tracks(images, tracks))
    return tracking_advice(tracks, object_ids, read_object_names(scene))


def _check_motion(tracks: Tracks) -> None:
    """Refuse a clip whose camera does not move: nothing in it tells how far away anything is."""
    background = tracks.select(tracks.object_ids == BACKGROUND)
    reach = _median_reach(background) if len(background) else np.inf
    if reach < STILL:
        raise DatasetError(
            f"the background moves only {reach:.2f} pixels over the clip: a camera that stands still shows no depth. "
            "Use a video, or a part of it, in which the camera moves sideways."
        )


def tracking_advice(tracks: Tracks, object_ids: UInt8[np.ndarray, "t h w"], names: Sequence[str]) -> tuple[str, ...]:
    """Plain words about objects with too few tracks, and about a camera that hardly moves."""
    advice = []
    for k in range(len(names)):
        own = tracks.select(tracks.object_ids == k)
        title = title_of(k, names)
        if len(own) < FEW_TRACKS:
            advice.append(
                f"{title} has only {len(own)} point tracks: expect weak or no poses. Use larger or sharper images, "
                "or leave the object out (--ignore)."
            )
            continue
        shown = (object_ids == k).sum((1, 2)) >= FEWEST_PIXELS
        bare = np.flatnonzero(shown & (own.visible.sum(0) < FEW_IN_FRAME))
        if len(bare):
            listed = ", ".join(map(str, bare[:8])) + (", ..." if len(bare) > 8 else "")
            advice.append(f"{title} has fewer than {FEW_IN_FRAME} point tracks in frame {listed}.")
        if k == BACKGROUND and _median_reach(own) < LEAST_MOTION * object_ids.shape[2]:
            advice.append(
                f"the background moves only {_median_reach(own):.1f} pixels in the picture: a camera that stands still "
                "shows no depth. Use a part of the video in which the camera moves sideways."
            )
    return tuple(advice)


def _median_reach(tracks: Tracks) -> float:
    """Pixels between the first and last place of a track, in the median."""
    rows = np.arange(len(tracks))
    first, last = tracks.visible.argmax(1), tracks.num_frames - 1 - tracks.visible[:, ::-1].argmax(1)
    return float(np.median(np.linalg.norm(tracks.pixels[rows, last] - tracks.pixels[rows, first], axis=1)))


def draw_tracks(images: UInt8[np.ndarray, "t h w 3"], tracks: Tracks) -> UInt8[np.ndarray, "sheet_h sheet_w 3"]:
    """A sheet of frames with the tracks' places and where they came from, in the objects' colours."""
    colors = object_palette()
    colors[BACKGROUND] = 255
    num_frames = len(images)
    shown = np.unique(np.rint(np.linspace(0, num_frames - 1, min(FRAMES_SHOWN, num_frames))).astype(int))
    pictures = []
    for t in shown:
        picture = images[t] // 2 + 32
        for track in np.flatnonzero(tracks.visible[:, t]):
            color = tuple(int(c) for c in colors[tracks.object_ids[track]])
            past = np.arange(max(t - TAIL, 0), t + 1)
            tail = tracks.pixels[track, past[tracks.visible[track, past]]] - 0.5
            cv2.polylines(picture, [np.rint(tail).astype(np.int32)], False, color, 1, cv2.LINE_AA)
            cv2.circle(picture, np.rint(tail[-1]).astype(int).tolist(), 1, color, -1, cv2.LINE_AA)
        pictures.append(picture)
    captions = [f"frame {t}: {int(tracks.visible[:, t].sum())} tracks" for t in shown]
    return contact_sheet(pictures, captions, columns=3)
