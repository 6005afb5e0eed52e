"""`tools/evaluate.py`: a run's pictures and object scales against the truth, over many configurations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from jaxtyping import Float
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from osn_gs.config import parse_config
from osn_gs.data.scene_data import HeldOutView, SceneData
from osn_gs.errors import ConfigError
from osn_gs.evaluation.co_visibility import with_co_visible_pixels
from osn_gs.evaluation.lpips import load_lpips, load_st_lpips
from osn_gs.evaluation.poses import scene_pose_errors
from osn_gs.evaluation.report import CONTACT, ScoreStatistics, candidates_of, report_scales, report_views
from osn_gs.evaluation.scores import object_of_score, score_kind
from osn_gs.evaluation.tracking import scene_tracking_errors
from osn_gs.evaluation.truth import TruthReport, truth_report
from osn_gs.evaluation.views import TRAIN_SPLIT, PerceptualMetric, Pixels
from osn_gs.export.configurations import Configuration, read_configurations
from osn_gs.files import write_json_atomic
from osn_gs.run.folder import RunFolder
from osn_gs.run.open_run import OpenedRun, choose_device, newest_run, open_run, split_views
from osn_gs.run.summary import set_lines
from osn_gs.scene.scene import Scene

PROGRAM = "python tools/evaluate.py"
PIXELS_TITLES: dict[Pixels, str] = {"all": "all pixels", "co_visible": "co-visible pixels"}
STATISTIC_TITLES = {
    "best": "best",
    "mean": "mean",
    "median": "median",
    "worst": "worst",
    "contact": "contact",
    "released": "released protocol",
    "true_scales": "true scales",
    "middle": "middle of ranges",
    "random_best": "random best",
    "random_mean": "random mean",
    "random_median": "random median",
    "random_worst": "random worst",
}


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a run's configurations on the views of a split, and its object scales and poses where their truth is known.

    best, mean, median and worst are over the sampled configurations, each score by itself. A score is averaged over the
    views, but the panoptic quality and the PSNR of an object are one figure of all views together; uncovered is the
    share of pixels that show nothing. Most samples differ from the one true scene by design. contact is the contact
    configuration. The released
    protocol is the best of the 5 samples nearest to the true scales and 5 of the next 10: it leans on the truth.
    """

    run: tyro.conf.Positional[Path | None] = None
    """Run folder of tools/train.py; by default the newest below runs/."""
    split: Literal["train", "test", "stereo"] = "test"
    """Views to score: training frames, or held-out views of the scene folder."""
    num_configurations: int = 100
    """Sampled configurations, the first of RUN/configurations.json; tools/sample.py draws more."""
    co_visibility: bool = True
    """Score also over the pixels that enough training frames see: by the folder's covis_mask, else by optical flow."""
    baselines: bool = False
    """Also score the middle of the initial ranges (a single answer) and as many random scales of the initial box."""
    lpips_weights: tuple[Path, ...] = ()
    """Weight files for LPIPS (AlexNet): torchvision's backbone and the linear weights of the package lpips."""
    st_lpips: bool = False
    """Also ST-LPIPS, of the package stlpips_pytorch. Its figures are not LPIPS figures."""
    seed: int = 0
    """Of the baselines' and the released protocol's draws."""
    out: Path | None = None
    """File to write, in place of RUN/stats/eval_SPLIT.json."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is a GPU."""

    def __post_init__(self) -> None:
        if self.num_configurations < 1:
            raise ConfigError(f"num_configurations: expected at least 1, got {self.num_configurations}.")


def evaluate_from_arguments(arguments: list[str]) -> int:
    """Parse the command line, evaluate, write and print; the exit code of the tool."""
    config = parse_config(EvaluateConfig, arguments, PROGRAM)
    console = Console(soft_wrap=True, highlight=False)
    torch.set_num_threads(1)
    run = open_run(config.run or newest_run(), console)
    evaluation = evaluate(run, config, console)
    target = config.out or run.folder.evaluation(config.split)
    print_evaluation(evaluation, console)
    write_json_atomic(target, evaluation)
    console.print(f"Written: {escape(str(target))}")
    return 0


