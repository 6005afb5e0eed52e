"""Sampled configurations on disk: `configurations.json`, and folders of .ply files with a manifest.

A configuration folder holds one `frame_0000.ply` per exported frame (SuperSplat plays such a sequence by its trailing
numbers) and `manifest.json`, which says what stands where in them.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.errors import OsnGsError
from osn_gs.export.ply import GaussianCloud, transform_gaussians, write_gaussian_ply
from osn_gs.files import write_json_atomic
from osn_gs.geometry.alignment import Similarity
from osn_gs.object_scales.valid_bounds import BoundedBy, ValidBounds
from osn_gs.scene.scene import ObjectGroup, Scene

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class Configuration:
    """One sampled scene: a scale for every object (the background's first), and how valid it is.

    `score` is the scale network's, in [0, 1]; `oracle_accuracy` the share of pixels whose depth order is right, None
    where the video was not at hand to tell.
    """

    name: str
    object_scales: tuple[float, ...]
    score: float
    oracle_accuracy: float | None

    def scales_like(self, tensor: Tensor) -> Float[Tensor, "k"]:
        """The object scales with another tensor's device and dtype."""
        return tensor.new_tensor(self.object_scales)


@dataclass(frozen=True)
class ObjectInterval:
    """The valid scales of one object, and what bounds each end: occlusions seen in the video, or only near/far."""

    object_name: str
    lo: float
    hi: float
    lo_bounded_by: BoundedBy
    hi_bounded_by: BoundedBy

    @classmethod
    def from_bounds(cls, bounds: ValidBounds, object_names: Sequence[str]) -> ObjectInterval:
        """The bounds of object number `bounds.object`, by its name."""
        ends = {name: value for name, value in vars(bounds).items() if name != "object"}
        return cls(object_name=object_names[bounds.object], **ends)


@dataclass(frozen=True)
class Draw:
    """How configurations were drawn.

    From the network's set (learned), or from the oracle's while the network called nothing valid; evenly over it, or
    far from each other (diverse), over which a mean says nothing of the set.
    """

    valid_set: Literal["learned", "oracle"]
    diverse: bool


@dataclass(frozen=True)
class ConfigurationSet:
    """What `configurations.json` holds: names of all objects, intervals of some of them, and samples.

    `drawn` is None in files from before it was noted.
    """

    object_names: tuple[str, ...]
    intervals: tuple[ObjectInterval, ...]
    configurations: tuple[Configuration, ...]
    drawn: Draw | None = None


def write_configurations(path: Path, configurations: ConfigurationSet) -> None:
    """Write `configurations.json`; raises OsnGsError if it contradicts itself or holds NaN."""
    _check_configurations(path, configurations)
    write_json_atomic(path, {"format_version": FORMAT_VERSION, **asdict(configurations)})


def read_configurations(path: Path) -> ConfigurationSet:
    """Read what `write_configurations` wrote; raises OsnGsError naming the file and the entry that is wrong."""
    content = _read_json(path)
    try:
        version = content["format_version"]
        if version != FORMAT_VERSION:
            raise OsnGsError(f"{path}: format version {version}, this program reads version {FORMAT_VERSION}.")
        configurations = ConfigurationSet(
            object_names=tuple(content["object_names"]),
            intervals=tuple(ObjectInterval(**interval) for interval in content["intervals"]),
            configurations=tuple(
                Configuration(**{**sample, "object_scales": tuple(sample["object_scales"])})
                for sample in content["configurations"]
            ),
            drawn=None if content.get("drawn") is None else Draw(**content["drawn"]),
        )
    except (KeyError, TypeError) as error:
        raise OsnGsError(f"{path}: not a list of configurations ({type(error).__name__}: {error}).") from None
    _check_configurations(path, configurations)
    return configurations


def spread_over_frames(num_frames: int, count: int) -> list[int]:
    """`count` time steps from the first to the last; every one for 0 or more than there are."""
    if count == 0 or count >= num_frames:
        return list(range(num_frames))
    if count == 1:
        return [0]
    return [i * (num_frames - 1) // (count - 1) for i in range(count)]


class PlacedObject(NamedTuple):
    """One object's Gaussians in its canonical frame, and where they stand: x_world = s R x_obj + t."""

    gaussians: GaussianCloud
    world_from_obj: Similarity


@dataclass(frozen=True)
class ExportFrame:
    """What stands where at one time; `objects` in the order of their names, None for one without a pose there."""

    index: int
    objects: tuple[PlacedObject | None, ...]


def scene_frames(scene: Scene, object_scales: Float[Tensor, "k"], time_steps: Iterable[int]) -> Iterator[ExportFrame]:
    """A scene under one scale vector at some of its times, as `export_configuration` takes it."""
    for time_step in time_steps:
        placement, visible = scene.placement(object_scales, time_step), scene.visible(time_step)
        objects = tuple(
            PlacedObject(
                _canonical_cloud(group, time_step),
                Similarity(float(placement.scales[k]), placement.rotations[k], placement.translations[k]),
            )
            if visible[k]
            else None
            for k, group in enumerate(scene.objects)
        )
        yield ExportFrame(time_step, objects)


@torch.no_grad()
def export_configuration(
    folder: Path, configuration: Configuration, object_names: Sequence[str], frames: Iterable[ExportFrame]
) -> None:
    """Write the frames of one configuration and their manifest into `folder`, replacing an earlier export there.

    All objects of a frame go into one .ply file in world coordinates, object after object. The world is the
    background's canonical frame in the background's units. A failure on the way leaves the earlier export as it was.
    Raises OsnGsError for values that are not finite, no frames, or a `folder` that holds anything but an export.
    """
    with _replaced_whole(folder) as unfinished:
        manifest_frames = [_export_frame(unfinished, frame, object_names) for frame in frames]
        if not manifest_frames:
            raise OsnGsError(f"{folder}: no frames to export for {configuration.name}.")
        manifest = {
            "format_version": FORMAT_VERSION,
            "object_names": list(object_names),
            **asdict(configuration),
            "conventions": {
                "world": "canonical frame of the background (object 0), right-handed, as its reconstruction left it",
                "units": "units of the background's reconstruction; its object scale is 1",
                "world_from_obj": "row-major 4x4 [sR t; 0 1] for column vectors, s the object scale; null: no pose",
                "object_rows": "[first, last): the object's Gaussians in the .ply file",
                "gaussians": "INRIA layout: opacity is a logit, scale a natural logarithm, rot a wxyz quaternion",
            },
            "frames": manifest_frames,
        }
        write_json_atomic(unfinished / MANIFEST_NAME, manifest)


def _export_frame(folder: Path, frame: ExportFrame, object_names: Sequence[str]) -> dict[str, Any]:
    """Write one frame's .ply file; its entry in the manifest."""
    assert len(frame.objects) == len(object_names), f"{len(frame.objects)} objects, {len(object_names)} names"
    clouds = [None if placed is None else transform_gaussians(*placed) for placed in frame.objects]
    path = folder / f"frame_{frame.index:04d}.ply"
    write_gaussian_ply(path, _concatenate([cloud for cloud in clouds if cloud is not None]))
    counts = [0 if cloud is None else cloud.num_gaussians for cloud in clouds]
    last_rows = list(accumulate(counts))
    return {
        "file": path.name,
        "index": frame.index,
        "num_gaussians": sum(counts),
        "object_rows": [[last - count, last] for count, last in zip(counts, last_rows, strict=True)],
        "world_from_obj": [_similarity_matrix(placed) for placed in frame.objects],
    }


def _canonical_cloud(group: ObjectGroup, time_step: int) -> GaussianCloud:
    means, quats = group.at(time_step)
    params = group.gaussians.params
    return GaussianCloud(means, quats, params["scales"], params["opacities"], group.gaussians.sh)


def _concatenate(clouds: list[GaussianCloud]) -> GaussianCloud:
    return GaussianCloud(*(torch.cat(values) for values in zip(*clouds, strict=True)))


def _similarity_matrix(placed: PlacedObject | None) -> list[list[float]] | None:
    if placed is None:
        return None
    scale, rotation, translation = placed.world_from_obj
    return [*torch.cat([scale * rotation, translation[:, None]], dim=1).tolist(), [0.0, 0.0, 0.0, 1.0]]


@contextmanager
def _replaced_whole(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `folder` when the block ends well and vanishes when it fails.

    No call swaps two folders in one step: a process killed between the two renames leaves the earlier export, whole,
    as `.<name>.<random>/earlier` beside where it stood, from where it can be moved back by hand.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST_NAME).exists():
        raise OsnGsError(f"{folder} holds files but no {MANIFEST_NAME}: not an earlier export, so it is not replaced.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    unfinished, earlier = workspace / "unfinished", workspace / "earlier"
    try:
        unfinished.mkdir()
        yield unfinished
        if folder.exists():
            os.rename(folder, earlier)
        os.rename(unfinished, folder)
    except OsnGsError as error:
        raise type(error)(str(error).replace(str(unfinished), str(folder))) from None  # the name the user knows
    finally:
        if earlier.exists() and not folder.exists():
            os.rename(earlier, folder)
        shutil.rmtree(workspace, ignore_errors=True)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise OsnGsError(f"{path}: no such file.") from None
    except ValueError as error:
        raise OsnGsError(f"{path}: not a JSON file ({error}).") from None


def _check_configurations(path: Path, configurations: ConfigurationSet) -> None:
    num_objects = len(configurations.object_names)
    names = [sample.name for sample in configurations.configurations]
    for sample in configurations.configurations:
        where = f"{path}: configuration {sample.name!r}"
        if names.count(sample.name) > 1 or Path(sample.name).name != sample.name:
            raise OsnGsError(f"{where} needs a name of its own without slashes: files are called by it.")
        if len(sample.object_scales) != num_objects:
            raise OsnGsError(f"{where} has {len(sample.object_scales)} object scales for {num_objects} objects.")
        if not all(_is_number(scale) and scale > 0 for scale in sample.object_scales):
            raise OsnGsError(f"{where} needs positive finite object scales, got {sample.object_scales}.")
        for name in ("score", "oracle_accuracy"):
            value = getattr(sample, name)
            unknown = value is None and name == "oracle_accuracy"
            if not (unknown or (_is_number(value) and 0 <= value <= 1)):
                raise OsnGsError(f"{where} needs {name} in [0, 1], got {value!r}.")
    for interval in configurations.intervals:
        where = f"{path}: interval of {interval.object_name!r}"
        if interval.object_name not in configurations.object_names:
            raise OsnGsError(f"{where} names no object; the objects are {', '.join(configurations.object_names)}.")
        if not (_is_number(interval.lo) and _is_number(interval.hi) and 0 < interval.lo <= interval.hi):
            raise OsnGsError(f"{where} needs 0 < lo <= hi, got lo {interval.lo!r} and hi {interval.hi!r}.")
        for bounded_by in (interval.lo_bounded_by, interval.hi_bounded_by):
            if bounded_by not in get_args(BoundedBy):
                raise OsnGsError(f"{where} is bounded by {bounded_by!r}; expected {' or '.join(get_args(BoundedBy))}.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
