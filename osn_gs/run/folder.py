"""Where things lie in a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunFolder:
    """Paths below one run's folder."""

    root: Path

    @property
    def config(self) -> Path:
        """The options the run was made with, complete."""
        return self.root / "config.yml"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def round_stats(self) -> Path:
        """One entry per round of network steps."""
        return self.root / "stats" / "rounds.json"

    @property
    def bending_stats(self) -> Path:
        """Which objects bend, and the trials that said so."""
        return self.root / "stats" / "bending.json"

    @property
    def final_stats(self) -> Path:
        return self.root / "stats" / "final.json"

    @property
    def resources(self) -> Path:
        """Seconds and memory that training took."""
        return self.root / "stats" / "resources.json"

    def evaluation(self, split: str) -> Path:
        """What tools/evaluate.py found of a split."""
        return self.root / "stats" / f"eval_{split}.json"

    @property
    def configurations(self) -> Path:
        return self.root / "configurations.json"

    @property
    def export(self) -> Path:
        return self.root / "export"

    @property
    def preview(self) -> Path:
        return self.root / "preview"

    @property
    def demo_scene(self) -> Path:
        """The built-in scene, where the run is on it."""
        return self.root / "demo"
