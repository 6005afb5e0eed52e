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
from osn_gs.data.scene_data import SceneData
from osn_gs.errors import ConfigError
from osn_gs.files import write_json_atomic, write_text_atomic
from osn_gs.run.command import EXIT_INTERRUPTED
from osn_gs.run.finish import finish_run
from osn_gs.run.folder import RunFolder
from osn_gs.run.live_view import LiveView
from osn_gs.run.open_run import RUNS, choose_device, load_run_data, open_run
from osn_gs.run.progress import TrainingProgress
from osn_gs.run.resources import ResourceMeter
from osn_gs.run.serve import address, start_server
from osn_gs.run.view import viewed_run
from osn_gs.training.checkpoints import checkpoint_folders, latest_checkpoint, restore, save_checkpoint
from osn_gs.training.config import TrainConfig
from osn_gs.training.joint_optimizer import BendingReport, JointOptimizer, RoundReport
from osn_gs.training.start import initial_scene

PROGRAM = "python tools/train.py"
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
    device = choose_device(config.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # the rasterizer has its own threads; torch's only wait for each other beside them
    torch.manual_seed(config.seed)
    data = load_run_data(config, folder, console)
    optimizer = JointOptimizer(
        initial_scene(data, config.gaussians, device), data, config, generator=torch.default_generator
    )
    if config.resume and checkpoint_folders(folder.checkpoints):
        restore(optimizer, latest_checkpoint(folder.checkpoints))
    else:
        write_text_atomic(folder.config, config_to_yaml(dataclasses.replace(config, resume=False)))
    console.print(_headline(data, optimizer, device, folder))
    with _live_view(config, optimizer, data, folder, console) as live:
        code = _train_and_finish(optimizer, data, config, folder, console, live)
        if live is not None and code == 0:
            live.show_until_interrupted(viewed_run(open_run(folder.root, console), device), console)
        return code


@contextmanager
def _live_view(
    config: TrainConfig, optimizer: JointOptimizer, data: SceneData, folder: RunFolder, console: Console
) -> Iterator[LiveView | None]:
    """The run in the browser where that is asked for."""
    if not config.view:
        yield None
        return
    server = start_server(config.host, config.port, folder.root.name, console)
    live = LiveView(server, optimizer, data)
    try:
        console.print(f"Watch it at {address(server)}")
        yield live
    finally:
        live.close()
        server.stop()


def _train_and_finish(
    optimizer: JointOptimizer,
    data: SceneData,
    config: TrainConfig,
    folder: RunFolder,
    console: Console,
    live: LiveView | None,
) -> int:
    """The exit code of `train`."""
    go_on = f"Go on with: {PROGRAM} --run {escape(shlex.quote(str(folder.root)))} --resume"
    if not _take_steps(optimizer, config, folder, console, live):
        console.print(f"Stopped and saved. {go_on}")
        return EXIT_INTERRUPTED
    try:
        finish_run(optimizer, data, config, folder, console)
    except KeyboardInterrupt:
        console.print(f"Stopped; training was done and is saved. {go_on}")
        return EXIT_INTERRUPTED
    return 0


def _take_steps(
    optimizer: JointOptimizer,
    config: TrainConfig,
    folder: RunFolder,
    console: Console,
    live: LiveView | None,
) -> bool:
    """Run the optimizer to its end, with checkpoints; False where Ctrl-C stopped it."""
    meter = ResourceMeter(folder.resources, config.resume)
    with _interrupt_flag() as interrupted, TrainingProgress(console, optimizer) as progress:
        for report in optimizer.run():
            progress.show(report)
            if live is not None:
                live.after_step(report)
            if isinstance(report, BendingReport):
                write_json_atomic(folder.bending_stats, asdict(report))
            if isinstance(report, RoundReport):
                write_json_atomic(folder.round_stats, [asdict(past) for past in optimizer.rounds])
            due = not isinstance(report, RoundReport) and optimizer.gaussian_step % config.checkpoint_every == 0
            if due or optimizer.finished or interrupted:
                save_checkpoint(folder.checkpoints, optimizer)
                meter.save()
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
    watching = {"view": asked.view, "host": asked.host, "port": asked.port}  # may be another way each time
    stored = dataclasses.replace(stored, **watching)
    asked = dataclasses.replace(
        asked,
        run=stored.run,
        resume=stored.resume,
        data=None if asked.data is None else asked.data.resolve(),
    )
    check_same_options(folder, stored, asked)
    return folder, dataclasses.replace(stored, resume=True)


def check_same_options(folder: RunFolder, stored: TrainConfig, asked: TrainConfig) -> None:
    """Raises ConfigError, which names them, for options that a run was not started with."""
    differing = [name for name, value in asdict(stored).items() if asdict(asked)[name] != value]
    if differing:
        raise ConfigError(
            f"{folder.root}: a resumed run keeps the options it was started with, but {', '.join(differing)} "
            "differ; leave them out, or start a new run."
        )


def _headline(data: SceneData, optimizer: JointOptimizer, device: torch.device, folder: RunFolder) -> str:
    objects = escape(", ".join(data.object_names))
    return (
        f"[bold]{escape(data.name)}[/]: {data.num_objects} objects ({objects}), {data.num_frames} frames "
        f"of {data.width}x{data.height}, {optimizer.scene.num_gaussians} Gaussians to start with, on {device}; "
        f"run folder {escape(str(folder.root))}"
    )
