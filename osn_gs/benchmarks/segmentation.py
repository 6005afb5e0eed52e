"""How well the built-in segmenter carries objects through a clip whose masks are known, from a few prompts."""

from __future__ import annotations

import os
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from rich.console import Console
from rich.table import Table

from osn_gs.benchmarks.options import check_counts
from osn_gs.data.osn_layout import read_object_names
from osn_gs.errors import DatasetError
from osn_gs.files import write_json_atomic
from osn_gs.preprocess.frames import FramesConfig, extract_frames, read_frames
from osn_gs.preprocess.masks import MasksConfig, import_masks, read_object_ids
from osn_gs.preprocess.prompts import Box, ObjectPrompt, Point, Prompts
from osn_gs.preprocess.segmentation import segment_clip

IMAGE_FOLDERS = ("images_train", "images")
MASK_FOLDERS = ("segm_train", "segm_sam", "masks")  # the true ones first
BOX_MARGIN = 2.0  # pixels that the user's box leaves about the object
OUTLINE_ERROR = 2.0  # pixels by which the user's outline cuts corners
SMALLEST_OUTLINED = 0.05  # of an object's largest part; the user does not go around specks

PromptKind = Literal["box", "outlines"]


@dataclass(frozen=True)
class SegmentationBenchmark:
    """Show every object to the built-in segmenter in a few frames, as a user would, and compare with the true masks.

    Prints the intersection over union of every object. A simulated user divides the frames that show an object into
    as many stretches as there are key frames, and prompts in the frame of each where most of it is seen.
    """

    data: Path
    """Scene folder, or a folder with `images` and `masks`; its masks are taken to be true."""
    prompts: PromptKind = "box"
    """What the user draws in a key frame: a box about the object, or its outline as a polygon."""
    key_frames: int = 1
    """Frames in which the user shows an object."""
    json: Path | None = None
    """Also write the figures to this file."""


