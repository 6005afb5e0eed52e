"""The tracks step: points followed over the clip on every object, by flow and by finding their patches again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from osn_gs.errors import ConfigError
from osn_gs.preprocess.flow import FlowField, image_flow, object_flow, one_opencv_thread, sample_bilinear
from osn_gs.preprocess.patch_alignment import Patches, align_patches, cut_patches
from osn_gs.preprocess.progress import Progress, no_progress
from osn_gs.preprocess.tracks import Tracks
from osn_gs.threads import num_threads

BACKGROUND = 0
PATCH_RADIUS = 7  # pixels
BLUR = 0.7  # pixels; less noise and aliasing in the patches
BORDER = 2  # pixels that masks are shrunk by where two ids meet: there the flow mixes both motions
FEWEST_PIXELS = 30  # an object smaller than this in a frame is not followed there
SEEDS_WANTED = 1500  # points of one object alive at a time
SPACING_LIMITS = (3.0, 12.0)  # pixels between points
TEXTURE_PERCENTILE = 20  # of the object's pixels, by their smaller gradient eigenvalue; below nothing can be followed


@dataclass(frozen=True)
class TracksConfig:
    """How many points are followed, and how sure one must be."""

    spacing: float | None = None
    """Pixels between followed points; by default by the object's size."""
    tracks_per_object: int = 1500
    """About so many tracks are kept of every object, spread over frames and over the object."""
    shortest: int = 3
    """Tracks seen in fewer frames are dropped."""

    def __post_init__(self) -> None:
        if self.spacing is not None and not self.spacing >= 1:
            raise ConfigError(f"tracks.spacing must be at least 1 pixel, got {self.spacing}.")
        if self.tracks_per_object < 50:
            raise ConfigError(f"tracks.tracks_per_object must be at least 50, got {self.tracks_per_object}.")
        if self.shortest < 2:
            raise ConfigError(f"tracks.shortest must be at least 2 frames, got {self.shortest}.")


def track_points(
    images: UInt8[np.ndarray, "t h w 3"],
    object_ids: UInt8[np.ndarray, "t h w"],
    config: TracksConfig,
    progress: Progress = no_progress,
) -> Tracks:
    """Follow points of every object through the clip, forwards and backwards in time."""
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images]
    smooth = [cv2.GaussianBlur(image.astype(np.float32), (0, 0), BLUR) for image in grey]
    num_objects = int(object_ids.max()) + 1
    kept = []
    with one_opencv_thread(), ThreadPoolExecutor(num_threads()) as pool:
        for k in range(num_objects):
            clip = _ObjectClip.of(k, grey, smooth, object_ids, pool)
            directions = list(pool.map(lambda c: _follow(c, config), (clip, clip.reversed())))
            forward, backward = directions[0], _reverse_time(directions[1])
            both = Tracks(
                np.concatenate([forward.pixels, backward.pixels]),
                np.concatenate([forward.visible, backward.visible]),
                np.concatenate([forward.object_ids, backward.object_ids]),
            )
            kept.append(both.select(choose_tracks(both, config.tracks_per_object)))
            progress(k + 1, num_objects)
    return Tracks(
        np.concatenate([tracks.pixels for tracks in kept]),
        np.concatenate([tracks.visible for tracks in kept]),
        np.concatenate([tracks.object_ids for tracks in kept]),
    )


@dataclass(frozen=True)
class _ObjectClip:
    """What following one object's points needs: images, where the object is, and the flow between neighbours.

    `flow_on[t]` goes from frame t to t + 1, `flow_back[t]` from t + 1 to t; None where the object is out of sight.
    """

    object_id: int
    images: list[Float[np.ndarray, "h w"]]
    masks: list[Bool[np.ndarray, "h w"]]
    safe: list[Bool[np.ndarray, "h w"]]
    texture: list[Float[np.ndarray, "h w"]]
    flow_on: list[FlowField | None]
    flow_back: list[FlowField | None]

    @classmethod
    def of(cls, k: int, grey: list, smooth: list, object_ids: np.ndarray, pool: ThreadPoolExecutor) -> _ObjectClip:
        masks = [ids == k for ids in object_ids]
        safe = [mask & _away_from_borders(ids) for mask, ids in zip(masks, object_ids, strict=True)]
        texture = list(pool.map(lambda image: cv2.cornerMinEigenVal(image, 5), grey))

        def flow(pair: tuple[int, int]) -> FlowField | None:
            first, second = pair
            if min(masks[first].sum(), masks[second].sum()) < FEWEST_PIXELS:
                return None
            if k == BACKGROUND:
                return image_flow(grey[first], grey[second])
            return object_flow(grey[first], grey[second], masks[first], masks[second])

        steps = range(len(grey) - 1)
        flow_on = list(pool.map(flow, ((t, t + 1) for t in steps)))
        flow_back = list(pool.map(flow, ((t + 1, t) for t in steps)))
        return cls(k, smooth, masks, safe, texture, flow_on, flow_back)

    def reversed(self) -> _ObjectClip:
        """The same clip played backwards."""
        return _ObjectClip(
            self.object_id,
            self.images[::-1],
            self.masks[::-1],
            self.safe[::-1],
            self.texture[::-1],
            self.flow_back[::-1],
            self.flow_on[::-1],
        )


