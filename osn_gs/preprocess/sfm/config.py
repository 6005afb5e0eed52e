"""What structure from motion can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from osn_gs.errors import ConfigError


@dataclass(frozen=True)
class SfmConfig:
    """Poses and points of every object from its tracks."""

    background_model: Path | None = None
    """Folder of a COLMAP model of the background (cameras, images, points3D as .bin or .txt), whose image names are
    those of the source frames: its poses are taken as they stand."""
    seed: int = 0
    """Random seed of the mappers. The same input and seed give the same result."""
    workers: int = 2
    """Objects reconstructed at the same time."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"sfm.workers is {self.workers}; expected at least 1.")
        if self.seed < 0:
            raise ConfigError(f"sfm.seed is {self.seed}; expected 0 or more.")