def evaluate(run: OpenedRun, config: EvaluateConfig, console: Console) -> dict[str, Any]:
    """All that goes into stats/eval_SPLIT.json.

    Raises ConfigError where the split's views are not at hand or the run has too few configurations.
    """
    views, data = split_views(run, config.split), run.data
    assert data is not None, "views were found"
    contact, samples = _contact_and_samples(run.configurations, run.folder, config)
    perceptual = _perceptual_metrics(config)
    scene = run.trained.scene.to(choose_device(config.device))
    generator = torch.Generator().manual_seed(config.seed)
    candidates = candidates_of(data, contact, samples, config.baselines, generator)
    with Progress(console=console, transient=True) as progress:
        if config.co_visibility and config.split != TRAIN_SPLIT:
            views = _with_masks(run, scene, data, views, config.split, progress)
        task = progress.add_task("scoring views", total=len(views))
        scores = report_views(scene, views, candidates, perceptual, lambda: progress.advance(task))
    masks = [view.co_visible for view in views if view.co_visible is not None]
    poses = scene_pose_errors(data)
    tracking = scene_tracking_errors(scene, data)
    truth = _truth(run, data, contact, samples, generator)
    height, width, _ = views[0].image.shape
    return {
        "scene": data.name,
        "split": config.split,
        "num_views": len(views),
        "image_size": [width, height],
        "num_configurations": len(samples),
        "options": _options(config),
        "drawn": None if run.configuration_set.drawn is None else asdict(run.configuration_set.drawn),
        "configurations_digest": configurations_digest(contact, samples),
        "co_visible_share": float(torch.stack(masks).float().mean()) if masks else None,
        "scores": scores,
        "object_scales": report_scales(data, candidates),
        "learned_set": asdict(run.trained.rounds[-1].learned_set) if run.trained.rounds else None,
        "truth": None if truth is None else asdict(truth),
        "bends": [group.name for group in scene.objects if group.deformation is not None],
        "tracking": {name: asdict(errors) for name, errors in tracking.items()},
        "poses": None
        if poses is None
        else [{"object": name, **asdict(errors)} for name, errors in zip(data.object_names, poses, strict=True)],
    }


def _options(config: EvaluateConfig) -> dict[str, Any]:
    """The options that figures depend on, as JSON."""
    return {
        "baselines": config.baselines,
        "co_visibility": config.co_visibility,
        "lpips": bool(config.lpips_weights),
        "st_lpips": config.st_lpips,
        "seed": config.seed,
    }


def configurations_digest(contact: Float[Tensor, "k"], samples: Float[Tensor, "n k"]) -> str:
    """Tells whether two evaluations are of the same configurations."""
    return hashlib.sha256(torch.cat([contact[None], samples]).cpu().numpy().tobytes()).hexdigest()[:16]


def is_current(evaluation: dict[str, Any], folder: RunFolder, config: EvaluateConfig) -> bool:
    """Whether an evaluation is of the options and of the configurations that the run folder holds now."""
    available = read_configurations(folder.configurations).configurations
    expected = {
        "num_configurations": config.num_configurations,
        "options": _options(config),
        "configurations_digest": configurations_digest(*_contact_and_samples(available, folder, config)),
    }
    return all(evaluation.get(key) == value for key, value in expected.items())


def _contact_and_samples(
    available: Sequence[Configuration], folder: RunFolder, config: EvaluateConfig
) -> tuple[Float[Tensor, "k"], Float[Tensor, "n k"]]:
    """The contact configuration and the first samples of a run; raises ConfigError where there are too few."""
    contact = next((sample for sample in available if sample.name == CONTACT), None)
    samples = [sample.object_scales for sample in available if sample.name != CONTACT]
    if contact is None:
        raise ConfigError(
            f"{folder.configurations}: no {CONTACT} configuration yet; let the training end, or draw some with "
            f"python tools/sample.py {folder.root}."
        )
    count = config.num_configurations
    if len(samples) < count:
        raise ConfigError(
            f"--num-configurations {count}: {folder.configurations} holds {len(samples)} samples; draw more with "
            f"python tools/sample.py {folder.root} --num {count}, or ask for fewer."
        )
    return torch.tensor(contact.object_scales), torch.tensor(samples[:count])


def _perceptual_metrics(config: EvaluateConfig) -> list[PerceptualMetric]:
    metrics: list[PerceptualMetric] = [load_lpips(config.lpips_weights)] if config.lpips_weights else []
    return [*metrics, load_st_lpips()] if config.st_lpips else metrics


