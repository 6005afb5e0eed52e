"""What a scene's objects are called in files and in messages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from osn_gs.data.osn_files import read_json
from osn_gs.errors import DatasetError


def read_object_names(scene: Path) -> tuple[str, ...]:
    """The objects' names in the order of their ids, background first, as the masks step wrote them to scene.json.

    Raises:
        DatasetError: they are missing.
    """
    path = scene / "scene.json"
    if not path.is_file():
        raise DatasetError(f"{path}: no such file; run the masks step first.")
    names = read_json(path).get("objects")
    if not isinstance(names, list) or not names:
        raise DatasetError(f"{path}: has no list `objects`; run the masks step again.")
    return tuple(str(name) for name in names)


def title_of(k: int, names: Sequence[str]) -> str:
    """An object as messages call it: its number, and its name where it has one."""
    if k == 0:
        return "the background"
    return f"object {k}" if names[k] == f"object {k}" else f"object {k} ({names[k]})"
