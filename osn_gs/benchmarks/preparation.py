"""How well a clip is prepared from images, masks and a focal length alone, and what mistakes in those cost."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from osn_gs.benchmarks.degraded_clips import DegradedClip, Variant, write_degraded_clip
from osn_gs.benchmarks.synthetic_truth import add_truth, compare_with_truth, read_clip_truth, read_synthetic_set
from osn_gs.data.osn_files import Transforms
from osn_gs.data.osn_layout import read_object_names
from osn_gs.errors import ConfigError, DatasetError
from osn_gs.files import write_json_atomic
from osn_gs.preprocess.frames import FramesConfig
from osn_gs.preprocess.masks import MasksConfig
from osn_gs.preprocess.pipeline import PrepareConfig
from osn_gs.preprocess.sfm.objects import read_models_record
from osn_gs.preprocess.steps import read_records
from osn_gs.run.prepare import prepare

FIGURES_FILE = "preparation.json"


@dataclass(frozen=True)
class PreparationBenchmark:
    """Prepare a synthetic set from images_train, segm_sam and the focal length alone; compare with its true poses.

    Prints errors after the best similarity alignment: of the camera's orientation about each object in degrees, and
    of its place in per cent of the distance between them.
    """

    data: Path
    """Synthetic scene folder with true object_poses and depths."""
    out: Path
    """Folder for the prepared clips (one folder a variant), what they were made from, and preparation.json."""
    variants: tuple[Variant, ...] = ("clean",)
    """What to make worse first: masks grown or shrunk by 2 px, JPEG quality 50, every second frame left out, a focal
    length 5 % off or not given."""
    with_truth: bool = False
    """Add the set's truth to each prepared folder, so that tools/train.py scores a scene trained on it."""


def benchmark_preparation(options: PreparationBenchmark, console: Console) -> dict[str, Any]:
    """Prepare all variants, print a table and return the figures, which are also in `out`/preparation.json.

    A variant that cannot be prepared gets a row that says why, and the next one follows.

    Raises:
        ConfigError: a variant's folder exists already.
        DatasetError: the set is not a synthetic one with full truth.
    """
    transforms = read_synthetic_set(options.data)
    _check(options)
    figures: dict[str, Any] = {
        "data": options.data.resolve().name,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "variants": {},
    }
    for variant in options.variants:
        clip = write_degraded_clip(_input_folder(options, variant), transforms, variant)
        figures["variants"][variant] = _measure(clip, transforms, options, variant, console)
        write_json_atomic(options.out / FIGURES_FILE, figures)
    console.print(_table(figures))
    return figures


def _input_folder(options: PreparationBenchmark, variant: Variant) -> Path:
    return options.out / "input" / variant


def _check(options: PreparationBenchmark) -> None:
    if not options.variants:
        raise ConfigError("--variants: expected at least one, got none.")
    if len(set(options.variants)) < len(options.variants):
        raise ConfigError(f"--variants: expected each once, got {' '.join(options.variants)}.")
    for variant in options.variants:
        for folder in (options.out / variant, _input_folder(options, variant)):
            if folder.exists():
                raise ConfigError(f"{folder}: exists already; delete it, or choose another --out.")


def _measure(
    clip: DegradedClip, transforms: Transforms, options: PreparationBenchmark, variant: Variant, console: Console
) -> dict[str, Any]:
    """Prepare one clip and compare it; its entry in preparation.json."""
    scene = options.out / variant
    names = read_object_names(options.data, len(transforms.frames[0].world_from_obj))
    figures: dict[str, Any] = {"focal": {"true": transforms.focal, "given": clip.focal}, "error": None, "objects": []}
    console.rule(variant)
    try:
        prepare(
            PrepareConfig(
                out=scene,
                frames=FramesConfig(images=clip.images, focal=clip.focal),
                masks=MasksConfig(masks=clip.masks, object_names=names[1:]),
            ),
            console,
        )
        truth = read_clip_truth(transforms, clip.kept)
        models = read_models_record(scene)
        figures["focal"]["used"] = models.focal
        figures["objects"] = [
            {"name": name, "confidence": model.confidence, **asdict(errors)}
            for name, model, errors in zip(names, models.objects, compare_with_truth(scene, truth), strict=True)
        ]
        if options.with_truth:
            add_truth(scene, truth)
    except DatasetError as error:
        figures["error"] = str(error)
        console.print(Text(f"{variant}: {error}", style="yellow"))
    records = read_records(scene)
    figures["seconds"] = {name: record.seconds for name, record in records.items()}
    figures["advice"] = [line for record in records.values() for line in record.advice]
    return figures


def _table(figures: dict[str, Any]) -> Table:
    table = Table(title=f"{figures['data']}: prepared poses against the truth, mean / largest over the frames")
    for column in ("input", "object", "confidence"):
        table.add_column(column)
    for column in ("frames", "rotation, deg", "centre, % of distance", "reprojection, px", "focal, px", "time, s"):
        table.add_column(column, justify="right")
    for variant, found in figures["variants"].items():
        seconds = f"{sum(found['seconds'].values()):.0f}"
        if found["error"] is not None:
            table.add_row(variant, "not prepared", *[""] * 6, seconds, end_section=True)
        for k, obj in enumerate(found["objects"]):
            table.add_row(
                variant if k == 0 else "",
                obj["name"],
                obj["confidence"],
                f"{obj['registered']}/{obj['frames']}",
                _mean_and_largest(obj, "rotation"),
                _mean_and_largest(obj, "centre"),
                f"{obj['reprojection']:.2f}",
                f"{found['focal']['used']:.0f} ({found['focal']['true']:.0f})" if k == 0 else "",
                seconds if k == 0 else "",
                end_section=k == len(found["objects"]) - 1,
            )
    return table


def _mean_and_largest(obj: dict[str, Any], error: str) -> str:
    mean, largest = obj[f"{error}_mean"], obj[f"{error}_max"]
    return "-" if mean is None else f"{mean:.2f} / {largest:.2f}"