def _away_from_borders(ids: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Pixels with no other id within `BORDER`."""
    kernel = np.ones((2 * BORDER + 1,) * 2, np.uint8)
    return cv2.dilate(ids, kernel) == cv2.erode(ids, kernel)


def _reverse_time(tracks: Tracks) -> Tracks:
    return Tracks(tracks.pixels[:, ::-1], tracks.visible[:, ::-1], tracks.object_ids)


@dataclass
class _Alive:
    """Points being followed: where they are now and how their patch has been warped since it was taken."""

    numbers: Int[np.ndarray, "n"]
    pixels: Float[np.ndarray, "n 2"]
    warps: Float[np.ndarray, "n 2 2"]
    patches: Patches

    def select(self, chosen: np.ndarray) -> _Alive:
        return _Alive(self.numbers[chosen], self.pixels[chosen], self.warps[chosen], self.patches.select(chosen))

    def append(self, other: _Alive) -> _Alive:
        return _Alive(
            np.concatenate([self.numbers, other.numbers]),
            np.concatenate([self.pixels, other.pixels]),
            np.concatenate([self.warps, other.warps]),
            self.patches.append(other.patches),
        )


def _follow(clip: _ObjectClip, config: TracksConfig) -> Tracks:
    """Tracks of one object forwards in time; points begin wherever none is near."""
    num_frames = len(clip.images)
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    alive: _Alive | None = None
    count = 0
    for t in range(num_frames):
        seeds = _seed(clip, t, alive.pixels if alive is not None else np.zeros((0, 2)), config)
        fresh = _Alive(
            np.arange(count, count + len(seeds)),
            seeds,
            np.tile(np.eye(2), (len(seeds), 1, 1)),
            cut_patches(clip.images[t], clip.masks[t], seeds, PATCH_RADIUS),
        )
        count += len(seeds)
        alive = fresh if alive is None else alive.append(fresh)
        seen.append((alive.numbers, alive.pixels))
        if t + 1 < num_frames:
            alive = _step(clip, t, alive)
    pixels, visible = np.zeros((count, num_frames, 2)), np.zeros((count, num_frames), bool)
    for t, (numbers, places) in enumerate(seen):
        pixels[numbers, t], visible[numbers, t] = places, True
    long_enough = visible.sum(1) >= config.shortest
    return Tracks(pixels[long_enough], visible[long_enough], np.full(long_enough.sum(), clip.object_id))


def _seed(clip: _ObjectClip, t: int, taken: Float[np.ndarray, "n 2"], config: TracksConfig) -> Float[np.ndarray, "m 2"]:
    """The best textured pixel of every cell of a grid over the object that has no point yet."""
    safe, texture = clip.safe[t], clip.texture[t]
    if safe.sum() < FEWEST_PIXELS:
        return np.zeros((0, 2))
    spacing = config.spacing or float(np.clip(np.sqrt(safe.sum() / SEEDS_WANTED), *SPACING_LIMITS))
    good = safe & (texture > np.percentile(texture[safe], TEXTURE_PERCENTILE))
    rows, columns = np.nonzero(good)
    order = np.argsort(-texture[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    across = int(safe.shape[1] / spacing) + 1
    cells = (rows / spacing).astype(int) * across + (columns / spacing).astype(int)
    cells, first = np.unique(cells, return_index=True)
    occupied = (taken[:, 1] / spacing).astype(int) * across + (taken[:, 0] / spacing).astype(int)
    free = ~np.isin(cells, occupied)
    return np.stack([columns[first[free]], rows[first[free]]], -1) + 0.5


def _step(clip: _ObjectClip, t: int, alive: _Alive) -> _Alive:
    """Take points from frame t to t + 1; those that cannot be trusted there end."""
    if clip.flow_on[t] is None:
        return alive.select(np.zeros(len(alive.pixels), bool))
    image = clip.images[t + 1]
    moved = clip.flow_on[t].at(alive.pixels)
    predicted = alive.pixels + moved
    back = clip.flow_back[t].at(predicted)
    closed = np.linalg.norm(moved + back, axis=1)
    consistent = closed < 0.7 + 0.03 * (np.linalg.norm(moved, axis=1) + np.linalg.norm(back, axis=1))
    alive, predicted = alive.select(consistent), predicted[consistent]

    found = align_patches(alive.patches, image, predicted, alive.warps)
    trusted = (
        (np.linalg.norm(found.pixels - predicted, axis=1) < 1.5) & (found.similarity > 0.8) & _plausible(found.warps)
    )
    pixels, warps, patches = found.pixels.copy(), found.warps.copy(), alive.patches
    lost = ~trusted
    if lost.any():
        fresh = cut_patches(clip.images[t], clip.masks[t], alive.pixels[lost], PATCH_RADIUS)
        again = align_patches(fresh, image, predicted[lost], np.tile(np.eye(2), (lost.sum(), 1, 1)))
        trusted[lost] = (
            (np.linalg.norm(again.pixels - predicted[lost], axis=1) < 1.5)
            & (again.similarity > 0.8)
            & _plausible(again.warps)
        )
        pixels[lost], warps[lost], patches = again.pixels, again.warps, patches.replace(lost, fresh)
    height, width = image.shape
    trusted &= (pixels > 0).all(1) & (pixels[:, 0] < width) & (pixels[:, 1] < height)
    inside = np.clip(pixels, 0, [width - 1, height - 1]).astype(int)
    trusted &= clip.safe[t + 1][inside[:, 1], inside[:, 0]]
    return _Alive(alive.numbers, pixels, warps, patches).select(trusted)


def _plausible(warps: Float[np.ndarray, "n 2 2"]) -> Bool[np.ndarray, "n"]:
    """Whether a patch was stretched by no more than 2 in any direction, and not turned over."""
    stretch = np.linalg.svd(warps, compute_uv=False)
    return (stretch[:, 0] < 2) & (stretch[:, 1] > 0.5) & (np.linalg.det(warps) > 0)


GRID = (12, 8)  # cells over the object's box, for the quotas


def choose_tracks(tracks: Tracks, wanted: int) -> Int[np.ndarray, "m"]:
    """About `wanted` tracks of one object that cover every frame and every part of the object; longest first.

    A track is kept while at least a third of the (frame, cell of the object's box) it visits are short of tracks.
    """
    lengths = tracks.visible.sum(1)
    cells = _cells(tracks)
    order = np.argsort(-lengths, kind="stable")
    chosen = np.zeros(0, int)
    for quota in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64):
        counts = np.zeros((tracks.num_frames, GRID[0] * GRID[1]), int)
        kept = []
        for i in order:
            frames = np.flatnonzero(tracks.visible[i])
            visited = cells[i, frames]
            if (counts[frames, visited] < quota).mean() > 1 / 3:
                kept.append(i)
                counts[frames, visited] += 1
        chosen = np.array(kept, int)
        if len(chosen) >= wanted:
            break
    return np.sort(chosen)


def _cells(tracks: Tracks) -> Int[np.ndarray, "n t"]:
    """The cell of the object's box, at each frame, in which every track is."""
    cells = np.zeros(tracks.visible.shape, int)
    for t in range(tracks.num_frames):
        seen = tracks.visible[:, t]
        if seen.any():
            places = tracks.pixels[seen, t]
            low, high = np.percentile(places, 1, axis=0), np.percentile(places, 99, axis=0)
            grid = np.clip((places - low) / np.maximum(high - low, 1e-6) * GRID, 0, np.array(GRID) - 1).astype(int)
            cells[seen, t] = grid[:, 1] * GRID[0] + grid[:, 0]
    return cells
