"""What happens on the segmenter's page, without the page: prompts, what they cut out, undo, saving."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from osn_gs.errors import ConfigError
from osn_gs.preprocess.indexed_png import write_masks
from osn_gs.preprocess.mask_propagation import ids_from_masks
from osn_gs.preprocess.pictures import overlay_ids
from osn_gs.preprocess.progress import Progress, no_progress
from osn_gs.preprocess.prompts import (
    BACKGROUND,
    MAX_OBJECTS,
    PROMPTS_FILE,
    Box,
    ObjectPrompt,
    Point,
    Prompts,
    read_prompts,
    write_prompts,
)
from osn_gs.preprocess.segmentation import correction, mask_from_prompt, points_on_others

Segment = Callable[[UInt8[np.ndarray, "t h w 3"], Prompts, Progress], UInt8[np.ndarray, "t h w"]]

INSIDE_COLOUR, OUTSIDE_COLOUR, REGION_COLOUR = (60, 230, 60), (240, 50, 50), (255, 220, 0)
SMALLEST_BOX = 3.0  # pixels; a shorter drag was meant as a click


class AnnotationSession:
    """Prompts of one clip being edited. Every edit is written to FOLDER/prompts.json at once and can be undone.

    `frame` and `object_id` say what is being worked on. Methods may be called from several threads.
    """

    def __init__(
        self, images: UInt8[np.ndarray, "t h w 3"], names: tuple[str, ...], folder: Path, segment: Segment
    ) -> None:
        """Start with the prompts in `folder`, if there are any; `names` are the frames'."""
        self.images = images
        self.names = names
        self.folder = folder
        self.frame = 0
        self.object_id = 1
        self.corners: tuple[Point, ...] = ()  # of an outline that is not closed yet
        self._segment = segment
        self._lock = threading.RLock()
        self._history: list[Prompts] = []
        self._keys: dict[tuple[ObjectPrompt, tuple[Point, ...]], Bool[np.ndarray, "h w"]] = {}
        self._ids: UInt8[np.ndarray, "t h w"] | None = None
        self._ids_from: Prompts | None = None
        self._saved: Prompts | None = None
        path = folder / PROMPTS_FILE
        self.prompts = read_prompts(path, names, self.size) if path.is_file() else Prompts().with_object("object 1")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the frames."""
        return self.images.shape[2], self.images.shape[1]

    @property
    def is_propagated(self) -> bool:
        """Whether the masks of all frames follow from the prompts as they are now."""
        return self._ids_from == self.prompts

    @property
    def is_saved(self) -> bool:
        """Whether the masks written last follow from the prompts as they are now."""
        return self._saved == self.prompts

    @property
    def has_unsaved_edits(self) -> bool:
        """Whether something was said since masks were written last, or since the beginning."""
        return bool(self._history) and not self.is_saved

    def contains(self, point: Point) -> bool:
        """Whether a position lies on the image."""
        return 0 <= point[0] < self.size[0] and 0 <= point[1] < self.size[1]

    def add_point(self, point: Point, is_inside: bool) -> None:
        """Say that a point is on the object, or that it is not. What is shown of the object stays, but for that."""
        points = {"inside": (point,)} if is_inside else {"outside": (point,)}
        with self._lock:
            current = self.prompts.get(self.frame, self.object_id)
            if current.absent:
                current = replace(current, absent=False)
            mask = self.shown_ids(self.frame) == self.object_id
            self._edit(self.prompts.put(correction(current, mask, **points)))

    def add_box(self, first: Point, second: Point) -> bool:
        """Say that the object fills a box, given by two of its corners; False where that is hardly a box."""
        x0, x1 = sorted(np.clip((first[0], second[0]), 0, self.size[0]).tolist())
        y0, y1 = sorted(np.clip((first[1], second[1]), 0, self.size[1]).tolist())
        if min(x1 - x0, y1 - y0) < SMALLEST_BOX:
            return False
        box: Box = (x0, y0, x1, y1)
        self._put(ObjectPrompt(self.frame, self.object_id, box=box))
        return True

    def add_corner(self, point: Point) -> None:
        """One more corner of an outline."""
        with self._lock:
            self.corners = (*self.corners, point)

    def close_outline(self) -> bool:
        """Say that the corners so far go around the object, or a part of it; False where they are fewer than three."""
        with self._lock:
            corners, self.corners = self.corners, ()
            if len(corners) < 3:
                return False
            said = self.prompts.get(self.frame, self.object_id)
            drawn = () if said.exact else said.outlines
            self._put(ObjectPrompt(self.frame, self.object_id, outlines=(*drawn, corners)))
            return True

    def mark_absent(self) -> None:
        """Say that the object is not to be seen in this frame."""
        self._put(ObjectPrompt(self.frame, self.object_id, absent=True))

    def clear_prompt(self) -> None:
        """Forget what was said of the object in this frame."""
        self._put(ObjectPrompt(self.frame, self.object_id))

    def add_object(self) -> None:
        """Begin one more object, and work on it.

        Raises:
            ConfigError: there are as many as ids can number.
        """
        with self._lock:
            if len(self.prompts.names) == MAX_OBJECTS:
                raise ConfigError(f"there are {MAX_OBJECTS} objects; ids cannot number more.")
            number = len(self.prompts.names) + 1
            while f"object {number}" in self.prompts.names:
                number += 1
            self._edit(self.prompts.with_object(f"object {number}"))
            self.object_id = len(self.prompts.names)

    def remove_object(self) -> None:
        """Forget the object being worked on; the last one is emptied instead."""
        with self._lock:
            remaining = self.prompts.without_object(self.object_id)
            self._edit(remaining if remaining.names else remaining.with_object("object 1"))
            self._forget_ids()
            self.object_id = min(self.object_id, len(self.prompts.names))

    def rename_object(self, name: str) -> None:
        """Call the object being worked on `name`.

        Raises:
            ConfigError: the name is empty or another object's.
        """
        with self._lock:
            name = name.strip()
            others = [other for k, other in enumerate(self.prompts.names, 1) if k != self.object_id]
            if not name or name == BACKGROUND or name in others:
                raise ConfigError(f"{name!r} cannot be the object's name: expected one that no other object has.")
            names = list(self.prompts.names)
            names[self.object_id - 1] = name
            if self.prompts.names != tuple(names):
                was_propagated = self.is_propagated
                self._edit(replace(self.prompts, names=tuple(names)))
                if was_propagated:
                    self._ids_from = self.prompts

    def undo(self) -> bool:
        """Take back the last edit, or the last corner of an open outline; False where there is none."""
        with self._lock:
            if self.corners:
                self.corners = self.corners[:-1]
                return True
            if not self._history:
                return False
            previous = self._history.pop()
            if len(previous.names) != len(self.prompts.names):
                self._forget_ids()
            self.prompts = previous
            self.object_id = min(self.object_id, len(self.prompts.names))
            self._write_prompts()
            return True

    def select(self, frame: int | None = None, object_id: int | None = None) -> None:
        """Go on with another frame or object; an open outline is dropped."""
        with self._lock:
            self.corners = ()
            self.frame = self.frame if frame is None else frame
            self.object_id = self.object_id if object_id is None else object_id

    def shown_ids(self, frame: int) -> UInt8[np.ndarray, "h w"]:
        """Ids of a frame: what its prompts cut out, for other objects what was propagated last."""
        with self._lock:
            propagated = self._propagated_ids(frame)
            masks = []
            for object_id in range(1, len(self.prompts.names) + 1):
                prompt = self.prompts.get(frame, object_id)
                masks.append(propagated == object_id if prompt.is_empty() else self._key_mask(prompt))
            return ids_from_masks(masks)

    def picture(self, frame: int, with_masks: bool = True) -> UInt8[np.ndarray, "h w 3"]:
        """A frame with masks, and the prompts of the object being worked on."""
        with self._lock:
            picture = (
                overlay_ids(self.images[frame], self.shown_ids(frame)) if with_masks else self.images[frame].copy()
            )
            prompt = self.prompts.get(frame, self.object_id)
            corners = self.corners if frame == self.frame else ()
        return _draw_prompt(picture, prompt, corners)

    def propagate(self, progress: Progress = no_progress) -> None:
        """Carry all objects through the clip. Edits made meanwhile are kept; what they change is then out of date.

        Raises:
            DatasetError: an object has no prompt that says where it is.
        """
        prompts = self.prompts
        object_ids = self._segment(self.images, prompts, progress)
        with self._lock:
            if len(prompts.names) <= len(self.prompts.names):
                self._ids, self._ids_from = object_ids, prompts

    def save(self, progress: Progress = no_progress) -> None:
        """Write the masks of all frames, propagated first where that is due.

        Raises:
            DatasetError: an object has no prompt that says where it is.
        """
        if not self.is_propagated:
            self.propagate(progress)
        with self._lock:
            object_ids, prompts = self._ids, self._ids_from
        if object_ids is not None:  # None where the objects were changed meanwhile
            write_masks(self.folder, object_ids, self.names)
            self._saved = prompts

    def _put(self, prompt: ObjectPrompt) -> None:
        with self._lock:
            self._edit(self.prompts.put(prompt))

    def _edit(self, prompts: Prompts) -> None:
        self._history.append(self.prompts)
        self.prompts = prompts
        self.corners = ()
        self._write_prompts()

    def _write_prompts(self) -> None:
        write_prompts(self.folder / PROMPTS_FILE, self.prompts, self.names, self.size)

    def _propagated_ids(self, frame: int) -> UInt8[np.ndarray, "h w"]:
        return np.zeros(self.images.shape[1:3], np.uint8) if self._ids is None else self._ids[frame]

    def _forget_ids(self) -> None:
        """Ids number objects by their place: after one is gone they mean others."""
        self._ids = self._ids_from = None

    def _key_mask(self, prompt: ObjectPrompt) -> Bool[np.ndarray, "h w"]:
        key = prompt, points_on_others(self.prompts, prompt)
        if key not in self._keys:
            self._keys[key] = mask_from_prompt(self.images[prompt.frame], *key)
        return self._keys[key]


def _draw_prompt(
    picture: UInt8[np.ndarray, "h w 3"], prompt: ObjectPrompt, corners: tuple[Point, ...]
) -> UInt8[np.ndarray, "h w 3"]:
    if prompt.box and not prompt.outlines:
        x0, y0, x1, y1 = (round(value - 0.5) for value in prompt.box)
        cv2.rectangle(picture, (x0, y0), (x1, y1), REGION_COLOUR, 1)
    if corners:
        line = np.round(np.array(corners) - 0.5).astype(np.int32)
        cv2.polylines(picture, [line], False, REGION_COLOUR, 1, cv2.LINE_AA)
        for x, y in line.tolist():
            cv2.circle(picture, (x, y), 2, REGION_COLOUR, cv2.FILLED)
    radius = max(3, max(picture.shape) // 200)
    for points, colour in ((prompt.inside, INSIDE_COLOUR), (prompt.outside, OUTSIDE_COLOUR)):
        for x, y in points:
            cv2.circle(picture, (int(x), int(y)), radius + 1, (255, 255, 255), cv2.FILLED, cv2.LINE_AA)
            cv2.circle(picture, (int(x), int(y)), radius, colour, cv2.FILLED, cv2.LINE_AA)
    return picture
