"""The tracks step: points followed over the clip on every object, by flow and by finding their patches again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.spatial import cKDTree

from osn_gs.errors import ConfigError
from osn_gs.preprocess.feature_matches import track_features
from osn_gs.preprocess.features import Features, detect_features
from osn_gs.preprocess.flow import FlowField, image_flow, object_flow, one_opencv_thread
from osn_gs.preprocess.patch_alignment import Alignment, Patches, align_patches, cut_patches, plausible_warps
from osn_gs.preprocess.progress import Progress, no_progress
from osn_gs.preprocess.rigid_motion import agrees_with_rigid_motion
from osn_gs.preprocess.sfm.balanced import balanced_subset
from osn_gs.preprocess.tracks import Tracks
from osn_gs.threads import num_threads

FEATURES = 2000  # an image

BACKGROUND = 0
BLUR = 0.7  # pixels; less noise and aliasing in the patches
BORDER = 2  # pixels from where two ids meet that no point comes: there the flow mixes both motions
PURE_BORDER = 1  # the same for the pixels of patches: nearer, blur and gradient mix both looks
FEWEST_PIXELS = 30  # an object smaller than this in a frame is not followed there
SEEDS_WANTED = 800  # points of one object alive at a time
SPACING_LIMITS = (2.5, 12.0)  # pixels between points
TEXTURE_PERCENTILE = 20  # of the object's pixels, by their smaller gradient eigenvalue; below nothing can be followed
LEAST_TEXTURE = 1e-5  # what noise of one grey level makes; where there is less, flow says what its surroundings do
TEXTURE_WINDOW, TEXTURE_REACH = 5, 3  # pixels a side, and how far from a pixel its texture is judged
FLOW_ERROR, RELATIVE_FLOW_ERROR = 0.7, 0.03  # pixels, and share of the motion, that flow there and back may miss by
SURE_FLOW_ERROR = 0.35  # the same in pixels where no patch is found
LARGEST_CORRECTION = 1.5  # pixels between the flow's prediction and where the patch is found
LOST_FRAMES = 12  # frames for which a lost point is looked for
SURE_SIMILARITY = 0.95  # of a lost point that is found again
NEIGHBOURS = 12  # points whose motion tells where a lost one should be
FEW_IN_VIEW = 50  # tracks in the median frame; an object with fewer is followed again, less strictly


@dataclass(frozen=True)
class TracksConfig:
    """How many points are followed."""

    spacing: float | None = None
    """Pixels between followed points; by default by the object's size."""
    per_object: int = 1500
    """About so many tracks are kept of every object, spread over frames and over the object."""
    shortest: int = 3
    """Tracks seen in fewer frames are dropped."""

    def __post_init__(self) -> None:
        if self.spacing is not None and not self.spacing >= 1:
            raise ConfigError(f"tracks.spacing is {self.spacing:g}; expected at least 1 pixel.")
        if self.per_object < 50:
            raise ConfigError(f"tracks.per_object is {self.per_object}; expected at least 50.")
        if self.shortest < 2:
            raise ConfigError(f"tracks.shortest is {self.shortest}; expected at least 2 frames.")


def track_points(
    images: UInt8[np.ndarray, "t h w 3"],
    object_ids: UInt8[np.ndarray, "t h w"],
    config: TracksConfig,
    progress: Progress = no_progress,
) -> Tracks:
    """Follow points of every object through the clip, forwards and backwards in time, and match its features.

    The result does not depend on the number of threads.
    """
    num_objects = int(object_ids.max()) + 1
    kept = []
    with one_opencv_thread(), ThreadPoolExecutor(num_threads()) as pool:
        looks = list(pool.map(_Look.of, images))
        pairs = [(t, t + 1) for t in range(len(looks) - 1)]
        image_flows = [
            list(pool.map(lambda pair: image_flow(looks[pair[0]].grey, looks[pair[1]].grey), directed))
            for directed in (pairs, [pair[::-1] for pair in pairs])
        ]
        total = 3 * num_objects
        for k in range(num_objects):
            clip = _object_clip(k, looks, image_flows, object_ids, pool)
            progress(3 * k + 1, total)
            candidates = _candidates(clip, looks, config, pool)
            progress(3 * k + 2, total)
            kept.append(candidates.select(balanced_subset(candidates.pixels, candidates.visible, config.per_object)))
            progress(3 * k + 3, total)
    return _together(kept)


