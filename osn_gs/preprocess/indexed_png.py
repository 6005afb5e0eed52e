"""Masks as DAVIS has them: one PNG a frame whose colour number is the object's id."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from osn_gs.errors import DatasetError
from osn_gs.files import write_bytes_atomic
from osn_gs.preprocess.frames import FramesRecord
from osn_gs.preprocess.pictures import object_palette


def mask_names(record: FramesRecord) -> tuple[str, ...]:
    """What a frame's mask is called, without suffix: as its image, or by its number in the video.

    Raises:
        DatasetError: two images have the same name but for their suffix.
    """
    names = tuple(Path(frame.name).stem if frame.name else f"{frame.index:05d}" for frame in record.frames)
    seen: dict[str, int] = {}
    for number, name in enumerate(names):
        if name in seen:
            first, second = record.frames[seen[name]].name, record.frames[number].name
            raise DatasetError(f"images {first} and {second} would share the mask {name}.png; rename one of them.")
        seen[name] = number
    return names


def write_indexed_png(path: Path, object_ids: UInt8[np.ndarray, "h w"]) -> None:
    """Write ids with the palette of PASCAL VOC and DAVIS, whole or not at all."""
    image = Image.fromarray(object_ids)  # mode L; a palette makes it P with the same numbers
    image.putpalette(object_palette().tobytes())
    data = io.BytesIO()
    image.save(data, format="PNG")
    write_bytes_atomic(path, data.getvalue())


def write_masks(folder: Path, object_ids: UInt8[np.ndarray, "t h w"], names: Iterable[str]) -> None:
    """Write `folder`/NAME.png for every frame."""
    for name, ids in zip(names, object_ids, strict=True):
        write_indexed_png(folder / f"{name}.png", ids)
