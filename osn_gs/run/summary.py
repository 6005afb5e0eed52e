"""The table at the end of a run, and what to do next."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from osn_gs.data.scene_data import SceneData
from osn_gs.evaluation.scores import score_kind
from osn_gs.export.configurations import ConfigurationSet
from osn_gs.run.folder import RunFolder

SUMMARIZED = ("psnr", "ssim", "depth_ssi_mae", "miou")  # tools/evaluate.py tells all


def print_summary(
    console: Console,
    data: SceneData,
    configurations: ConfigurationSet,
    statistics: dict[str, Any],
    folder: RunFolder,
) -> None:
    """Print scores, scale intervals, the learned set and the next commands to try."""
    console.print(_score_table(statistics["pictures"]))
    console.print(_scale_table(data, configurations))
    if all("occlusion" not in (end.lo_bounded_by, end.hi_bounded_by) for end in configurations.intervals):
        console.print("No object is seen to occlude another: the set is bounded by near/far alone.")
    for line in set_lines(statistics):
        console.print(line)
    run = escape(str(folder.root))
    console.print(
        f"\nLook at  {run}/preview/configurations.png and valid_set.png\n"
        f"Fly      python tools/view.py {run}\n"
        f"Judge    python tools/evaluate.py {run}\n"
        f"Take     {run}/export/contact/frame_0000.ply into any splat viewer or editor\n"
        f"Read     {run}/configurations.json and stats/final.json\n"
        f"Try      python tools/train.py --data SCENE    for a scene folder of your own (see the README)\n"
        f"         python tools/train.py --help          for every option",
        highlight=False,
    )


def _score_table(pictures: dict[str, dict[str, dict[str, float]]]) -> Table:
    table = Table(title="Views over sampled configurations, and under the contact configuration")
    kinds = ("best", "mean", "median", "worst", "contact")
    for column in ("views", "score", *kinds):
        table.add_column(column, justify="left" if column in ("views", "score") else "right")
    for split, scores in pictures.items():
        for name in SUMMARIZED:
            if name in scores:
                kind = score_kind(name)
                table.add_row(split, kind.title, *(kind.write(scores[name][column]) for column in kinds))
    return table


def _scale_table(data: SceneData, configurations: ConfigurationSet) -> Table:
    contact = configurations.configurations[0]
    table = Table(title="Object scales that explain the video (background = 1)")
    columns = ["object", "from", "set by", "to", "set by", "contact"]
    if data.truth is not None:
        columns.append("true")
    for column in columns:
        table.add_column(column, justify="left" if column in ("object", "set by") else "right")
    for interval in configurations.intervals:
        k = configurations.object_names.index(interval.object_name)
        row = [
            interval.object_name,
            f"{interval.lo:.3f}",
            interval.lo_bounded_by,
            f"{interval.hi:.3f}",
            interval.hi_bounded_by,
            f"{contact.object_scales[k]:.3f}",
        ]
        if data.truth is not None:
            row.append(f"{data.truth.object_scales[k]:.3f}")
        table.add_row(*row)
    return table


def set_lines(statistics: dict[str, Any]) -> list[str]:
    """What the numbers of a run say about its learned set."""
    lines = []
    learned, truth = statistics["learned_set"], statistics["truth"]
    if learned is not None and learned["learned_volume"] == 0:
        lines.append("The scale network calls nothing valid yet: configurations were drawn from the oracle's set.")
    if learned is not None:
        lines.append(
            f"Learned set: {100 * learned['learned_volume']:.3g} % of the box; against the oracle on the reconstructed "
            f"layers {_set_figures(learned)}."
        )
    if truth is not None:
        inside = "inside" if truth["true_in_learned_set"] else "OUTSIDE"
        contact, nearest = (
            100 * sum(truth[f"{which}_error"][1:]) / len(truth[f"{which}_error"][1:])
            for which in ("contact", "nearest_sample")
        )
        lines.append(
            f"True scales: {inside} the learned set (score {truth['true_score']:.2f}); the contact configuration is "
            f"{contact:.1f} % off them on average, the nearest sample {nearest:.1f} %."
        )
        if truth["true_depth_set"] is not None:
            lines.append(f"Learned set against the oracle on true depth: {_set_figures(truth['true_depth_set'])}.")
    return lines


def _set_figures(found: dict[str, float]) -> str:
    return (
        f"IoU {found['iou']:.3f}, precision {found['precision']:.3f}, recall {found['recall']:.3f}, calibration error "
        f"{found['calibration_error']:.3f}"
    )