def _candidates(clip: _ObjectClip, looks: list[_Look], config: TracksConfig, pool: ThreadPoolExecutor) -> Tracks:
    """All tracks of one object that are long enough and move together; where they are few, leniently followed too."""
    features = pool.submit(_feature_tracks, clip, looks)
    tracks = _usable([*_both_ways(clip, config, pool), features.result()], config)
    shown = [pure.sum() >= FEWEST_PIXELS for pure in clip.pure]
    if any(shown) and np.median(tracks.visible.sum(0)[shown]) < FEW_IN_VIEW:
        tracks = _together([tracks, _usable(_both_ways(replace(clip, manner=LENIENT), config, pool), config)])
    return tracks


def _usable(parts: list[Tracks], config: TracksConfig) -> Tracks:
    tracks = _together(parts)
    tracks = tracks.select(tracks.visible.sum(1) >= config.shortest)
    return tracks.select(agrees_with_rigid_motion(tracks))


def _both_ways(clip: _ObjectClip, config: TracksConfig, pool: ThreadPoolExecutor) -> list[Tracks]:
    forward, backward = pool.map(lambda played: _follow(played, config), (clip, clip.backwards()))
    return [forward, Tracks(backward.pixels[:, ::-1], backward.visible[:, ::-1], backward.object_ids)]


def _feature_tracks(clip: _ObjectClip, looks: list[_Look]) -> Tracks:
    features = [look.features.inside(safe) for look, safe in zip(looks, clip.safe, strict=True)]
    return track_features(features, clip.images, clip.pure, clip.object_id, clip.manner.patch_radius)


def _together(parts: list[Tracks]) -> Tracks:
    return Tracks(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("pixels", "visible", "object_ids")))


@dataclass(frozen=True)
class _Look:
    """One frame in the forms that tracking needs."""

    grey: UInt8[np.ndarray, "h w"]
    channels: Float[np.ndarray, "3 h w"]
    """Lightly smoothed brightness and two colour differences. White highlights, which wander over a surface, add to
    the brightness alone."""
    texture: Float[np.ndarray, "h w"]
    """Smaller eigenvalue of the gradients around a pixel (Shi and Tomasi 1994)."""
    features: Features

    @classmethod
    def of(cls, image: UInt8[np.ndarray, "h w 3"]) -> _Look:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        red, green, blue = np.moveaxis(cv2.GaussianBlur(image.astype(np.float32), (0, 0), BLUR), -1, 0)
        brightness = 0.299 * red + 0.587 * green + 0.114 * blue
        channels = np.stack([brightness, red - green, (red + green) / 2 - blue])
        return cls(grey, channels, cv2.cornerMinEigenVal(grey, TEXTURE_WINDOW), detect_features(grey, FEATURES))


@dataclass(frozen=True)
class _Manner:
    """How points are followed."""

    patch_radius: int
    """In pixels."""
    least_similarity: float
    """Of a patch and where it is found."""
    flow_alone: bool
    """Points of every texture begin, and go where the flow takes them if their patch is not found there."""


# Larger patches reach over edges within the object and drift more. Where little is found they find most.
STRICT = _Manner(patch_radius=4, least_similarity=0.9, flow_alone=False)
LENIENT = _Manner(patch_radius=9, least_similarity=0.8, flow_alone=True)


