"""From a clip and masks to a scene folder: the steps, what each reads, and all their options."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from osn_gs.errors import ConfigError
from osn_gs.preprocess.frames import FramesConfig, extract_frames
from osn_gs.preprocess.layout import LayoutConfig, write_layout
from osn_gs.preprocess.masks import MasksConfig, import_masks
from osn_gs.preprocess.point_tracking import TracksConfig
from osn_gs.preprocess.report import write_report
from osn_gs.preprocess.sfm.config import SfmConfig
from osn_gs.preprocess.sfm.objects import reconstruct_objects
from osn_gs.preprocess.steps import Step
from osn_gs.preprocess.track_objects import track_objects

StepName = Literal["frames", "masks", "tracks", "sfm", "layout", "report"]


@dataclass(frozen=True)
class PrepareConfig:
    """From a clip and masks of its moving objects to a scene folder that tools/train.py takes."""

    frames: Annotated[FramesConfig, tyro.conf.arg(name="")] = field(default_factory=FramesConfig)
    masks: Annotated[MasksConfig, tyro.conf.arg(name="")] = field(default_factory=MasksConfig)
    out: Path | None = None
    """The scene folder: new, or prepared before. Steps whose input did not change are not run again."""
    until: StepName = "report"
    """The last step to run."""
    redo: tuple[StepName, ...] = ()
    """Steps to run again although nothing changed, and with them those that read their results."""
    tracks: TracksConfig = field(default_factory=TracksConfig)
    sfm: SfmConfig = field(default_factory=SfmConfig)
    layout: LayoutConfig = field(default_factory=LayoutConfig)


def scene_steps(config: PrepareConfig) -> tuple[Step, ...]:
    """The steps up to `config.until`, in order.

    Raises ConfigError where masks are needed but none are given, or `redo` names a step behind `until`.
    """
    every_step = (
        Step("frames", extract_frames, config.frames, ()),
        Step("masks", import_masks, config.masks, ("frames",)),
        Step("tracks", track_objects, config.tracks, ("frames", "masks")),
        Step("sfm", reconstruct_objects, config.sfm, ("frames", "masks", "tracks")),
        Step("layout", write_layout, config.layout, ("frames", "masks", "tracks", "sfm")),
        Step("report", write_report, None, ("frames", "masks", "tracks", "sfm", "layout")),
    )
    names = [step.name for step in every_step]
    steps = every_step[: names.index(config.until) + 1]
    names = names[: len(steps)]
    for name in config.redo:
        if name not in names:
            raise ConfigError(f"--redo {name}: this step comes after --until {config.until}, so it would not be run.")
    if "masks" in names and config.masks.masks is None:
        raise ConfigError(
            "no masks are given; expected --masks FOLDER with the objects' outlines. To make them by clicking: "
            f"python tools/segment.py {_source_flags(config.frames)} --out masks/"
        )
    return steps


def _source_flags(frames: FramesConfig) -> str:
    return f"--images {frames.images}" if frames.images is not None else f"--video {frames.video or 'VIDEO'}"
