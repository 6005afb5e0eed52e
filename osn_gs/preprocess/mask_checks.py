"""What may be wrong with masks: objects that come and go, ids that change places, specks, holes, small objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Bool, Int, UInt8

from osn_gs.errors import DatasetError
from osn_gs.preprocess.object_names import title_of

FEWEST_FRAMES = 3  # in which an object must be seen: two views leave its motion to chance
SPECK_SHARE = 0.01  # of the object's pixels in a frame
SPECK_PIXELS = 12
SWITCH_OVERLAP = 0.5  # intersection over union
SMALL_WIDTH = 40  # pixels: motion is uncertain below, and cannot be found below 30
LARGE_SHARE = 0.5  # of all pixels: may be the background itself


@dataclass(frozen=True)
class ObjectFindings:
    """One object's masks over the clip.

    `frames` says how many show it, `gaps` the frames (first, last) where it is missing in between; `median_pixels` and
    `median_width` (square root of the box's area) are over the frames that show it; `specks` and `holes` count tiny
    loose parts and tiny openings in all frames.
    """

    frames: int
    gaps: tuple[tuple[int, int], ...]
    median_pixels: float
    median_width: float
    specks: int
    holes: int


@dataclass(frozen=True)
class IdSwitch:
    """In `frame` the object that had id `before` in the frame ahead of it lies where `after` now is."""

    frame: int
    before: int
    after: int


def examine_ids(object_ids: UInt8[np.ndarray, "t h w"], num_objects: int) -> tuple[ObjectFindings, ...]:
    """Findings on every object, the background (0) included."""
    return tuple(_examine_object(object_ids, k) for k in range(num_objects))


def _examine_object(object_ids: UInt8[np.ndarray, "t h w"], k: int) -> ObjectFindings:
    pixels, widths, specks, holes = [], [], 0, 0
    for ids in object_ids:
        mask = ids == k
        pixels.append(np.count_nonzero(mask))
        if pixels[-1] > 0:
            x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
            widths.append((width * height) ** 0.5)
            new_specks, new_holes = _count_tiny_parts(np.pad(mask[y : y + height, x : x + width], 1))
            specks, holes = specks + new_specks, holes + new_holes
    seen = np.array(pixels) > 0
    return ObjectFindings(
        frames=int(seen.sum()),
        gaps=find_gaps(seen),
        median_pixels=float(np.median(np.array(pixels)[seen])) if seen.any() else 0.0,
        median_width=float(np.median(widths)) if seen.any() else 0.0,
        specks=specks,
        holes=holes,
    )


def _count_tiny_parts(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int]:
    """Specks and holes of a mask that has a border of False around it."""
    limit = max(SPECK_PIXELS, SPECK_SHARE * np.count_nonzero(mask))
    # Diagonal neighbours hold a mask together, and so cannot hold what is around it together as well.
    _, _, parts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    _, _, openings, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    areas = np.sort(parts[1:, cv2.CC_STAT_AREA])[:-1]  # the largest part is the object, however small
    inside = openings[1:, cv2.CC_STAT_LEFT] > 0  # the surroundings reach the border
    return int((areas < limit).sum()), int((openings[1:, cv2.CC_STAT_AREA][inside] < limit).sum())


def find_gaps(seen: Bool[np.ndarray, "t"]) -> tuple[tuple[int, int], ...]:
    """First and last frame of every time that something is away and then back."""
    shown = np.flatnonzero(seen)
    return tuple((int(a) + 1, int(b) - 1) for a, b in pairwise(shown) if b > a + 1)


def find_switches(object_ids: UInt8[np.ndarray, "t h w"], num_objects: int) -> tuple[IdSwitch, ...]:
    """Where an object's place is taken by another id from one frame to the next.

    Motion is not looked at: what moves less than half its size between frames is judged, the rest is not.
    """
    switches = []
    for frame in range(1, len(object_ids)):
        overlap = _overlaps(object_ids[frame - 1], object_ids[frame], num_objects)
        stays = np.diagonal(overlap)
        for before in range(1, num_objects):
            after = 1 + int(np.argmax(overlap[before, 1:]))
            found = overlap[before, after]
            if after != before and found > SWITCH_OVERLAP and found > 2 * max(stays[before], stays[after]):
                switches.append(IdSwitch(frame, before, after))
    return tuple(switches)


def _overlaps(
    ids: UInt8[np.ndarray, "h w"], next_ids: UInt8[np.ndarray, "h w"], num_objects: int
) -> Int[np.ndarray, "k k"]:
    """Intersection over union of every object here with every object in the next frame."""
    both = np.bincount(ids.ravel().astype(np.int64) * num_objects + next_ids.ravel(), minlength=num_objects**2)
    both = both.reshape(num_objects, num_objects)
    union = both.sum(axis=1, keepdims=True) + both.sum(axis=0, keepdims=True) - both
    return both / np.maximum(union, 1)


def check_enough_seen(findings: Sequence[ObjectFindings], texts: Sequence[str], num_frames: int) -> None:
    """Check that there is an object besides the background and that all are seen in `FEWEST_FRAMES` frames.

    `texts` are what the files call each object.

    Raises:
        DatasetError: one is not.
    """
    if len(findings) < 2:
        raise DatasetError(
            f"masks are empty: all pixels of {num_frames} frames are background ({texts[0]}); expected at least one "
            "object."
        )
    if findings[0].frames < FEWEST_FRAMES:
        raise DatasetError(
            f"masks leave background in {findings[0].frames} of {num_frames} frames; expected it in {FEWEST_FRAMES} at "
            "least, as it tells how the camera moves: name it with --background if it has an id of its own."
        )
    for k, finding in enumerate(findings):
        if finding.frames < FEWEST_FRAMES:
            raise DatasetError(
                f"masks show object {texts[k]} in {finding.frames} of {num_frames} frames; expected {FEWEST_FRAMES} or "
                f"more. Leave it out with --ignore {texts[k]} (its pixels then count as background), or mask it "
                "in more frames."
            )


def advise(
    findings: Sequence[ObjectFindings], switches: Sequence[IdSwitch], names: Sequence[str], shape: tuple[int, int, int]
) -> list[str]:
    """Lines on what a user may want to look at. `shape` is (frames, height, width)."""
    num_frames, height, width = shape
    advice = []
    for k, finding in enumerate(findings[1:], start=1):
        title = title_of(k, names)
        if finding.gaps:
            gaps = list_ranges(finding.gaps)
            advice.append(f"{title} is away and back again: frames {gaps} do not show it.")
        if finding.median_width < SMALL_WIDTH:
            advice.append(
                f"{title} is only about {finding.median_width:.0f} px wide: its motion will be uncertain below "
                f"{SMALL_WIDTH} px and cannot be found below 30; use larger frames if there are."
            )
        if finding.median_pixels > LARGE_SHARE * height * width:
            advice.append(
                f"{title} covers {100 * finding.median_pixels / (height * width):.0f} % of the picture; if it "
                "is the background, say so with --background."
            )
        if finding.specks + finding.holes > finding.frames:
            advice.append(
                f"{title} has {finding.specks} specks and {finding.holes} holes in {finding.frames} frames; "
                "--clean-masks 50 gives parts of fewer than 50 pixels to what is around them."
            )
    for switch in switches:
        advice.append(
            f"from frame {switch.frame - 1} to {switch.frame} of {num_frames}, {title_of(switch.before, names)} "
            f"seems to become {title_of(switch.after, names)}; correct the masks if these are one and the same."
        )
    return advice


def list_ranges(ranges: Sequence[tuple[int, int]]) -> str:
    """`3, 7-9` of first and last numbers; the first few of many."""
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges[:6]]
    return ", ".join(texts) + (f" and {len(ranges) - 6} more" if len(ranges) > 6 else "")
