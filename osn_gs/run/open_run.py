"""Opening a run: the data it is of, and what it has learned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from osn_gs.config import load_config
from osn_gs.data.demo import write_demo_scene
from osn_gs.data.osn_layout import load_scene
from osn_gs.data.scene_data import HeldOutView, SceneData
from osn_gs.errors import CheckpointError, ConfigError, OsnGsError
from osn_gs.evaluation.views import TRAIN_SPLIT, train_views
from osn_gs.export.configurations import Configuration, ConfigurationSet, read_configurations
from osn_gs.object_scales.oracle import ScaleOracle
from osn_gs.run.drawing import LearnedScales
from osn_gs.run.folder import RunFolder
from osn_gs.scene.scene import Scene
from osn_gs.training.checkpoints import Trained, latest_checkpoint, load_trained
from osn_gs.training.config import TrainConfig
from osn_gs.training.observed_layers import oracle_of_scene

RUNS = Path("runs")


@dataclass(frozen=True)
class OpenedRun:
    """A run as its last checkpoint has it, on the CPU.

    `data` and `oracle` are None where the scene folder it was trained on is not at hand; `configuration_set` is None
    where the run has not come to its end.
    """

    folder: RunFolder
    config: TrainConfig
    trained: Trained
    data: SceneData | None
    oracle: ScaleOracle | None
    configuration_set: ConfigurationSet | None

    @property
    def configurations(self) -> tuple[Configuration, ...]:
        """Contact first where there is one, then the samples."""
        return () if self.configuration_set is None else self.configuration_set.configurations

    @property
    def learned(self) -> LearnedScales:
        """What the run knows about its object scales."""
        scene, network, rounds = self.trained
        threshold = rounds[-1].learned_set.accuracy_threshold if rounds else None
        return LearnedScales(scene.object_names, scene.scale_ranges.double(), network, self.oracle, threshold)


def open_run(root: Path, console: Console) -> OpenedRun:
    """Open a run folder; a scene folder that has gone is told, not an error.

    Raises CheckpointError for a folder that holds no run.
    """
    folder = RunFolder(root)
    if not folder.config.exists():
        raise CheckpointError(f"{root}: no run here (it has no config.yml); give the run folder of tools/train.py.")
    config = load_config(TrainConfig, folder.config)
    trained = load_trained(latest_checkpoint(folder.checkpoints))
    data = _data_of(config, folder, trained, console)
    oracle = None
    if data is not None:
        with console.status("tabulating what the occlusions allow"):
            oracle = oracle_of_scene(trained.scene, data.object_ids)
    configurations = (
        read_run_configurations(folder.configurations, trained.scene) if folder.configurations.exists() else None
    )
    return OpenedRun(folder, config, trained, data, oracle, configurations)


def read_run_configurations(path: Path, scene: Scene) -> ConfigurationSet:
    """Configurations in a file; raises ConfigError for those of other objects than the run's."""
    found = read_configurations(path)
    if found.object_names != scene.object_names:
        raise ConfigError(
            f"{path}: holds configurations of {', '.join(found.object_names)}; expected the run's objects "
            f"{', '.join(scene.object_names)}."
        )
    return found


def split_views(run: OpenedRun, split: str) -> tuple[HeldOutView, ...]:
    """The training frames, or the held-out views of a split; raises ConfigError where they are not at hand."""
    if run.data is None:
        raise ConfigError(f"--split {split}: its cameras are in the scene folder, which is not at hand; see above.")
    if split == TRAIN_SPLIT:
        return train_views(run.trained.scene, run.data)
    if split not in run.data.held_out:
        splits = ", ".join([TRAIN_SPLIT, *run.data.held_out])
        raise ConfigError(f"--split {split}: {run.data.name} has no such views; it has {splits}.")
    return run.data.held_out[split]


def newest_run() -> Path:
    """The run below `runs/` that was written to last; raises CheckpointError where there is none."""
    found = [config.parent for config in RUNS.glob("*/config.yml") if RunFolder(config.parent).checkpoints.exists()]
    if not found:
        raise CheckpointError(f"no run below {RUNS}/; train one with python tools/train.py, or say which to open.")
    return max(found, key=lambda root: RunFolder(root).checkpoints.stat().st_mtime)


def _data_of(config: TrainConfig, folder: RunFolder, trained: Trained, console: Console) -> SceneData | None:
    """The data a run was trained on, where it still fits."""
    if config.data is None and not folder.demo_scene.exists():
        gone = f"{folder.demo_scene} has gone."
    else:
        try:
            data = load_run_data(config, folder, console)
        except OsnGsError as error:
            gone = str(error)
        else:
            scene = trained.scene
            if (data.object_names, data.num_frames, data.width, data.height) == (
                scene.object_names, scene.num_frames, scene.width, scene.height,
            ):  # fmt: skip
                return data
            gone = f"{data.folder} holds another scene now"
    console.print(
        f"[yellow]The video of this run is not at hand:[/] {escape(gone)} Scores are the network's alone; which "
        "objects stand wrongly in front of which cannot be told."
    )
    return None


def choose_device(name: str) -> torch.device:
    """The device of an option `auto`, `cpu` or `cuda`; raises ConfigError where it is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: no CUDA device was found; leave it out to train on the CPU.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def load_run_data(config: TrainConfig, folder: RunFolder, console: Console) -> SceneData:
    """The scene folder of the options, or the demo scene, made on first use inside the run folder.

    Raises ConfigError where it has another number of objects than the options ask for.
    """
    scene_folder = config.data
    if scene_folder is None:
        scene_folder = folder.demo_scene
        if not scene_folder.exists():
            with console.status("making the demo scene"):
                write_demo_scene(scene_folder)
    data = load_scene(
        scene_folder,
        config.preproc,
        config.poses,
        config.downscale,
        config.seed,
        config.near,
        config.far,
        config.pixel_center,
    )
    if config.num_objects not in (None, data.num_objects):
        raise ConfigError(
            f"{scene_folder}: expected {config.num_objects} objects, background included, as num_objects says, but it "
            f"has {data.num_objects}; give the folder these options were written for with --data, or say --num-objects "
            f"{data.num_objects}."
        )
    return data
