"""Training and evaluating a list of scenes, beside baselines, into one table."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Console
from rich.markup import escape

from osn_gs.benchmarks.options import check_counts
from osn_gs.config import load_config, parse_config
from osn_gs.data.osn_files import read_json
from osn_gs.errors import ConfigError, OsnGsError
from osn_gs.evaluation.scores import ScoreKind, score_kind
from osn_gs.files import write_json_atomic, write_text_atomic
from osn_gs.run.command import EXIT_INTERRUPTED, run_tool
from osn_gs.run.evaluate import EvaluateConfig, evaluate, is_current
from osn_gs.run.folder import RunFolder
from osn_gs.run.open_run import open_run
from osn_gs.run.resources import read_resource_use
from osn_gs.run.train import PROGRAM as TRAIN_PROGRAM
from osn_gs.run.train import check_same_options, train
from osn_gs.training.config import ScheduleConfig, TrainConfig

Variant = Literal["full", "rigid", "no-bootstrap", "R=1", "R=10", "one-vector", "four-vectors"]
TRAIN, TEST, STEREO = "train", "test", "stereo"
SPLITS = (TRAIN, TEST, STEREO)
NUM_TRAIN_CONFIGURATIONS = 2  # training views look the same under all valid configurations
TABLE_FILE, FIGURES_FILE = "table.md", "figures.json"
GIBIBYTE = 2**30


@dataclass(frozen=True)
class ScenesBenchmark:
    """Train and evaluate scenes one after the other, and write one table of them all, beside baselines.

    Called again, it goes on where it was stopped: runs and evaluations that are complete are kept. Baselines that need
    no training of their own are taken from the full runs: the middle of the scale ranges, which is what a method with a
    single answer has to guess, and random scales in the initial box.
    """

    configs: tuple[Path, ...]
    """One YAML file a scene, as tools/train.py --config takes it; its name is the scene's name in the table."""
    out: Path = Path("runs/benchmark")
    """Folder for runs (SCENE/VARIANT-SEED), table.md and figures.json."""
    variants: tuple[Variant, ...] = ("full",)
    """full: as configured. rigid: no object bends. no-bootstrap: its steps go to the end. R=1, R=10: rounds, with as
    many steps on the Gaussians in all (steps of the network are by round, as in the paper). one-vector, four-vectors:
    scale vectors composited in a scene step."""
    seeds: tuple[int, ...] = (0,)
    """Every variant is trained with each; the table has the mean."""
    num_configurations: int = 100
    """Sampled configurations that held-out views are scored under."""

    def __post_init__(self) -> None:
        check_counts(num_configurations=self.num_configurations)
        for name in ("configs", "variants", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"--{name}: expected at least one, and each once, got {' '.join(map(str, values))}.")
        names = [path.stem for path in self.configs]
        if len(set(names)) < len(names):
            raise ConfigError(f"--configs: two scenes would have one name among {', '.join(names)}; rename a file.")


class _Job(NamedTuple):
    """One training of the benchmark."""

    scene: str
    variant: Variant
    seed: int
    config: TrainConfig

    @property
    def title(self) -> str:
        return f"{self.scene}, {self.variant}, seed {self.seed}"

    @property
    def folder(self) -> RunFolder:
        assert self.config.run is not None
        return RunFolder(self.config.run)


def benchmark_scenes(options: ScenesBenchmark, console: Console) -> dict[str, Any]:
    """Train and evaluate what is not done yet, print the table and return the figures, which are in `out` too.

    Rows that earlier calls left in `out` stay. A job that fails is told, and the others go on.

    Raises:
        ConfigError: a configuration file cannot be used, or at last, that some jobs failed.
    """
    rows = _read_rows(options.out / FIGURES_FILE)
    failed = []
    for job in list(_jobs(options)):
        console.rule(escape(job.title))
        try:
            _train_to_the_end(job, console)
            row = _row(job, _evaluations(job, options, console))
        except OsnGsError as error:
            console.print(f"[bold red]failed:[/] {escape(str(error))}")
            failed.append(job.title)
            continue
        rows = [other for other in rows if _key(other) != _key(row)] + [row]
        write_json_atomic(options.out / FIGURES_FILE, _figures(rows))
        write_text_atomic(options.out / TABLE_FILE, markdown_table(rows))
    if rows:
        console.print(markdown_table(rows), markup=False, soft_wrap=True)
    if failed:
        raise ConfigError(f"{'; '.join(failed)}: could not be trained or evaluated, see above.")
    return _figures(rows)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return read_json(path)["rows"] if path.exists() else []


def _key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["scene"], row["variant"], row["seed"]


def _figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    return {"machine": machine, "rows": rows}


def _jobs(options: ScenesBenchmark) -> Iterator[_Job]:
    for path in options.configs:
        samples = ["--object-scales.samples", str(options.num_configurations), "--evaluate-configurations", "1"]
        config = parse_config(TrainConfig, ["--config", str(path), *samples], TRAIN_PROGRAM)
        if config.data is not None:
            config = dataclasses.replace(config, data=config.data.resolve())
        for variant in options.variants:
            for seed in options.seeds:
                run = options.out / path.stem / f"{variant}-{seed}"
                varied = dataclasses.replace(VARIANTS[variant](config), run=run, seed=seed)
                yield _Job(path.stem, variant, seed, varied)


