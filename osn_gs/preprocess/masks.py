"""The masks step: object ids of every frame, from masks in whatever form people have them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from osn_gs.data.osn_files import read_array, read_image, read_json
from osn_gs.errors import ConfigError
from osn_gs.files import write_bytes_atomic, write_json_atomic
from osn_gs.preprocess.frames import FramesRecord, frame_path, read_frames_record
from osn_gs.preprocess.mask_checks import advise, check_enough_seen, examine_ids, find_switches
from osn_gs.preprocess.mask_files import MaskFiles, find_masks, read_labels
from osn_gs.preprocess.mask_matching import FrameMatch, advise_on_match, match_frames, to_frame_size
from osn_gs.preprocess.mask_numbering import (
    ObjectNumbering,
    advise_on_numbering,
    count_labels,
    fill_small_parts,
    number_objects,
)
from osn_gs.preprocess.pictures import contact_sheet, overlay_ids, write_picture
from osn_gs.preprocess.progress import Progress, no_progress
from osn_gs.preprocess.prompts import PROMPTS_FILE

IDS_FOLDER = "segm_sam"
REPORT_FILE = Path("prepare") / "masks.json"
PICTURE_FILE = Path("prepare") / "masks.png"
FRAMES_SHOWN = 12  # on the sheet


@dataclass(frozen=True)
class MasksConfig:
    """Where the masks are, and what to make of them."""

    masks: Path | None = None
    """Folder of masks (one a frame, or one for each object and frame; pictures or arrays), or a .npy or .npz of all."""
    object_names: tuple[str, ...] = ()
    """Names of the objects in the order of their ids, without the background."""
    background: str | None = None
    """The value, colour (#rrggbb) or name that stands for the background; by default 0 or black."""
    ignore: tuple[str, ...] = ()
    """Values, colours or names to count as background."""
    mask_threshold: float = 0.5
    """Where soft masks of one object begin, from 0 to 1."""
    clean_masks: int = 0
    """Parts and holes of fewer pixels are given to what is around them; 0 takes masks as they come."""

    def __post_init__(self) -> None:
        if not 0 <= self.mask_threshold < 1:
            raise ConfigError(f"mask_threshold is {self.mask_threshold:g}; expected 0 or more and less than 1.")
        if self.clean_masks < 0:
            raise ConfigError(f"clean_masks is {self.clean_masks}; expected a number of pixels, 0 or more.")


def import_masks(scene: Path, staging: Path, config: MasksConfig, progress: Progress = no_progress) -> tuple[str, ...]:
    """The masks step: write ids (segm_sam), names (scene.json), a report and a picture; advice for the user.

    Raises:
        DatasetError: masks are missing, cannot be read, do not fit the frames, or do not show objects often enough.
        ConfigError: options name labels that are not there.
    """
    if config.masks is None:
        raise ConfigError(
            "no masks given; expected a folder with --masks, or make masks with `python tools/segment.py`."
        )
    record = read_frames_record(scene)
    masks = find_masks(config.masks)
    match = match_frames(masks, record)
    total = 2 * len(record.frames)
    counts = count_labels(masks, match, config.mask_threshold, lambda done: progress(done, total))
    numbering = number_objects(counts, masks, config.background, config.ignore)
    object_ids = np.empty((len(record.frames), *record.size[::-1]), dtype=np.uint8)
    for frame, mask in enumerate(match.masks):
        object_ids[frame] = 0 if mask < 0 else _frame_ids(masks, int(mask), numbering, record, config)
        progress(len(record.frames) + frame + 1, total)
    names = _object_names(numbering, masks, config)
    texts = [masks.label_text(label) for label in numbering.labels]
    findings = examine_ids(object_ids, len(names))
    check_enough_seen(findings, texts, len(record.frames))
    switches = find_switches(object_ids, len(names))
    advice = [
        *advise_on_match(masks, match),
        *_size_advice(masks, match, record, config.mask_threshold),
        *advise_on_numbering(numbering, masks, names, counts),
        *advise(findings, switches, names, object_ids.shape),
    ]
    _write(staging, object_ids, names, scene.name)
    report = {
        "masks": str(config.masks),
        "layout": masks.layout,
        "matched": match.rule,
        "objects": [
            {"id": k, "name": name, "label": texts[k], **asdict(finding)}
            for k, (name, finding) in enumerate(zip(names, findings, strict=True))
        ],
        "merged_into_background": [masks.label_text(label) for label in numbering.merged],
        "switches": [asdict(switch) for switch in switches],
    }
    write_json_atomic(staging / REPORT_FILE, report)
    write_picture(staging / PICTURE_FILE, _draw_sheet(scene, object_ids, names))
    return tuple(advice)


def read_object_ids(scene: Path) -> UInt8[np.ndarray, "t h w"]:
    """Object ids of all frames of a scene folder, as the masks step wrote them.

    Raises:
        DatasetError: a file is missing or has another size than the frames.
    """
    record = read_frames_record(scene)
    shape = record.size[::-1]
    return np.stack(
        [read_array(_ids_path(scene, frame), shape).astype(np.uint8) for frame in range(len(record.frames))]
    )


def _ids_path(scene: Path, frame: int) -> Path:
    return scene / IDS_FOLDER / f"{frame:04d}.npy"


def _frame_ids(
    masks: MaskFiles, mask: int, numbering: ObjectNumbering, record: FramesRecord, config: MasksConfig
) -> UInt8[np.ndarray, "h w"]:
    """Ids of one frame, at the frame's size."""
    ids = numbering.ids(read_labels(masks, mask, config.mask_threshold))
    ids = to_frame_size(ids, record, masks.pieces[mask][0].path)
    return fill_small_parts(ids, config.clean_masks) if config.clean_masks > 0 else ids


def _size_advice(masks: MaskFiles, match: FrameMatch, record: FramesRecord, threshold: float) -> list[str]:
    first = int(match.masks[match.masks >= 0][0])
    height, width = read_labels(masks, first, threshold).shape
    if (width, height) in (record.source_size, record.size):
        return []
    source_width, source_height = record.source_size
    return [
        f"masks are {width}x{height} where the source's images are {source_width}x{source_height}; resized, so "
        "borders are coarser than they could be."
    ]


def _object_names(numbering: ObjectNumbering, masks: MaskFiles, config: MasksConfig) -> tuple[str, ...]:
    """The background's name and the objects', as told, or as files and folders say, else numbered."""
    num_objects = len(numbering.labels) - 1
    if config.object_names:
        if len(config.object_names) != num_objects:
            texts = ", ".join(masks.label_text(label) for label in numbering.labels[1:13])
            raise ConfigError(
                f"--object-names has {len(config.object_names)} names but masks show {num_objects} objects ({texts}); "
                "expected one name for each, without the background."
            )
        return ("background", *config.object_names)
    known = masks.objects or _names_beside(masks.pieces[0][0].path.parent)
    names = ["background"]
    for k, label in enumerate(numbering.labels[1:], start=1):
        name = known[label - 1] if 0 < label <= len(known) else ""
        names.append(f"object {k}" if not name or name.isdecimal() else name)
    return tuple(names)


def _names_beside(folder: Path) -> tuple[str, ...]:
    """Names of the objects with ids 1, 2, ... from the prompts that the segmenter saves beside its masks."""
    if not (folder / PROMPTS_FILE).is_file():
        return ()
    content = read_json(folder / PROMPTS_FILE)
    objects = content.get("objects") if isinstance(content, dict) else None
    return tuple(str(name) for name in objects) if isinstance(objects, list) else ()


def _write(staging: Path, object_ids: UInt8[np.ndarray, "t h w"], names: Sequence[str], scene_name: str) -> None:
    for frame, ids in enumerate(object_ids):
        buffer = io.BytesIO()
        np.save(buffer, ids)
        write_bytes_atomic(_ids_path(staging, frame), buffer.getvalue())
    write_json_atomic(staging / "scene.json", {"name": scene_name, "objects": list(names)})


def _draw_sheet(
    scene: Path, object_ids: UInt8[np.ndarray, "t h w"], names: Sequence[str]
) -> UInt8[np.ndarray, "sheet_h sheet_w 3"]:
    """Some frames, evenly spread, with objects tinted; captions say which are seen."""
    pictures, captions = [], []
    for frame in np.unique(np.linspace(0, len(object_ids) - 1, FRAMES_SHOWN).round().astype(int)):
        ids = object_ids[frame]
        pictures.append(overlay_ids(read_image(frame_path(scene, frame)), ids))
        seen = [str(k) if names[k] == f"object {k}" else f"{k} {names[k]}" for k in np.unique(ids) if k > 0]
        captions.append(f"frame {frame}: {', '.join(seen) or 'no object'}")
    return contact_sheet(pictures, captions)
