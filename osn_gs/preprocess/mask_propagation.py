"""Carrying masks of several objects from key frames through a clip, without learned weights.

A frame is taken for layers: every object and the background, each moving in its own way. From one frame to the next a
layer is moved by a similarity that its SIFT features agree on, then by dense flow (DIS). Each pixel goes to the layer
that, so moved, shows what is seen there; colours decide where none does, because something has come into view. Both
directions of time are run and blended by the distance to the keys, so a key mends the frames on both sides of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from scipy.ndimage import gaussian_filter

from osn_gs.preprocess.features import detect_features
from osn_gs.preprocess.flow import dis_flow, one_opencv_thread
from osn_gs.preprocess.progress import Progress, no_progress

WORKING_SIDE = 640  # pixels of the longer side at which masks are carried; their borders are then fitted to the frame
NUM_FEATURES = 4000
RATIO = 0.85  # of the best match's distance to the second best (Lowe 2004); RANSAC sorts out the rest
MATCH_ERROR = 8.0  # pixels off a similarity: flow takes over from there
FEWEST_MATCHES = 6
CLEAR_MATCHES = 10  # from here on no other start is tried
RETURN_MATCHES = 12  # to believe that a lost object is back
LARGEST_RESIDUAL = 50.0  # grey values; more is no worse
# Of a layer's log likelihood. Chosen on two synthetic sets with large motion; neighbours of these do about as well.
RESIDUAL_SCALE = 8.0  # grey values
UNCOVERED_PENALTY = 5.0  # where the moved layer has nothing
UNLIKELY_COLOUR = -3.0  # of a colour that the object's keys hardly show
EXPLAINED_DECAY = 0.35  # how fast trust in motion falls with the best layer's log likelihood
LOCAL_COLOUR_RADIUS = 15.0  # pixels
LOCAL_COLOUR_FLOOR = -6.0
COLOUR_BINS = 16  # per channel
SMOOTHING_RADIUS, SMOOTHING_EPS = 4, 1e-3  # guided filter (He et al. 2010)
SMALLEST_MASK = 20  # pixels: less is noise of warping
SPECK_SHARE = 0.05  # parts smaller than this share of the largest are dropped
DEEPEST = 16.0  # pixels from the border at which one direction cannot be outvoted more strongly

Masks = Bool[np.ndarray, "k h w"]
KeyMasks = Mapping[tuple[int, int], Bool[np.ndarray, "h w"]]
"""Masks by (frame, object id)."""


@dataclass(frozen=True)
class View:
    """One frame at working size; `points` are its features in OpenCV's integer pixel centres."""

    rgb: UInt8[np.ndarray, "h w 3"]
    grey: UInt8[np.ndarray, "h w"]
    points: Float32[np.ndarray, "n 2"]
    descriptors: Float32[np.ndarray, "n 128"]


@dataclass(frozen=True)
class MovedLayer:
    """A layer as the next frame would show it: `residual` (grey values, smoothed) and `coverage` in [0, 1]."""

    residual: Float32[np.ndarray, "h w"]
    coverage: Float32[np.ndarray, "h w"]

    def misfit(self, area: int) -> float:
        """Mean residual over what it covers; a layer that has mostly left (of `area` pixels) is not trusted."""
        covered = float(self.coverage.sum())
        mean = float((self.residual * self.coverage).sum()) / max(covered, 1.0)
        return mean + (20.0 if covered < 0.3 * area else 0.0)


@dataclass(frozen=True)
class Sweep:
    """Masks carried through the clip in one direction; `distances` in frames to the last key, inf before the first."""

    masks: Bool[np.ndarray, "t k h w"]
    distances: Float[np.ndarray, "t k"]


def propagate(
    images: UInt8[np.ndarray, "t h w 3"], keys: KeyMasks, num_objects: int, progress: Progress = no_progress
) -> UInt8[np.ndarray, "t h w"]:
    """Object ids of all frames from masks of some; where masks overlap, the smaller object is taken to be in front."""
    frames = range(len(images))
    total = 3 * len(images)
    with one_opencv_thread():
        views = []
        for frame in frames:
            views.append(_view(images[frame]))
            progress(frame + 1, total)
        size = views[0].grey.shape[::-1]
        small_keys = {key: _resized(mask, size) for key, mask in keys.items()}
        colours = _key_colours(views, small_keys, num_objects)
        forward = _sweep(views, small_keys, colours, frames, lambda done: progress(len(images) + done, total))
        backward = _sweep(
            views, small_keys, colours, frames[::-1], lambda done: progress(2 * len(images) + done, total)
        )
        ids = np.zeros(images.shape[:3], np.uint8)
        for frame in frames:
            masks = []
            for k in range(num_objects):
                key = keys.get((frame, k + 1))
                masks.append(_enlarged(_blend(forward, backward, frame, k), images[frame]) if key is None else key)
            ids[frame] = ids_from_masks(masks)
    return ids