@dataclass(frozen=True)
class _ObjectClip:
    """What following one object's points needs: images, where the object is, and the flow between neighbours.

    `pure` are the object's pixels that show nothing else, `safe` those where its points may be.
    `flows_on[t]` go from frame t to t + 1, `flows_back[t]` from t + 1 to t: one or two opinions, none where the
    object is out of sight.
    """

    object_id: int
    images: list[Float[np.ndarray, "3 h w"]]
    pure: list[Bool[np.ndarray, "h w"]]
    safe: list[Bool[np.ndarray, "h w"]]
    texture: list[Float[np.ndarray, "h w"]]
    flows_on: list[list[FlowField]]
    flows_back: list[list[FlowField]]
    manner: _Manner

    def backwards(self) -> _ObjectClip:
        """The same clip with time reversed."""
        return _ObjectClip(
            self.object_id,
            self.images[::-1],
            self.pure[::-1],
            self.safe[::-1],
            self.texture[::-1],
            self.flows_back[::-1],
            self.flows_on[::-1],
            self.manner,
        )


def _object_clip(
    k: int,
    looks: list[_Look],
    image_flows: list[list[FlowField]],
    object_ids: UInt8[np.ndarray, "t h w"],
    pool: ThreadPoolExecutor,
) -> _ObjectClip:
    """One object's clip; `image_flows` are those of whole images, on and back."""
    masks = [ids == k for ids in object_ids]
    pure, safe = (
        [mask & _away_from_borders(ids, border) for mask, ids in zip(masks, object_ids, strict=True)]
        for border in (PURE_BORDER, BORDER)
    )

    def flows(pair: tuple[int, int]) -> list[FlowField]:
        a, b = pair
        if min(masks[a].sum(), masks[b].sum()) < FEWEST_PIXELS:
            return []
        of_image = image_flows[0][a] if a < b else image_flows[1][b]
        if k == BACKGROUND:
            return [of_image]
        return [of_image, object_flow(looks[a].grey, looks[b].grey, masks[a], masks[b])]

    steps = range(len(looks) - 1)
    return _ObjectClip(
        k,
        [look.channels for look in looks],
        pure,
        safe,
        [look.texture for look in looks],
        list(pool.map(flows, ((t, t + 1) for t in steps))),
        list(pool.map(flows, ((t + 1, t) for t in steps))),
        STRICT,
    )


def _away_from_borders(ids: UInt8[np.ndarray, "h w"], border: int) -> Bool[np.ndarray, "h w"]:
    """Pixels with no other id within `border` pixels."""
    kernel = np.ones((2 * border + 1,) * 2, np.uint8)
    return cv2.dilate(ids, kernel) == cv2.erode(ids, kernel)


@dataclass(frozen=True)
class _Points:
    """Points where they were last seen (in frame `seen`) and how their patch had been warped since it was taken."""

    numbers: Int[np.ndarray, "n"]
    seen: Int[np.ndarray, "n"]
    pixels: Float[np.ndarray, "n 2"]
    warps: Float[np.ndarray, "n 2 2"]
    patches: Patches

    def __len__(self) -> int:
        return len(self.numbers)

    def select(self, chosen: np.ndarray) -> _Points:
        return _Points(
            self.numbers[chosen],
            self.seen[chosen],
            self.pixels[chosen],
            self.warps[chosen],
            self.patches.select(chosen),
        )

    def append(self, other: _Points) -> _Points:
        arrays = ((getattr(self, name), getattr(other, name)) for name in ("numbers", "seen", "pixels", "warps"))
        return _Points(*(np.concatenate(pair) for pair in arrays), self.patches.append(other.patches))


def _follow(clip: _ObjectClip, config: TracksConfig) -> Tracks:
    """Tracks of one object forwards in time; points begin wherever none is near."""
    num_frames = len(clip.images)
    pixels, visible = np.zeros((0, num_frames, 2)), np.zeros((0, num_frames), bool)
    alive = lost = _new_points(clip, 0, np.zeros((0, 2)), 0)
    for t in range(num_frames):
        if t > 0:
            alive, just_lost = _step(clip, t - 1, alive)
            lost = lost.select(lost.seen >= t - LOST_FRAMES).append(just_lost)
            back, lost = _find_again(clip, t, lost, alive, pixels)
            alive = alive.append(back)
        fresh = _new_points(clip, t, _seed(clip, t, alive.pixels, config), len(pixels))
        alive = alive.append(fresh)
        pixels = np.concatenate([pixels, np.zeros((len(fresh), num_frames, 2))])
        visible = np.concatenate([visible, np.zeros((len(fresh), num_frames), bool)])
        pixels[alive.numbers, t], visible[alive.numbers, t] = alive.pixels, True
    return Tracks(pixels, visible, np.full(len(pixels), clip.object_id))