def _without_bootstrap(config: TrainConfig) -> TrainConfig:
    schedule = config.schedule
    return _with_schedule(config, bootstrap_steps=0, final_steps=schedule.final_steps + schedule.bootstrap_steps)


def _with_rounds(rounds: int) -> Callable[[TrainConfig], TrainConfig]:
    """Other rounds of as many steps each; the steps after the last make up for it, as in the paper's ablation.

    Where the rounds alone would take more than all steps, each is that much shorter.
    """

    def vary(config: TrainConfig) -> TrainConfig:
        schedule = config.schedule
        total = schedule.rounds * schedule.scene_steps + schedule.final_steps
        scene_steps = min(schedule.scene_steps, total // rounds)
        return _with_schedule(config, rounds=rounds, scene_steps=scene_steps, final_steps=total - rounds * scene_steps)

    return vary


def _with_schedule(config: TrainConfig, **changes: int) -> TrainConfig:
    schedule: ScheduleConfig = dataclasses.replace(config.schedule, **changes)
    return dataclasses.replace(config, schedule=schedule)


def _with_vectors(count: int) -> Callable[[TrainConfig], TrainConfig]:
    return lambda config: dataclasses.replace(
        config, losses=dataclasses.replace(config.losses, configurations_per_step=count)
    )


VARIANTS: dict[Variant, Callable[[TrainConfig], TrainConfig]] = {
    "full": lambda config: config,
    "rigid": lambda config: dataclasses.replace(
        config, deformation=dataclasses.replace(config.deformation, default="rigid", objects=())
    ),
    "no-bootstrap": _without_bootstrap,
    "R=1": _with_rounds(1),
    "R=10": _with_rounds(10),
    "one-vector": _with_vectors(1),
    "four-vectors": _with_vectors(4),
}


def _train_to_the_end(job: _Job, console: Console) -> None:
    """Train in a process of its own, so that its memory is its own, unless that is done already.

    Raises:
        ConfigError: the run was begun with other options, or the training could not begin or go on.
    """
    folder = job.folder
    resumed = folder.config.exists()
    if resumed:
        check_same_options(folder, load_config(TrainConfig, folder.config), job.config)
    if folder.final_stats.exists():
        console.print("trained before, kept")
        return
    config = dataclasses.replace(job.config, resume=resumed)
    process = multiprocessing.get_context("spawn").Process(target=_train, args=(config,))
    process.start()
    try:
        process.join()
    except KeyboardInterrupt:
        process.join()  # it was told too, and saves what it has
        raise
    if process.exitcode == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if process.exitcode != 0:
        raise ConfigError(f"{job.title}: its training ended with code {process.exitcode}, see above.")


def _train(config: TrainConfig) -> None:
    """Of the new process."""
    console = Console(soft_wrap=True)
    folder = RunFolder(config.run)
    raise SystemExit(run_tool(lambda _: train(config, folder, console), []))


def _evaluations(job: _Job, options: ScenesBenchmark, console: Console) -> dict[str, dict[str, Any]]:
    """What tools/evaluate.py says of every split that the scene has, made now where it is not there yet."""
    torch.set_num_threads(1)
    found, run = {}, None
    for split in SPLITS:
        path = job.folder.evaluation(split)
        training = split == TRAIN
        count = min(options.num_configurations, NUM_TRAIN_CONFIGURATIONS) if training else options.num_configurations
        config = EvaluateConfig(job.folder.root, split, num_configurations=count, baselines=not training)
        if not path.exists() or not is_current(read_json(path), job.folder, config):
            run = run or open_run(job.folder.root, console)
            if not training and run.data is not None and split not in run.data.held_out:
                continue
            write_json_atomic(path, evaluate(run, config, console))
        found[split] = read_json(path)
    return found


def _row(job: _Job, evaluations: dict[str, dict[str, Any]]) -> dict[str, Any]:
    resources = job.folder.resources
    return {
        "scene": job.scene,
        "variant": job.variant,
        "seed": job.seed,
        "resources": dataclasses.asdict(read_resource_use(resources)) if resources.exists() else None,
        "evaluations": evaluations,
    }


class _Column(NamedTuple):
    """One column of the table: which score of which split, and the statistics written in its cells."""

    split: str
    score: str
    statistics: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.split} {score_kind(self.score).title}"