def _with_masks(
    run: OpenedRun,
    scene: Scene,
    data: SceneData,
    views: tuple[HeldOutView, ...],
    split: str,
    progress: Progress,
) -> tuple[HeldOutView, ...]:
    task = progress.add_task("co-visible pixels", total=len(views))
    folder = run.folder.root / "covis_mask" / split
    views = with_co_visible_pixels(scene, data, views, folder, lambda: progress.advance(task))
    progress.remove_task(task)
    return views


def _truth(
    run: OpenedRun,
    data: SceneData,
    contact: Float[Tensor, "k"],
    samples: Float[Tensor, "n k"],
    generator: torch.Generator,
) -> TruthReport | None:
    learned = run.learned
    if learned.oracle is None or learned.accuracy_threshold is None:
        return None
    rule = run.config.object_scales.rule(run.config.schedule.last_round)
    return truth_report(
        data, learned.network, learned.oracle, rule, learned.accuracy_threshold, contact.double(), samples, generator
    )


def print_evaluation(evaluation: dict[str, Any], console: Console) -> None:
    """The tables and lines of `evaluate`."""
    title = f"{evaluation['scene']}, {evaluation['split']}: {evaluation['num_views']} views"
    if evaluation["drawn"] is not None and evaluation["drawn"]["diverse"]:
        title += ", samples far apart (--diverse)"
    for pixels, scores in evaluation["scores"].items():
        what = PIXELS_TITLES[pixels]
        if pixels == "co_visible":
            what += f" ({100 * evaluation['co_visible_share']:.0f} %)"
        of_views, of_rigid, of_bending = _apart(scores, evaluation["bends"])
        for shown in (*_parts(of_views, 7), *_parts(of_rigid, 4)):
            console.print(_score_table(f"{title}, {what}", shown))
        for shown in _parts(of_bending, 4):
            console.print(_score_table(f"Objects that bend, {what}", shown))
    if evaluation["object_scales"]:
        console.print(_score_table("Object scales against the true ones", evaluation["object_scales"]))
    if evaluation["poses"] is not None:
        console.print(_pose_table(evaluation["poses"]))
    for name, errors in evaluation["tracking"].items():
        if errors["mean"] is not None:
            console.print(
                f"Points on {escape(name)} are followed with an error of {errors['mean']:.1f} % of its size (median "
                f"{errors['median']:.1f}; {errors['across']:.1f} across, {errors['along']:.1f} along the camera axis)."
            )
    for line in set_lines(evaluation):
        console.print(line)


def _apart(scores: dict[str, ScoreStatistics], bends: Sequence[str]) -> tuple[dict[str, ScoreStatistics], ...]:
    """The scores of whole views, of objects that are rigid, and of those that bend."""
    of_views = {name: score for name, score in scores.items() if object_of_score(name) is None}
    of_bending = {name: score for name, score in scores.items() if object_of_score(name) in bends}
    of_rigid = {name: score for name, score in scores.items() if name not in of_views and name not in of_bending}
    return of_views, of_rigid, of_bending


def _parts(scores: dict[str, ScoreStatistics], most: int) -> Iterator[dict[str, ScoreStatistics]]:
    """The scores in tables of at most `most` columns, which fit a terminal of 80 characters."""
    names = list(scores)
    for start in range(0, len(names), most):
        yield {name: scores[name] for name in names[start : start + most]}


def _score_table(title: str, scores: dict[str, ScoreStatistics]) -> Table:
    """One column a score, one line a statistic over the configurations."""
    table = Table(title=escape(title))
    table.add_column("", no_wrap=True)
    for name in scores:
        table.add_column(escape(score_kind(name).title), justify="right")
    for statistic, statistic_title in STATISTIC_TITLES.items():
        if any(statistic in statistics for statistics in scores.values()):
            cells = (score_kind(name).write(found[statistic]) for name, found in scores.items())
            table.add_row(statistic_title, *cells)
    return table


def _pose_table(poses: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="Poses after the best similarity alignment, mean / largest over the frames")
    for column in ("object", "frames", "rotation, deg", "centre, % of distance"):
        table.add_column(column, justify="left" if column == "object" else "right")
    for errors in poses:
        table.add_row(
            escape(errors["object"]),
            f"{errors['registered']}/{errors['frames']}",
            *(
                "-" if errors[f"{what}_mean"] is None else f"{errors[f'{what}_mean']:.2f} / {errors[f'{what}_max']:.2f}"
                for what in ("rotation", "centre")
            ),
        )
    return table