@dataclass(frozen=True)
class LabelledClip:
    """A clip with true object ids (0 is the background, `names[0]`)."""

    images: UInt8[np.ndarray, "t h w 3"]
    object_ids: UInt8[np.ndarray, "t h w"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class ObjectScore:
    """Intersection over union of one object over the `frames` that show it, key frames included.

    `cut` is that of the key frames alone, which a user sees at once and would mend. `found_elsewhere` counts the
    frames that do not show it but in which the segmenter has it.
    """

    frames: int
    cut: float
    mean: float
    worst: float
    worst_frame: int
    found_elsewhere: int


def benchmark_segmentation(options: SegmentationBenchmark, console: Console) -> dict[str, Any]:
    """Prompt, segment and compare; prints a table and returns the figures.

    Raises:
        ConfigError: no key frames.
        DatasetError: the folder holds no images or masks, or they do not belong together.
    """
    check_counts(key_frames=options.key_frames)
    clip = read_labelled_clip(options.data)
    prompts = simulate_user(clip, options.prompts, options.key_frames)
    start = time.perf_counter()
    found = segment_clip(clip.images, prompts)
    seconds = time.perf_counter() - start
    scores = score_masks(found, clip.object_ids, prompts)
    figures = {
        "data": options.data.resolve().name,
        "prompts": options.prompts,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "frames": len(clip.images),
        "size": clip.images.shape[2:0:-1],
        "seconds": seconds,
        "objects": [
            {"name": name, "key_frames": prompts.key_frames(object_id), **asdict(score)}
            for object_id, (name, score) in enumerate(zip(prompts.names, scores, strict=True), 1)
        ],
    }
    console.print(_table(figures))
    if options.json:
        write_json_atomic(options.json, figures)
    return figures


def read_labelled_clip(data: Path) -> LabelledClip:
    """Images and masks of a folder, read as preparation reads those of a user.

    Raises:
        DatasetError: it has no folder of images or masks, or they do not belong together.
    """
    images, masks = _first_folder(data, IMAGE_FOLDERS), _first_folder(data, MASK_FOLDERS)
    with tempfile.TemporaryDirectory() as folder:
        scene = Path(folder)
        extract_frames(scene, scene, FramesConfig(images=images))
        import_masks(scene, scene, MasksConfig(masks=masks))
        object_ids = read_object_ids(scene)
        return LabelledClip(read_frames(scene), object_ids, read_object_names(data, int(object_ids.max()) + 1))


def _first_folder(data: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (data / name).is_dir():
            return data / name
    raise DatasetError(f"{data}: has no folder {' or '.join(names)}; expected a clip's images and masks in it.")


def simulate_user(clip: LabelledClip, kind: PromptKind, key_frames: int) -> Prompts:
    """What someone who sees the true masks would draw."""
    prompts = Prompts(clip.names[1:])
    for object_id in range(1, len(clip.names)):
        masks = clip.object_ids == object_id
        for frame in choose_key_frames(masks.sum(axis=(1, 2)), key_frames):
            if kind == "box":
                prompts = prompts.put(ObjectPrompt(frame, object_id, box=box_about(masks[frame])))
            else:
                prompts = prompts.put(ObjectPrompt(frame, object_id, outlines=outlines_of(masks[frame])))
    return prompts


def choose_key_frames(areas: Int[np.ndarray, "t"], number: int) -> list[int]:
    """The frame with most of an object in each of `number` equal stretches of the frames that show it."""
    shown = np.flatnonzero(areas)
    stretches = np.array_split(shown, min(number, len(shown)))
    return [int(stretch[areas[stretch].argmax()]) for stretch in stretches]


def box_about(mask: Bool[np.ndarray, "h w"]) -> Box:
    """A box a little larger than the object."""
    rows, columns = np.nonzero(mask)
    x0, y0 = columns.min() - BOX_MARGIN, rows.min() - BOX_MARGIN
    return float(x0), float(y0), float(columns.max() + 1 + BOX_MARGIN), float(rows.max() + 1 + BOX_MARGIN)


def outlines_of(mask: Bool[np.ndarray, "h w"]) -> tuple[tuple[Point, ...], ...]:
    """A polygon around every larger part of the object; holes are left in."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(contour) for contour in contours]
    polygons = [
        cv2.approxPolyDP(contour, OUTLINE_ERROR, True)[:, 0] + 0.5
        for contour, area in zip(contours, areas, strict=True)
        if area >= SMALLEST_OUTLINED * max(areas)
    ]
    return tuple(tuple((float(x), float(y)) for x, y in polygon) for polygon in polygons if len(polygon) > 2)


def score_masks(
    found: UInt8[np.ndarray, "t h w"], true: UInt8[np.ndarray, "t h w"], prompts: Prompts
) -> tuple[ObjectScore, ...]:
    """Scores of all objects but the background. Prompts must be in frames that show their objects."""
    return tuple(
        _score(found == object_id, true == object_id, prompts.key_frames(object_id))
        for object_id in range(1, len(prompts.names) + 1)
    )


def _score(found: Bool[np.ndarray, "t h w"], true: Bool[np.ndarray, "t h w"], key_frames: list[int]) -> ObjectScore:
    shown = np.flatnonzero(true.any(axis=(1, 2)))
    ious = _intersection_over_union(found[shown], true[shown])
    return ObjectScore(
        frames=len(shown),
        cut=float(ious[np.isin(shown, key_frames)].mean()),
        mean=float(ious.mean()),
        worst=float(ious.min()),
        worst_frame=int(shown[ious.argmin()]),
        found_elsewhere=int((found.any(axis=(1, 2)) & ~true.any(axis=(1, 2))).sum()),
    )


def _intersection_over_union(
    found: Bool[np.ndarray, "t h w"], true: Bool[np.ndarray, "t h w"]
) -> Float[np.ndarray, "t"]:
    return (found & true).sum(axis=(1, 2)) / (found | true).sum(axis=(1, 2))


def _table(figures: dict[str, Any]) -> Table:
    width, height = figures["size"]
    table = Table(
        title=f"{figures['data']}: IoU with the true masks, {figures['frames']} frames of {width}x{height} "
        f"in {figures['seconds']:.0f} s"
    )
    table.add_column("object")
    table.add_column(f"{figures['prompts']} in frames")
    for column in ("IoU there", "shown in", "mean IoU", "worst", "in frame", "elsewhere"):
        table.add_column(column, justify="right")
    for obj in figures["objects"]:
        table.add_row(
            obj["name"],
            ", ".join(map(str, obj["key_frames"])),
            f"{obj['cut']:.2f}",
            str(obj["frames"]),
            f"{obj['mean']:.2f}",
            f"{obj['worst']:.2f}",
            str(obj["worst_frame"]),
            str(obj["found_elsewhere"]),
        )
    return table
