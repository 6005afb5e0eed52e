"""Which mask belongs to which frame, and masks over source images as masks over frames."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from osn_gs.errors import DatasetError
from osn_gs.preprocess.frames import FramesRecord
from osn_gs.preprocess.mask_checks import list_ranges
from osn_gs.preprocess.mask_files import MaskFiles

LEAST_MATCHED = 0.5  # of the frames, where objects have files of their own and may be in none
SAME_ASPECT = 0.01
PLACE_IN_ARRAY = "by place in the array, one for every frame of the source"


@dataclass(frozen=True)
class FrameMatch:
    """Which mask belongs to each frame: its place in `MaskFiles.pieces`, -1 for none; and by what rule, in words."""

    masks: Int[np.ndarray, "t"]
    rule: str


def match_frames(masks: MaskFiles, record: FramesRecord) -> FrameMatch:
    """Find every frame's mask: by file name, else by number, else by order where there are as many.

    Raises:
        DatasetError: no rule finds a mask for every frame. Only where objects have files of their own may a frame be
            without: it then shows none of them.
    """
    names, num_frames = masks.frames, len(record.frames)
    stems = [Path(frame.name).stem for frame in record.frames]
    indices = [frame.index for frame in record.frames]
    by_number = _by_number(names)
    rules: list[tuple[str, list[int]]] = []
    if names and all(stems):
        by_name = {name: place for place, name in enumerate(names)}
        rules.append(("by name", [by_name.get(stem, -1) for stem in stems]))
        rules.append(("by the number in the names", [by_number.get(_last_number(stem), -1) for stem in stems]))
    if names and min(by_number, default=0) == 1:
        rules.append(("by number, the source's first frame being 1", [by_number.get(i + 1, -1) for i in indices]))
    if names:
        rules.append(("by number, the source's first frame being 0", [by_number.get(i, -1) for i in indices]))
    if len(masks) == num_frames:
        rules.append(("by order", list(range(num_frames))))
    if not names and len(masks) > max(indices):
        rules.append((PLACE_IN_ARRAY, indices))
    found = [(np.array(places), rule) for rule, places in rules]
    for places, rule in found:
        if (places >= 0).all():
            return FrameMatch(places, rule)
    best = max(found, key=lambda match: (match[0] >= 0).sum(), default=None)
    if best is None or (best[0] >= 0).mean() < LEAST_MATCHED:
        raise DatasetError(_no_match(masks, record))
    places, rule = best
    if not masks.objects:
        missing = np.flatnonzero(places < 0)
        raise DatasetError(
            f"{masks.pieces[0][0].path.parent}: no mask for {len(missing)} of {num_frames} frames: "
            f"{_listed_frames(missing)} (the first is {_frame_title(record, int(missing[0]))}); matched {rule}. "
            "Add the missing ones, all background where no object is seen."
        )
    return FrameMatch(places, rule)


def _by_number(names: Sequence[str]) -> dict[int, int]:
    """Place of each number that names end with; empty if two names share one."""
    numbers = [_last_number(name) for name in names]
    if None in numbers or len(set(numbers)) < len(numbers):
        return {}
    return {number: place for place, number in enumerate(numbers)}


def _last_number(name: str) -> int | None:
    digits = re.findall(r"\d+", name)
    return int(digits[-1]) if digits else None


def _no_match(masks: MaskFiles, record: FramesRecord) -> str:
    first, last = (_frame_title(record, number) for number in (0, len(record.frames) - 1))
    named = f"named {masks.frames[0]} to {masks.frames[-1]}" if masks.frames else f"in {masks.pieces[0][0].path.name}"
    return (
        f"{masks.pieces[0][0].path.parent}: {len(masks)} masks, {named}, do not belong to the {len(record.frames)} "
        f"frames ({first} to {last}); name masks like the images, number them like the source's frames (from 0), or "
        "give as many as there are frames."
    )


def _frame_title(record: FramesRecord, number: int) -> str:
    frame = record.frames[number]
    return frame.name or f"number {frame.index} of the video"


def _listed_frames(frames: Int[np.ndarray, "n"]) -> str:
    runs = np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1)
    return list_ranges([(int(run[0]), int(run[-1])) for run in runs])


def advise_on_match(masks: MaskFiles, match: FrameMatch) -> list[str]:
    """Lines on what the matching had to assume."""
    advice = []
    if match.rule not in ("by name", PLACE_IN_ARRAY):
        advice.append(f"masks were matched to the frames {match.rule}; look at the step's picture whether they fit.")
    missing = np.flatnonzero(match.masks < 0)
    if len(missing):
        advice.append(f"no object has a file for frames {_listed_frames(missing)}; none is taken to be there.")
    return advice


def to_frame_size(ids: UInt8[np.ndarray, "h_any w_any"], record: FramesRecord, path: Path) -> UInt8[np.ndarray, "h w"]:
    """Ids over a frame from ids over its source image, the same enlarged or reduced, or over the frame itself.

    Raises:
        DatasetError: the size is neither, nor has the source's proportions.
    """
    size = (ids.shape[1], ids.shape[0])
    if size == record.source_size:
        return record.warp_ids(ids)
    if size == record.size:
        return ids
    if not _same_aspect(size, record.source_size):
        raise DatasetError(
            f"{path}: mask is {size[0]}x{size[1]} but the source's images are {record.source_size[0]}x"
            f"{record.source_size[1]} and the frames {record.size[0]}x{record.size[1]}; expected one of these sizes."
        )
    return record.warp_ids(cv2.resize(ids, record.source_size, interpolation=cv2.INTER_NEAREST_EXACT))


def _same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) < SAME_ASPECT
