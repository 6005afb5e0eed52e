"""What a user says about objects in a few frames: boxes, outlines and points; kept as JSON beside the masks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from osn_gs.data.osn_files import read_json
from osn_gs.errors import DatasetError
from osn_gs.files import write_json_atomic

PROMPTS_FILE = "prompts.json"
BACKGROUND = "background"
MAX_OBJECTS = 254  # ids are uint8, and 255 means "ignore" to many readers

Point = tuple[float, float]
Box = tuple[float, float, float, float]

ENTRY_KEYS = ("box", "outlines", "exact", "inside", "outside", "absent")  # beside frame and object, in the file


@dataclass(frozen=True)
class ObjectPrompt:
    """Where one object is in one frame. All positions are (x, y) in pixels of the frame, pixel centres at +0.5.

    `outlines` (closed, without repeating the first point) say more than `box` (x0, y0, x1, y1), which is not looked
    at where there is one; points `inside` and `outside` the object correct either, or stand alone. The object's border
    is looked for near the outlines, unless they are `exact`: then they are kept but for what points say, and may run
    around holes too. `absent` says that the object is not to be seen in this frame, and goes with nothing else.
    """

    frame: int
    object_id: int
    box: Box | None = None
    outlines: tuple[tuple[Point, ...], ...] = ()
    exact: bool = False
    inside: tuple[Point, ...] = ()
    outside: tuple[Point, ...] = ()
    absent: bool = False

    def is_empty(self) -> bool:
        """Whether it says nothing about where the object is; points outside alone do not."""
        return not (self.box or self.outlines or self.inside or self.absent)


@dataclass(frozen=True)
class Prompts:
    """All prompts of a clip, at most one for an object and frame. `names[k]` is object k + 1; 0 is the background."""

    names: tuple[str, ...] = ()
    prompts: tuple[ObjectPrompt, ...] = ()

    def get(self, frame: int, object_id: int) -> ObjectPrompt:
        """The prompt for an object in a frame; an empty one where nothing was said."""
        found = [p for p in self.prompts if (p.frame, p.object_id) == (frame, object_id)]
        return found[0] if found else ObjectPrompt(frame, object_id)

    def put(self, prompt: ObjectPrompt) -> Prompts:
        """With `prompt` in place of what was said about its object and frame."""
        others = [p for p in self.prompts if (p.frame, p.object_id) != (prompt.frame, prompt.object_id)]
        if prompt != ObjectPrompt(prompt.frame, prompt.object_id):
            others.append(prompt)
        return replace(self, prompts=tuple(sorted(others, key=lambda p: (p.object_id, p.frame))))

    def with_object(self, name: str) -> Prompts:
        """With one more object."""
        return replace(self, names=(*self.names, name))

    def without_object(self, object_id: int) -> Prompts:
        """Without an object and all that was said of it; later objects move up by one."""
        names = tuple(name for k, name in enumerate(self.names, 1) if k != object_id)
        kept = [p for p in self.prompts if p.object_id != object_id]
        moved = (replace(p, object_id=p.object_id - 1) if p.object_id > object_id else p for p in kept)
        return Prompts(names, tuple(moved))

    def key_frames(self, object_id: int) -> list[int]:
        """Frames in which something is said about where an object is."""
        return [p.frame for p in self.prompts if p.object_id == object_id and not p.is_empty()]


def write_prompts(path: Path, prompts: Prompts, frame_names: tuple[str, ...], size: tuple[int, int]) -> None:
    """Write `prompts` with objects and frames by name; `size` is the frames' (w, h)."""
    entries = []
    for prompt in prompts.prompts:
        entry: dict[str, Any] = {"frame": frame_names[prompt.frame], "object": prompts.names[prompt.object_id - 1]}
        for key in ENTRY_KEYS:
            if getattr(prompt, key):
                entry[key] = getattr(prompt, key)
        entries.append(entry)
    write_json_atomic(path, {"size": size, "objects": prompts.names, "prompts": entries})


