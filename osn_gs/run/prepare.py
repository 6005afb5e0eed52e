"""`tools/prepare.py`: from a clip and masks to a scene folder, step by step."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBars

from osn_gs.config import config_to_yaml, parse_config
from osn_gs.errors import ConfigError
from osn_gs.files import write_text_atomic
from osn_gs.preprocess.pipeline import PrepareConfig, scene_steps
from osn_gs.preprocess.progress import Progress
from osn_gs.preprocess.report import HTML_FILE
from osn_gs.preprocess.steps import StepOutcome, run_steps

PROGRAM = "python tools/prepare.py"
CONFIG_FILE = Path("prepare") / "config.yml"
NAME_WIDTH = 8  # of the longest step's name, and a gap


def prepare_from_arguments(arguments: Sequence[str]) -> int:
    """Parse the command line and prepare a scene; the exit code of the tool."""
    prepare(parse_config(PrepareConfig, list(arguments), PROGRAM), Console(soft_wrap=True, highlight=False))
    return 0


def prepare(config: PrepareConfig, console: Console) -> tuple[StepOutcome, ...]:
    """Run the steps that `config` asks for in the folder `config.out`, and say what came of them.

    Raises:
        ConfigError: options are missing or contradict each other, or `config.out` holds something else.
        DatasetError: a step cannot do its work; what earlier steps made is kept.
    """
    if config.out is None:
        raise ConfigError("no scene folder is given; expected --out FOLDER, a new one or one prepared before.")
    config = _with_whole_paths(config)
    steps = scene_steps(config)
    outcomes: list[StepOutcome] = []
    try:
        with _progress_bars(console) as bars:
            for outcome in run_steps(config.out, steps, config.redo, lambda name: _new_bar(bars, name)):
                outcomes.append(outcome)
                for task in bars.task_ids:
                    bars.remove_task(task)
                console.print(_line(outcome))
                write_text_atomic(config.out / CONFIG_FILE, config_to_yaml(dataclasses.replace(config, redo=())))
    finally:
        _print_advice(outcomes, console)
    _print_next(config, console)
    return tuple(outcomes)


def _with_whole_paths(config: Any) -> Any:
    """The options with every path absolute, so that they mean the same from another directory."""
    changed = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changed[field.name] = _with_whole_paths(value)
        elif isinstance(value, Path):
            changed[field.name] = value.absolute()
    return dataclasses.replace(config, **changed)


def _progress_bars(console: Console) -> ProgressBars:
    return ProgressBars(
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _new_bar(bars: ProgressBars, name: str) -> Progress:
    task = bars.add_task(name, total=None)
    return lambda done, total: bars.update(task, completed=done, total=total)


def _line(outcome: StepOutcome) -> str:
    """One finished step: its seconds and where its results lie."""
    name = f"[bold]{outcome.name:<{NAME_WIDTH}}[/]"
    if outcome.unchanged:
        return f"{name}{'':>7}    unchanged, kept"
    return f"{name}{outcome.record.seconds:7.1f} s  {', '.join(_places(outcome.record.files))}"


def _places(files: Sequence[str]) -> list[str]:
    """Top folders of a step's files, and its pictures and pages by name."""
    shown = [file if file.startswith("prepare/") or "/" not in file else file.split("/")[0] + "/" for file in files]
    return [place for place in dict.fromkeys(shown) if not (place.startswith("prepare/") and place.endswith(".json"))]


def _print_advice(outcomes: Sequence[StepOutcome], console: Console) -> None:
    advice = [(outcome.name, line) for outcome in outcomes for line in outcome.record.advice]
    if advice:
        console.print("\n[bold]Advice[/]")
    for name, line in advice:
        console.print(f"- {name}: {escape(line)}")


def _print_next(config: PrepareConfig, console: Console) -> None:
    out = shlex.quote(str(config.out))
    again = f"{PROGRAM} --config {shlex.quote(str(config.out / CONFIG_FILE))}"
    if config.until != "report":
        console.print(f"\nStopped after {config.until} as asked.\nGo on    {escape(again)} --until report")
        return
    console.print(
        f"\nLook at  {escape(str(config.out / HTML_FILE))}\n"
        f"Change   {escape(again)} --redo tracks    or other options: what they do not touch is kept\n"
        f"Train    python tools/train.py --data {escape(out)}"
    )
