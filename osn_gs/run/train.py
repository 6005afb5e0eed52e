"""`tools/train.py`: from options to a finished run folder."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from rich.markup import escape

from osn_gs.config import config_to_yaml, load_config, parse_config
from osn_gs.data.demo import write_demo_scene
from osn_gs.data.osn_layout import load_scene
from osn_gs.data.scene_data import SceneData
from osn_gs.errors import ConfigError
from osn_gs.files import write_json_atomic, write_text_atomic
from osn_gs.run.command import EXIT_INTERRUPTED
from osn_gs.run.finish import finish_run
from osn_gs.run.folder import RunFolder
from osn_gs.run.progress import TrainingProgress
from osn_gs.training.checkpoints import checkpoint_folders, latest_checkpoint, restore, save_checkpoint
from osn_gs.training.config import TrainConfig
from osn_gs.training.joint_optimizer import JointOptimizer, RoundReport
from osn_gs.training.start import initial_scene

PROGRAM = "python tools/train.py"
RUNS = Path("runs")
DEMO_NAME = "demo"


def train_from_arguments(arguments: list[str], demo_config: Path) -> int:
    """Parse the command line and train; the exit code of the tool.

    Without --data the built-in scene is trained, and `demo_config` is read before all other options.
    """
    config = parse_config(TrainConfig, arguments, PROGRAM)
    if config.resume:
        folder, config = _reopen(config, arguments)
    else:
        if config.data is None:
            config = parse_config(TrainConfig, ["--config", str(demo_config), *arguments], PROGRAM)
        folder = _new_run_folder(config)
        if config.data is not None:
            config = dataclasses.replace(config, data=config.data.resolve())  # to resume from another directory
    console = Console(soft_wrap=True)
    return train(config, folder, console)


def train(config: TrainConfig, folder: RunFolder, console: Console) -> int:
    """Run the schedule from where the folder's checkpoint stands (or from the start) and finish the run folder.

    Returns 0, or 130 where Ctrl-C stopped it; what was learned is then in a checkpoint.
    """
    device = _device(config.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # the rasterizer has its own threads; torch's only wait for each other beside them
    torch.manual_seed(config.seed)
    data = _load_data(config, folder, console)
    optimizer = JointOptimizer(
        initial_scene(data, config.gaussians, device), data, config, generator=torch.default_generator
    )
    if config.resume and checkpoint_folders(folder.checkpoints):
        restore(optimizer, latest_checkpoint(folder.checkpoints))
    else:
        write_text_atomic(folder.config, config_to_yaml(dataclasses.replace(config, resume=False)))
    console.print(_headline(data, optimizer, device, folder))
    go_on = f"Go on with: {PROGRAM} --run {escape(shlex.quote(str(folder.root)))} --resume"
    if not _take_steps(optimizer, config, folder, console):
        console.print(f"Stopped and saved. {go_on}")
        return EXIT_INTERRUPTED
    try:
        finish_run(optimizer, data, config, folder, console)
    except KeyboardInterrupt:
        console.print(f"Stopped; training was done and is saved. {go_on}")
        return EXIT_INTERRUPTED
    return 0


def _take_steps(optimizer: JointOptimizer, config: TrainConfig, folder: RunFolder, console: Console) -> bool:
    """Run the optimizer to its end, with checkpoints; False where Ctrl-C stopped it."""
    with _interrupt_flag() as interrupted, TrainingProgress(console, optimizer) as progress:
        for report in optimizer.run():
            progress.show(report)
            if isinstance(report, RoundReport):
                write_json_atomic(folder.round_stats, [asdict(past) for past in optimizer.rounds])
            due = not isinstance(report, RoundReport) and optimizer.gaussian_step % config.checkpoint_every == 0
            if due or optimizer.finished or interrupted:
                save_checkpoint(folder.checkpoints, optimizer)
            if interrupted and not optimizer.finished:
                return False
        return True


@contextmanager
def _interrupt_flag() -> Iterator[list[int]]:
    """A list that is no longer empty once Ctrl-C was pressed; a second Ctrl-C stops at once."""
    pressed: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def _new_run_folder(config: TrainConfig) -> RunFolder:
    """The folder asked for, or the first free one of runs/NAME, runs/NAME-2, ...

    Raises ConfigError where a named folder already holds a run.
    """
    if config.run is not None:
        if RunFolder(config.run).config.exists():
            raise ConfigError(
                f"{config.run} already holds a run; go on with it (--resume) or choose another folder with --run."
            )
        return RunFolder(config.run)
    candidates = _named_run_folders(config)
    return next(folder for folder in candidates if not folder.root.exists())


def _named_run_folders(config: TrainConfig) -> Iterator[RunFolder]:
    name = DEMO_NAME if config.data is None else config.data.resolve().name
    yield RunFolder(RUNS / name)
    number = 2
    while True:
        yield RunFolder(RUNS / f"{name}-{number}")
        number += 1


def _reopen(config: TrainConfig, arguments: list[str]) -> tuple[RunFolder, TrainConfig]:
    """The run to go on with, and its own options; raises ConfigError where the command line contradicts them."""
    if config.run is not None:
        folder = RunFolder(config.run)
    else:
        candidates = itertools.takewhile(lambda candidate: candidate.root.exists(), _named_run_folders(config))
        existing = [candidate for candidate in candidates if candidate.config.exists()]
        if not existing:
            raise ConfigError("nothing to resume: no run of this name under runs/; say which with --run FOLDER.")
        folder = existing[-1]
    if not folder.config.exists():
        raise ConfigError(f"{folder.root}: no run to resume here (it has no config.yml); start one without --resume.")
    stored = load_config(TrainConfig, folder.config)
    asked = parse_config(TrainConfig, ["--config", str(folder.config), *arguments], PROGRAM)
    asked = dataclasses.replace(
        asked,
        run=stored.run,
        resume=stored.resume,
        data=None if asked.data is None else asked.data.resolve(),
    )
    differing = [name for name, value in asdict(stored).items() if asdict(asked)[name] != value]
    if differing:
        raise ConfigError(
            f"{folder.root}: a resumed run keeps the options it was started with, but {', '.join(differing)} "
            "differ; leave them out, or start a new run."
        )
    return folder, dataclasses.replace(stored, resume=True)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: no CUDA device was found; leave it out to train on the CPU.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _load_data(config: TrainConfig, folder: RunFolder, console: Console) -> SceneData:
    """The scene folder of the options, or the demo scene, made on first use inside the run folder."""
    scene_folder = config.data
    if scene_folder is None:
        scene_folder = folder.demo_scene
        if not scene_folder.exists():
            with console.status("making the demo scene"):
                write_demo_scene(scene_folder)
    return load_scene(
        scene_folder,
        config.preproc,
        config.poses,
        config.downscale,
        config.seed,
        config.near,
        config.far,
        config.pixel_center,
    )


def _headline(data: SceneData, optimizer: JointOptimizer, device: torch.device, folder: RunFolder) -> str:
    objects = escape(", ".join(data.object_names))
    return (
        f"[bold]{escape(data.name)}[/]: {data.num_objects} objects ({objects}), {data.num_frames} frames "
        f"of {data.width}x{data.height}, {optimizer.scene.num_gaussians} Gaussians to start with, on {device}; "
        f"run folder {escape(str(folder.root))}"
    )