def read_prompts(path: Path, frame_names: tuple[str, ...], size: tuple[int, int]) -> Prompts:
    """Read what `write_prompts` wrote, or what someone wrote by hand like it.

    Args:
        path: the JSON file.
        frame_names: of the clip's frames, in order.
        size: width and height of the frames.

    Raises:
        DatasetError: the file cannot be read, is for frames of another size, or an entry names an unknown frame or
            object, lies outside the image or says nothing.
    """
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("objects"), list) or not content["objects"]:
        raise DatasetError(f'{path}: expected {{"size": [w, h], "objects": [names], "prompts": [...]}}.')
    if content.get("size") != list(size):
        raise DatasetError(
            f"{path}: prompts are for frames of size {content.get('size')} but these are {list(size)}; use the frame "
            "options the prompts were made with."
        )
    names = tuple(str(name) for name in content["objects"])
    if len(set(names)) != len(names) or len(names) > MAX_OBJECTS:
        raise DatasetError(f"{path}: expected at most {MAX_OBJECTS} objects with different names, got {list(names)}.")
    prompts = Prompts(names)
    for number, entry in enumerate(content.get("prompts", [])):
        where = f"{path}: prompt {number}"
        prompt = _parse_prompt(entry, where, names, frame_names, size)
        if prompts.get(prompt.frame, prompt.object_id) != ObjectPrompt(prompt.frame, prompt.object_id):
            raise DatasetError(f"{where} is the second one for {entry['object']!r} in frame {entry['frame']!r}.")
        prompts = prompts.put(prompt)
    return prompts


def _parse_prompt(
    entry: Any, where: str, names: tuple[str, ...], frame_names: tuple[str, ...], size: tuple[int, int]
) -> ObjectPrompt:
    if not isinstance(entry, dict):
        raise DatasetError(f"{where} is {entry!r}; expected an object with frame, object, box, inside, ...")
    unknown = set(entry) - {"frame", "object", *ENTRY_KEYS}
    if unknown:
        raise DatasetError(
            f"{where} has unknown keys {sorted(unknown)}; known: frame, object, {', '.join(ENTRY_KEYS)}."
        )
    if entry.get("object") not in names:
        raise DatasetError(f"{where} is about object {entry.get('object')!r}; known objects: {', '.join(names)}.")
    if entry.get("frame") not in frame_names:
        raise DatasetError(
            f"{where} is about frame {entry.get('frame')!r}, which is not among the {len(frame_names)} frames "
            f"{frame_names[0]} to {frame_names[-1]}; use the frame options the prompts were made with."
        )
    try:
        box = entry.get("box")
        prompt = ObjectPrompt(
            frame=frame_names.index(entry["frame"]),
            object_id=1 + names.index(entry["object"]),
            box=None if box is None else _parse_box(box),
            outlines=tuple(_parse_outline(outline) for outline in entry.get("outlines", [])),
            exact=entry.get("exact", False) is True,
            inside=_parse_points(entry.get("inside", [])),
            outside=_parse_points(entry.get("outside", [])),
            absent=entry.get("absent", False) is True,
        )
    except (TypeError, ValueError):
        raise DatasetError(
            f"{where}: expected box [x0, y0, x1, y1] with x0 < x1 and y0 < y1, outlines as lists of at least three "
            "[x, y], inside and outside as lists of [x, y]."
        ) from None
    if prompt == ObjectPrompt(prompt.frame, prompt.object_id):
        raise DatasetError(f"{where} says nothing: give a box, outlines, points inside, or absent: true.")
    if prompt.absent and replace(prompt, absent=False) != ObjectPrompt(prompt.frame, prompt.object_id):
        raise DatasetError(f"{where} says that the object is absent and where it is; leave one out.")
    width, height = size
    for x, y in prompt.inside + prompt.outside:
        if not (0 <= x < width and 0 <= y < height):
            raise DatasetError(f"{where}: point ({x:g}, {y:g}) is outside the image of {width}x{height}.")
    return prompt


def _parse_points(values: Any) -> tuple[Point, ...]:
    return tuple((float(x), float(y)) for x, y in values)


def _parse_outline(values: Any) -> tuple[Point, ...]:
    outline = _parse_points(values)
    if len(outline) < 3:
        raise ValueError
    return outline


def _parse_box(values: Any) -> Box:
    x0, y0, x1, y1 = (float(value) for value in values)
    if not (x0 < x1 and y0 < y1):
        raise ValueError
    return x0, y0, x1, y1
