"""What a run makes of objects that bend: pictures of each object, and points on surfaces whose true way is stored."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from osn_gs.benchmarks.options import check_counts
from osn_gs.data.bending_truth import bending_objects, read_bending_truth
from osn_gs.data.scene_data import SceneData
from osn_gs.errors import ConfigError
from osn_gs.evaluation.bending import object_psnr, tracking_error
from osn_gs.export.configurations import spread_over_frames
from osn_gs.files import write_json_atomic
from osn_gs.run.open_run import OpenedRun, open_run


@dataclass(frozen=True)
class DeformationBenchmark:
    """Score every object of a run by itself: PSNR over its true pixels in held-out views, and where the scene folder
    has the truth (deform_objK.npz) the 3D error of points on its surface.

    Under the true object scales, or the contact configuration where those are not known.
    """

    run: tyro.conf.Positional[Path]
    """Run folder of tools/train.py."""
    track_from: int = 4
    """Frames whose surface points are followed, evenly spread."""
    points: int = 400
    """Points of each such frame."""
    truth: Path | None = None
    """Scene folder with the true surfaces; by default the one the run was trained on."""
    json: Path | None = None
    """Also write the figures to this file."""


def benchmark_deformation(options: DeformationBenchmark, console: Console) -> dict[str, Any]:
    """Score the run's last checkpoint, print a table and return the figures."""
    check_counts(track_from=options.track_from, points=options.points)
    torch.set_num_threads(1)
    run = open_run(options.run, console)
    if run.data is None:
        raise ConfigError(
            f"{options.run}: the scene folder it was trained on is not at hand, so nothing can be scored."
        )
    figures = _figures(run, run.data, options)
    console.print(_table(figures))
    if options.json:
        write_json_atomic(options.json, figures)
    return figures


def _figures(run: OpenedRun, data: SceneData, options: DeformationBenchmark) -> dict[str, Any]:
    scene, scales = run.trained.scene, _object_scales(run, data)
    psnr = {split: object_psnr(scene, views, scales) for split, views in data.held_out.items()}
    gains = _trial_gains(run)
    folder = options.truth or data.folder
    with_truth = bending_objects(folder) if folder is not None else ()
    frames = tuple(spread_over_frames(scene.num_frames, options.track_from))
    objects = []
    for k, group in enumerate(scene.objects):
        tracking = None
        if k in with_truth:
            truth = read_bending_truth(folder, k, frames, options.points)
            tracking = asdict(tracking_error(scene, k, float(scales[k]), truth))
        objects.append(
            {
                "name": group.name,
                "bends": group.deformation is not None,
                "trial_gain": gains.get(group.name),
                "psnr": {split: values[k] for split, values in psnr.items()},
                "tracking": tracking,
            }
        )
    return {
        "run": str(options.run),
        "true_scales": data.truth is not None,
        "object_scales": scales.tolist(),
        "objects": objects,
    }


def _object_scales(run: OpenedRun, data: SceneData) -> torch.Tensor:
    if data.truth is not None:
        return data.truth.object_scales.float()
    if not run.configurations:
        raise ConfigError(f"{run.folder.root}: no true scales and no configurations yet; let the training end.")
    return torch.tensor(run.configurations[0].object_scales)


def _trial_gains(run: OpenedRun) -> dict[str, float]:
    """The share of its loss that bending saved each object in its trial."""
    path = run.folder.bending_stats
    if not path.exists():
        return {}
    trials = json.loads(path.read_text())["trials"]
    return {
        trial["object_name"]: 1 - trial["bent_loss"] / trial["rigid_loss"]
        for trial in trials
        if trial["rigid_loss"] is not None
    }


def _table(figures: dict[str, Any]) -> Table:
    splits = list(figures["objects"][0]["psnr"])
    scales = "true scales" if figures["true_scales"] else "the contact configuration"
    table = Table("object", "", "trial", *splits, "3D error", "median", "across", "along", title=f"Under {scales}")
    for column in table.columns[2:]:
        column.justify = "right"
    for of_object in figures["objects"]:
        gain, tracking = of_object["trial_gain"], of_object["tracking"]
        errors = [""] * 4
        if tracking is not None:
            errors = [f"{tracking[name]:.2f} %" for name in ("mean", "median", "across", "along")]
        table.add_row(
            escape(of_object["name"]),
            "bends" if of_object["bends"] else "rigid",
            "" if gain is None else f"{100 * gain:.1f} %",
            *("" if value is None else f"{value:.2f} dB" for value in of_object["psnr"].values()),
            *errors,
        )
    return table