def _new_points(clip: _ObjectClip, t: int, pixels: Float[np.ndarray, "n 2"], first_number: int) -> _Points:
    count = len(pixels)
    return _Points(
        np.arange(first_number, first_number + count),
        np.full(count, t),
        pixels,
        np.tile(np.eye(2), (count, 1, 1)),
        cut_patches(clip.images[t], clip.pure[t], pixels, clip.manner.patch_radius),
    )


def _seed(clip: _ObjectClip, t: int, taken: Float[np.ndarray, "n 2"], config: TracksConfig) -> Float[np.ndarray, "m 2"]:
    """The best textured pixel of every cell of a grid over the object that has no point yet."""
    safe, texture = clip.safe[t], clip.texture[t]
    if safe.sum() < FEWEST_PIXELS:
        return np.zeros((0, 2))
    spacing = config.spacing or float(np.clip(np.sqrt(safe.sum() / SEEDS_WANTED), *SPACING_LIMITS))
    least_texture = np.percentile(texture[safe], TEXTURE_PERCENTILE)
    if clip.manner.flow_alone:  # few come through: begin with many, wherever the object itself has some texture
        spacing, least_texture = max(spacing / 2, SPACING_LIMITS[0]), LEAST_TEXTURE
        safe = cv2.erode(safe.astype(np.uint8), np.ones((2 * TEXTURE_REACH + 1,) * 2), borderValue=1) > 0
    rows, columns = np.nonzero(safe & (texture > least_texture))
    order = np.argsort(-texture[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    across = int(safe.shape[1] / spacing) + 1
    cells = (rows / spacing).astype(int) * across + (columns / spacing).astype(int)
    cells, first = np.unique(cells, return_index=True)
    occupied = (taken[:, 1] / spacing).astype(int) * across + (taken[:, 0] / spacing).astype(int)
    free = ~np.isin(cells, occupied)
    return np.stack([columns[first[free]], rows[first[free]]], -1) + 0.5


def _step(clip: _ObjectClip, t: int, alive: _Points) -> tuple[_Points, _Points]:
    """Take points from frame t to t + 1: those found there, and the others where they were."""
    if not clip.flows_on[t]:
        return alive.select(np.zeros(len(alive), bool)), alive
    moved, open_by, consistent = _flow_there_and_back(clip.flows_on[t], clip.flows_back[t], alive.pixels)
    lost, alive = alive.select(~consistent), alive.select(consistent)
    predicted, open_by = alive.pixels + moved[consistent], open_by[consistent]

    found = align_patches(alive.patches, clip.images[t + 1], clip.pure[t + 1], predicted, alive.warps)
    trusted = _trusted(found, predicted, clip.manner.least_similarity)
    pixels, warps, patches = found.pixels, found.warps, alive.patches
    if not trusted.all():  # the patch has changed too much: take it anew where the point is now
        changed = ~trusted
        fresh = cut_patches(clip.images[t], clip.pure[t], alive.pixels[changed], clip.manner.patch_radius)
        found = align_patches(
            fresh, clip.images[t + 1], clip.pure[t + 1], predicted[changed], np.tile(np.eye(2), (changed.sum(), 1, 1))
        )
        pixels[changed], warps[changed], patches = found.pixels, found.warps, patches.replace(changed, fresh)
        trusted[changed] = _trusted(found, predicted[changed], clip.manner.least_similarity)
    if clip.manner.flow_alone:
        carried = ~trusted & (open_by < SURE_FLOW_ERROR)
        pixels[carried], warps[carried] = predicted[carried], np.eye(2)
        trusted |= carried
    trusted &= _inside(clip.safe[t + 1], pixels)
    arrived = _Points(alive.numbers, np.full(len(alive), t + 1), pixels, warps, patches).select(trusted)
    return arrived, lost.append(alive.select(~trusted))


def _flow_there_and_back(
    on: list[FlowField], back: list[FlowField], pixels: Float[np.ndarray, "n 2"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
    """Of several flows, at each point the one most nearly undone by its way back.

    Its displacement, the pixels by which the way stays open, and whether that is little.
    """
    moved = np.stack([flow.at(pixels) for flow in on])
    returned = np.stack([flow.at(pixels + there) for flow, there in zip(back, moved, strict=True)])
    open_by = np.linalg.norm(moved + returned, axis=-1)
    chosen = open_by.argmin(0), np.arange(len(pixels))
    moved, returned, open_by = moved[chosen], returned[chosen], open_by[chosen]
    length = np.linalg.norm(moved, axis=1) + np.linalg.norm(returned, axis=1)
    return moved, open_by, open_by < FLOW_ERROR + RELATIVE_FLOW_ERROR * length


def _find_again(
    clip: _ObjectClip, t: int, lost: _Points, alive: _Points, pixels: Float[np.ndarray, "n t 2"]
) -> tuple[_Points, _Points]:
    """Look for lost points where the motion of their neighbours since then puts them: those found, those still lost.

    `alive` are the points of frame t, `pixels` all points' places before it.
    """
    found_pixels, found_warps = lost.pixels.copy(), lost.warps.copy()
    trusted = np.zeros(len(lost), bool)

    for seen in np.unique(lost.seen):
        here = np.flatnonzero(lost.seen == seen)
        before = pixels[alive.numbers, seen]
        known = before.any(1)
        if known.sum() < NEIGHBOURS:
            continue
        predicted, linear = _moved_like_neighbours(lost.pixels[here], before[known], alive.pixels[known])
        found = align_patches(
            lost.patches.select(here), clip.images[t], clip.pure[t], predicted, linear @ lost.warps[here]
        )
        trusted[here] = _trusted(found, predicted, SURE_SIMILARITY) & _inside(clip.safe[t], found.pixels)
        found_pixels[here], found_warps[here] = found.pixels, found.warps
    back = _Points(lost.numbers, np.full(len(lost), t), found_pixels, found_warps, lost.patches).select(trusted)
    return back, lost.select(~trusted)


def _moved_like_neighbours(
    pixels: Float[np.ndarray, "n 2"], before: Float[np.ndarray, "m 2"], after: Float[np.ndarray, "m 2"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2 2"]]:
    """Where points went, and the linear part of the motion there: affine motion of the nearest of m neighbours."""
    _, nearest = cKDTree(before).query(pixels, k=NEIGHBOURS)
    start, end = before[nearest], after[nearest]
    start_mean, end_mean = start.mean(1, keepdims=True), end.mean(1, keepdims=True)
    start, end = start - start_mean, end - end_mean
    spread = start.swapaxes(1, 2) @ start
    spread += np.eye(2) * (0.1 * np.trace(spread, axis1=1, axis2=2) + 1e-6)[:, None, None]
    linear = np.eye(2) + ((end - start).swapaxes(1, 2) @ start) @ np.linalg.inv(spread)
    return end_mean[:, 0] + (linear @ (pixels - start_mean[:, 0])[..., None])[..., 0], linear


def _trusted(found: Alignment, predicted: Float[np.ndarray, "n 2"], least_similarity: float) -> Bool[np.ndarray, "n"]:
    near = np.linalg.norm(found.pixels - predicted, axis=1) < LARGEST_CORRECTION
    return near & (found.similarity > least_similarity) & plausible_warps(found.warps)


def _inside(mask: Bool[np.ndarray, "h w"], pixels: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, "n"]:
    """Whether points lie in the image and in a mask."""
    height, width = mask.shape
    in_image = (pixels > 0).all(1) & (pixels[:, 0] < width) & (pixels[:, 1] < height)
    columns, rows = np.clip(pixels, 0, [width - 1, height - 1]).astype(int).T
    return in_image & mask[rows, columns]
