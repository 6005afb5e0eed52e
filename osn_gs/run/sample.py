"""`tools/sample.py`: draws more configurations of a run, or such that agree with known scales."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from osn_gs.config import parse_config
from osn_gs.errors import ConfigError
from osn_gs.export.configurations import ConfigurationSet, write_configurations
from osn_gs.object_scales.constraints import FREE, Held, ScaleConstraints, naming_objects, reduce_scales
from osn_gs.run.drawing import draw_configurations, set_volume
from osn_gs.run.folder import RunFolder
from osn_gs.run.open_run import newest_run, open_run

PROGRAM = "python tools/sample.py"


@dataclass(frozen=True)
class SampleConfig:
    """Draw configurations of a trained run, each a scale for every object.

    They replace those in RUN/configurations.json, which tools/view.py and tools/render.py show; the contact
    configuration stays the first. With --fix they go to a file of their own, RUN/configurations_OBJECT_SCALE.json.
    """

    run: tyro.conf.Positional[Path | None] = None
    """Run folder of tools/train.py; by default the newest below runs/."""
    num: int = 100
    """Configurations to draw."""
    fix: tuple[str, ...] = ()
    """Scales that are known, as OBJECT=SCALE (the scale that the viewer writes under its slider): only configurations
    with them are drawn."""
    diverse: bool = False
    """Draw configurations far from each other, not evenly over the set."""
    seed: int = 0
    """Of the draws."""
    out: Path | None = None
    """File to write, in place of these."""

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ConfigError(f"num: expected at least 1 configuration, got {self.num}.")


def sample_from_arguments(arguments: list[str]) -> int:
    """Parse the command line, draw and write; the exit code of the tool."""
    config = parse_config(SampleConfig, arguments, PROGRAM)
    console = Console(soft_wrap=True, highlight=False)
    torch.set_num_threads(1)
    run = open_run(config.run or newest_run(), console)
    learned = run.learned
    constraints = parse_fixed_scales(config.fix, learned.object_names)
    with naming_objects(learned.object_names):
        reduce_scales(learned.scale_ranges, constraints)  # what cannot be is told before the work
    target = config.out or _default_file(run.folder, config.fix)
    if run.oracle is None and config.out is None and target.exists():
        raise ConfigError(
            f"{target}: holds what can only be found with the video of the run, which is not at hand; see above. Give "
            "--out FILE for the new draws."
        )
    generator = torch.Generator().manual_seed(config.seed)
    with console.status("drawing"), naming_objects(learned.object_names):
        configurations = draw_configurations(learned, config.num, generator, constraints, config.diverse)
    write_configurations(target, configurations)
    if configurations.intervals:
        console.print(_interval_table(configurations))
    console.print(_volume_line(learned, configurations, constraints, generator))
    console.print(f"{len(configurations.configurations)} configurations are in {escape(str(target))}.")
    return 0


def _volume_line(
    learned: LearnedScales, configurations: ConfigurationSet, constraints: ScaleConstraints, generator: torch.Generator
) -> str:
    """How small the set is."""
    assert configurations.drawn is not None, "just drawn"
    if configurations.drawn.valid_set == "oracle":
        return "The scale network calls nothing valid yet: configurations were drawn from the oracle's set."
    volume = set_volume(learned, constraints, generator)
    given = "" if constraints == FREE else " that has the fixed scales"
    return (
        f"The learned set fills {100 * volume:.3g} % of the initial box{given}: "
        f"one of {1 / volume:,.0f} uniform draws is valid."
    )


def _default_file(folder: RunFolder, fixed: tuple[str, ...]) -> Path:
    if not fixed:
        return folder.configurations
    return folder.root / f"configurations_{'_'.join(entry.replace('=', '_') for entry in fixed)}.json"


def parse_fixed_scales(fixed: tuple[str, ...], object_names: tuple[str, ...]) -> ScaleConstraints:
    """`OBJECT=SCALE` options as constraints; raises ConfigError for what is none."""
    held = []
    for entry in fixed:
        name, _, value = entry.partition("=")
        if name not in object_names[1:]:
            raise ConfigError(
                f"--fix {entry}: expected OBJECT=SCALE with one of the moving objects, {', '.join(object_names[1:])}."
            )
        try:
            held.append(Held(object_names.index(name), float(value)))
        except ValueError:
            raise ConfigError(f"--fix {entry}: expected a number after {name}=, got {value!r}.") from None
    return ScaleConstraints(tuple(held))


def _interval_table(configurations: ConfigurationSet) -> Table:
    table = Table(title="Object scales over the set that the occlusions allow")
    for column in ("object", "from", "to", "bounded by"):
        table.add_column(column, justify="right" if column in ("from", "to") else "left")
    for interval in configurations.intervals:
        ends = dict.fromkeys((interval.lo_bounded_by, interval.hi_bounded_by))
        table.add_row(escape(interval.object_name), f"{interval.lo:.3f}", f"{interval.hi:.3f}", " and ".join(ends))
    return table