OVER_SAMPLES = ("best", "mean", "median", "worst")
COLUMNS = (
    _Column(TRAIN, "psnr", ("mean",)),
    _Column(TEST, "psnr", OVER_SAMPLES),
    _Column(TEST, "ssim", ("best", "mean")),
    _Column(TEST, "depth_ssi_mae", ("best", "mean")),
    _Column(TEST, "panoptic_quality", ("best", "mean")),
    _Column(TEST, "miou", ("best", "mean")),
    _Column(STEREO, "psnr", ("best", "mean")),
)
# The lines of a run, and what a statistic over samples is called there; then those that only the full run has.
SINGLE = {"best": None, "median": None, "worst": None}
LINES: dict[str, dict[str, str | None]] = {
    "sampled": {},
    "contact": {**SINGLE, "mean": "contact"},
    "true scales": {**SINGLE, "mean": "true_scales"},
}
FULL_LINES: dict[str, dict[str, str | None]] = {
    **{f"ours, {name}": renamed for name, renamed in LINES.items()},
    "ours, released protocol": {"best": "released", "mean": None, "median": None, "worst": None},
    "middle of the ranges": {**SINGLE, "mean": "middle"},
    "random scales": {name: f"random_{name}" for name in OVER_SAMPLES},
}


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of `benchmark_scenes` as a table, over all pixels; several seeds as their mean and half their range.

    Lines of a run whose network called nothing valid, so that the oracle's set was sampled, are marked with a star.
    """
    shown = [column for column in COLUMNS if any(_has(row, column) for row in rows)]
    titles = [f"{column.title}: {' / '.join(column.statistics)}" if len(column.statistics) > 1 else column.title
              for column in shown]  # fmt: skip
    extra = ["scale MSE: best / mean", "set IoU: layers / true depth", "minutes", "GiB"]
    lines = [["scene", "method", *titles, *extra]]
    for scene in dict.fromkeys(row["scene"] for row in rows):
        for variant in dict.fromkeys(row["variant"] for row in rows if row["scene"] == scene):
            of_variant = [row for row in rows if (row["scene"], row["variant"]) == (scene, variant)]
            of_others = {f"{variant}, {name}": renamed for name, renamed in LINES.items()}
            named_lines = FULL_LINES if variant == "full" else of_others
            for name, renamed in named_lines.items():
                first = name == next(iter(named_lines))
                cells = [_cell(of_variant, column, renamed) for column in shown]
                star = " *" if any(_sampled_from_oracle(row) for row in of_variant) else ""
                lines.append([scene, name + star, *cells, _scale_cell(of_variant, renamed)]
                             + (_run_cells(of_variant) if first else [""] * 3))  # fmt: skip
    lines.insert(1, ["---", "---", *["---:"] * (len(lines[0]) - 2)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _has(row: dict[str, Any], column: _Column) -> bool:
    return column.split in row["evaluations"] and column.score in row["evaluations"][column.split]["scores"]["all"]


def _cell(rows: Sequence[dict[str, Any]], column: _Column, renamed: dict[str, str | None]) -> str:
    having = [row for row in rows if _has(row, column)]
    by_statistic = [row["evaluations"][column.split]["scores"]["all"][column.score] for row in having]
    return _values(by_statistic, column.statistics, renamed, score_kind(column.score))


def _values(
    by_statistic: Sequence[dict[str, float]],
    statistics_shown: tuple[str, ...],
    renamed: dict[str, str | None],
    kind: ScoreKind,
) -> str:
    """The statistics that a line has, or nothing."""
    parts = []
    for statistic in statistics_shown:
        name = renamed.get(statistic, statistic)
        values = [found[name] for found in by_statistic if found.get(name) is not None]
        if not values:
            continue
        part = kind.form.format(statistics.fmean(values))
        if len(values) > 1:
            part += f" ± {kind.form.format((max(values) - min(values)) / 2)}"
        parts.append(part)
    return " / ".join(parts)


def _widest(row: dict[str, Any]) -> dict[str, Any]:
    """The evaluation over the most configurations."""
    return max(row["evaluations"].values(), key=lambda evaluation: evaluation["num_configurations"])


def _sampled_from_oracle(row: dict[str, Any]) -> bool:
    drawn = _widest(row)["drawn"]
    return drawn is not None and drawn["valid_set"] == "oracle"


def _scale_cell(rows: Sequence[dict[str, Any]], renamed: dict[str, str | None]) -> str:
    found = [_widest(row)["object_scales"] for row in rows]
    known = [scales["scale_mse"] for scales in found if "scale_mse" in scales]
    return _values(known, ("best", "mean"), renamed, score_kind("scale_mse"))


def _run_cells(rows: Sequence[dict[str, Any]]) -> list[str]:
    """IoU of the learned set, minutes of training and the most memory."""
    learned = [_widest(row) for row in rows]
    layers = [found["learned_set"]["iou"] for found in learned if found["learned_set"] is not None]
    with_truth = [found["truth"]["true_depth_set"] for found in learned if found["truth"] is not None]
    true_depth = [found["iou"] for found in with_truth if found is not None]
    ious = [f"{statistics.fmean(values):.3f}" if values else "-" for values in (layers, true_depth)]
    used = [row["resources"] for row in rows if row["resources"] is not None]
    minutes = [resources["training_seconds"] / 60 for resources in used]
    peaks = [resources["peak_memory"] / GIBIBYTE for resources in used if resources["peak_memory"]]
    costs = [f"{statistics.fmean(minutes):.1f}" if minutes else "-", f"{max(peaks):.2f}" if peaks else "-"]
    return [" / ".join(ious), *costs]