def ids_from_masks(masks: Sequence[Bool[np.ndarray, "h w"]]) -> UInt8[np.ndarray, "h w"]:
    """Mask k as id k + 1; where masks overlap the smaller one wins, since what lies within another is before it."""
    ids = np.zeros(masks[0].shape, np.uint8)
    for k in sorted(range(len(masks)), key=lambda k: -np.count_nonzero(masks[k])):
        ids[masks[k]] = k + 1
    return ids


def without_specks(
    mask: Bool[np.ndarray, "h w"], kept_points: Sequence[tuple[float, float]] = ()
) -> Bool[np.ndarray, "h w"]:
    """A mask without thin bridges and without parts much smaller than its largest, but for those under a point."""
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(opened, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    kept = areas > SPECK_SHARE * areas.max()
    for x, y in kept_points:
        kept[labels[int(y), int(x)]] = True
    kept[0] = False
    return kept[labels] if count > 1 else opened.astype(bool)


def _view(image: UInt8[np.ndarray, "h w 3"]) -> View:
    height, width = image.shape[:2]
    scale = min(1.0, WORKING_SIDE / max(height, width))
    if scale < 1:
        image = cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    features = detect_features(grey, NUM_FEATURES)
    return View(image, grey, (features.pixels - 0.5).astype(np.float32), features.descriptors)


def _sweep(
    views: Sequence[View],
    keys: KeyMasks,
    colours: Float32[np.ndarray, "layers r g b"],
    frames: range,
    tell: Callable[[int], None],
) -> Sweep:
    """Carry masks from each of `frames` to the next, beginning anew at every key."""
    num_objects = len(colours) - 1
    masks = np.zeros((len(views), num_objects, *views[0].grey.shape), bool)
    distances = np.full((len(views), num_objects), np.inf)
    last_seen: dict[int, int] = {}  # the last key that shows an object
    previous = None
    for done, frame in enumerate(frames, 1):
        if previous is not None and last_seen:
            lost = {k: key for k, key in last_seen.items() if np.count_nonzero(masks[previous, k]) < SMALLEST_MASK}
            remembered = {k: (views[key], keys[key, k + 1]) for k, key in lost.items()}
            masks[frame] = carry_masks(views[previous], views[frame], masks[previous], remembered, colours)
            distances[frame] = distances[previous] + 1
        for k in range(num_objects):
            if (frame, k + 1) in keys:
                masks[frame, k], distances[frame, k] = keys[frame, k + 1], 0
                last_seen.pop(k, None)  # a key that says "not here" ends the search
                if np.count_nonzero(masks[frame, k]) >= SMALLEST_MASK:
                    last_seen[k] = frame
        previous = frame
        tell(done)
    return Sweep(masks, distances)


def carry_masks(
    source: View,
    target: View,
    masks: Masks,
    remembered: Mapping[int, tuple[View, Bool[np.ndarray, "h w"]]],
    colours: Float32[np.ndarray, "layers r g b"],
) -> Masks:
    """Masks over `source` as masks over `target`.

    Args:
        source: the frame before (or after).
        target: the frame to cut up.
        masks: of every object over `source`.
        remembered: for objects that were lost, a frame that shows them and their mask there, by index in `masks`.
        colours: how likely each layer (background first) shows a colour.
    """
    background = ~masks.any(0)
    camera_motion, _ = _match_similarity(source, target, background)
    camera_motion = np.eye(2, 3) if camera_motion is None else camera_motion
    layers = [_move(source, target, background, camera_motion, is_background=True)]
    for k, mask in enumerate(masks):
        if k in remembered:
            layers.append(_returned_layer(*remembered[k], target))
        elif np.count_nonzero(mask) < SMALLEST_MASK:
            layers.append(None)
        else:
            layers.append(_object_layer(source, target, mask, camera_motion))
    labels = _label_pixels(target, layers, colours)
    carried = np.zeros_like(masks)
    for k in range(len(masks)):
        if layers[k + 1] is not None:
            carried[k] = without_specks(labels == k + 1)
    return carried


def _object_layer(
    source: View, target: View, mask: Bool[np.ndarray, "h w"], camera_motion: Float[np.ndarray, "2 3"]
) -> MovedLayer:
    """An object's layer under the best of a few guesses of its motion."""
    own, matches = _match_similarity(source, target, mask)
    starts = [] if own is None else [own]
    if matches < CLEAR_MATCHES:
        starts += [camera_motion, _match_template(source.grey, target.grey, mask)]
    moved = [_move(source, target, mask, start) for start in starts]
    return min(moved, key=lambda layer: layer.misfit(np.count_nonzero(mask)))


def _returned_layer(source: View, mask: Bool[np.ndarray, "h w"], target: View) -> MovedLayer | None:
    """The layer of an object that was lost, if features of the frame that shows it are there again."""
    motion, matches = _match_similarity(source, target, mask)
    return _move(source, target, mask, motion) if motion is not None and matches >= RETURN_MATCHES else None


def _match_similarity(
    source: View, target: View, mask: Bool[np.ndarray, "h w"]
) -> tuple[Float[np.ndarray, "2 3"] | None, int]:
    """Similarity from `source` to `target` that features within `mask` agree on, and how many; None for too few."""
    columns, rows = np.rint(source.points).astype(int).T
    chosen = np.flatnonzero(mask[np.minimum(rows, mask.shape[0] - 1), np.minimum(columns, mask.shape[1] - 1)])
    if len(chosen) < FEWEST_MATCHES or len(target.points) < 2:
        return None, 0
    nearest = cv2.BFMatcher().knnMatch(source.descriptors[chosen], target.descriptors, 2)
    pairs = [(best.queryIdx, best.trainIdx) for best, second in nearest if best.distance < RATIO * second.distance]
    if len(pairs) < FEWEST_MATCHES:
        return None, 0
    here, there = np.array(pairs).T
    cv2.setRNGSeed(0)
    similarity, inliers = cv2.estimateAffinePartial2D(
        source.points[chosen[here]], target.points[there], ransacReprojThreshold=MATCH_ERROR
    )
    count = 0 if similarity is None else int(inliers.sum())
    return (similarity, count) if count >= FEWEST_MATCHES else (None, 0)


def _match_template(
    source: UInt8[np.ndarray, "h w"], target: UInt8[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, "2 3"]:
    """The shift under which the object looks most alike: for those without features."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    reach = int(0.35 * max(bottom - top, right - left)) + 20
    first_row, first_column = max(top - reach, 0), max(left - reach, 0)
    searched = target[first_row : bottom + reach, first_column : right + reach].astype(np.float32)
    template = source[top:bottom, left:right].astype(np.float32)
    weights = mask[top:bottom, left:right].astype(np.float32)
    error = cv2.matchTemplate(searched, template, cv2.TM_SQDIFF, mask=weights)
    row, column = np.unravel_index(np.argmin(error), error.shape)
    return np.array([[1.0, 0.0, first_column + column - left], [0.0, 1.0, first_row + row - top]])


def _move(
    source: View,
    target: View,
    mask: Bool[np.ndarray, "h w"],
    similarity: Float[np.ndarray, "2 3"],
    is_background: bool = False,
) -> MovedLayer:
    """A layer of `source` moved to `target`: by a similarity (source to target), then by flow."""
    height, width = mask.shape
    window = np.s_[0:height, 0:width] if is_background else _window_about(mask, similarity)
    y, x = window[0].start, window[1].start
    here = np.ascontiguousarray(target.grey[window])
    size = here.shape[::-1]
    into_window = similarity - np.array([[0.0, 0.0, x], [0.0, 0.0, y]])
    there = cv2.warpAffine(source.grey, into_window, size, borderMode=cv2.BORDER_REPLICATE)
    flow = dis_flow(here, there)
    columns = np.arange(size[0], dtype=np.float32) + flow[..., 0]
    rows = np.arange(size[1], dtype=np.float32)[:, None] + flow[..., 1]
    inverse = cv2.invertAffineTransform(into_window).astype(np.float32)
    at = [row[0] * columns + row[1] * rows + row[2] for row in inverse]
    moved = cv2.remap(source.rgb, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    difference = np.abs(moved.astype(np.float32) - target.rgb[window]).mean(-1)
    # What comes into view at the image's rim is background.
    beyond = cv2.BORDER_REPLICATE if is_background else cv2.BORDER_CONSTANT
    covered = cv2.remap(mask.astype(np.float32), *at, cv2.INTER_LINEAR, borderMode=beyond)
    residual = np.full(mask.shape, LARGEST_RESIDUAL, np.float32)
    coverage = np.zeros(mask.shape, np.float32)
    residual[window] = cv2.GaussianBlur(np.minimum(difference, LARGEST_RESIDUAL), (0, 0), 2.0)
    coverage[window] = cv2.GaussianBlur(covered, (0, 0), 1.0)
    return MovedLayer(residual, coverage)


def _window_about(mask: Bool[np.ndarray, "h w"], similarity: Float[np.ndarray, "2 3"]) -> tuple[slice, slice]:
    """Rows and columns around a moved mask, with some room for flow; never so few that DIS cannot run."""
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    corners = np.array([(x, y, 1.0) for x in (columns[0], columns[-1]) for y in (rows[0], rows[-1])])
    moved = corners @ similarity.T
    room = 24 + 0.25 * np.ptp(moved, axis=0).max()
    spans = []
    for axis, length in ((1, height), (0, width)):
        first = int(np.clip(moved[:, axis].min() - room, 0, max(length - 2 * 24, 0)))
        last = int(np.clip(moved[:, axis].max() + room + 1, min(first + 2 * 24, length), length))
        spans.append(slice(first, last))
    return spans[0], spans[1]


def _label_pixels(
    target: View, layers: Sequence[MovedLayer | None], colours: Float32[np.ndarray, "layers r g b"]
) -> UInt8[np.ndarray, "h w"]:
    """The layer each pixel belongs to, 0 the background."""
    hidden = np.full(target.grey.shape, -np.inf, np.float32)
    motion = np.stack(
        [
            hidden if layer is None else -layer.residual / RESIDUAL_SCALE - UNCOVERED_PENALTY * (1 - layer.coverage)
            for layer in layers
        ]
    )
    scores = motion + _key_colour_scores(target.rgb, colours)
    explained = np.exp(EXPLAINED_DECAY * scores.max(0))  # 1 where a layer shows just what is seen
    local = _local_colour_scores(target.rgb, _softmax(scores), explained)
    shares = _softmax(scores * explained + local * (1 - 0.7 * explained))
    guide = target.grey.astype(np.float32) / 255
    return np.stack([guided_filter(guide, share) for share in shares]).argmax(0).astype(np.uint8)


def _softmax(scores: Float32[np.ndarray, "layers h w"]) -> Float32[np.ndarray, "layers h w"]:
    shares = np.exp(scores - scores.max(0))
    return shares / shares.sum(0)


def _key_colours(views: Sequence[View], keys: KeyMasks, num_objects: int) -> Float32[np.ndarray, "layers r g b"]:
    """Colour histograms (each sums to about 1) of the background and every object, from the frames with keys."""
    counts = np.zeros((num_objects + 1, COLOUR_BINS, COLOUR_BINS, COLOUR_BINS))
    for frame in sorted({frame for frame, _ in keys}):
        masks = {object_id: mask for (at, object_id), mask in keys.items() if at == frame}
        # An object without a key here cannot be told from the background.
        layers = {0: ~np.any(list(masks.values()), axis=0), **masks}
        binned = _colour_bins(views[frame].rgb)
        for layer, mask in layers.items():
            np.add.at(counts[layer], tuple(binned[mask].T), 1)
    likelihoods = [gaussian_filter(count / max(count.sum(), 1.0), 0.7) for count in counts]
    return np.array(likelihoods, np.float32) + np.float32(2e-5)


def _colour_bins(rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    return (rgb // (256 // COLOUR_BINS)).astype(np.uint8)


def _key_colour_scores(
    rgb: UInt8[np.ndarray, "h w 3"], colours: Float32[np.ndarray, "layers r g b"]
) -> Float32[np.ndarray, "layers h w"]:
    """Log likelihood of each layer for each pixel's colour, against the likeliest: what the keys know, so no drift."""
    red, green, blue = np.moveaxis(_colour_bins(cv2.GaussianBlur(rgb, (0, 0), 1.0)), -1, 0)
    scores = np.log(colours[:, red, green, blue])
    scores = np.maximum(scores - scores.max(0), UNLIKELY_COLOUR)
    return np.stack([cv2.GaussianBlur(score, (0, 0), 2.0) for score in scores])


def _local_colour_scores(
    rgb: UInt8[np.ndarray, "h w 3"], shares: Float32[np.ndarray, "layers h w"], trust: Float32[np.ndarray, "h w"]
) -> Float32[np.ndarray, "layers h w"]:
    """Log likelihood of each layer's colours in the neighbourhood (a Gaussian in CIELAB), against the likeliest."""
    lab = cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB).astype(np.float32)
    scores = []
    for share in shares:
        weight = np.where(share > 0.9, trust, 0).astype(np.float32)
        moments = np.dstack([weight[..., None], lab * weight[..., None], lab**2 * weight[..., None]])
        moments = _wide_blur(moments)
        total = moments[..., :1] + 1e-4
        mean = moments[..., 1:4] / total
        variance = np.maximum(moments[..., 4:] / total - mean**2, 0) + 36.0  # 6 steps of noise at least
        score = -0.5 * ((lab - mean) ** 2 / variance + np.log(variance)).sum(-1)
        scores.append(np.where(total[..., 0] > 0.003, score, -30.0))
    stacked = np.stack(scores)
    return np.maximum(stacked - stacked.max(0), LOCAL_COLOUR_FLOOR).astype(np.float32)


def _wide_blur(image: Float32[np.ndarray, "h w c"]) -> Float32[np.ndarray, "h w c"]:
    """Gaussian blur of `LOCAL_COLOUR_RADIUS`, at a quarter of the size: nothing fine survives it anyway."""
    height, width = image.shape[:2]
    size = max(width // 4, 1), max(height // 4, 1)
    channels = []
    for channel in cv2.split(image):  # together they are too many for OpenCV's reduction by area
        small = cv2.GaussianBlur(
            cv2.resize(channel, size, interpolation=cv2.INTER_AREA), (0, 0), LOCAL_COLOUR_RADIUS / 4
        )
        channels.append(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))
    return np.dstack(channels)


def guided_filter(guide: Float32[np.ndarray, "h w"], values: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Smooth `values` so that they change where `guide` (in [0, 1]) does (He et al. 2010)."""

    def mean(image: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
        return cv2.blur(image, (2 * SMOOTHING_RADIUS + 1,) * 2)

    values = values.astype(np.float32)
    guide_mean, values_mean = mean(guide), mean(values)
    slope = (mean(guide * values) - guide_mean * values_mean) / (mean(guide**2) - guide_mean**2 + SMOOTHING_EPS)
    return mean(slope) * guide + mean(values_mean - slope * guide_mean)


def _blend(forward: Sweep, backward: Sweep, frame: int, k: int) -> Float32[np.ndarray, "h w"]:
    """Signed distance in pixels from the border, positive inside: both directions, the nearer key counting more."""
    ahead, behind = forward.distances[frame, k], backward.distances[frame, k]
    if np.isinf(behind):
        return _signed_depth(forward.masks[frame, k])
    if np.isinf(ahead):
        return _signed_depth(backward.masks[frame, k])
    share = behind / max(ahead + behind, 1)
    return share * _signed_depth(forward.masks[frame, k]) + (1 - share) * _signed_depth(backward.masks[frame, k])


def _signed_depth(mask: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    inside = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    outside = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)
    return np.clip(inside, 0, DEEPEST) - np.clip(outside, 0, DEEPEST)


def _resized(mask: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> Bool[np.ndarray, "h2 w2"]:
    return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5


def _enlarged(depth: Float32[np.ndarray, "h2 w2"], image: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """The inside of a border found at working size, fitted to the frame's edges where that is larger."""
    height, width = image.shape[:2]
    if depth.shape == (height, width):
        return depth > 0
    soft = np.clip(cv2.resize(depth, (width, height)) + 0.5, 0, 1)
    guide = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    return guided_filter(guide, soft) > 0.5
