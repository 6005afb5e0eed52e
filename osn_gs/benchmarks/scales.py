"""How fast the exact oracle labels scale vectors, and how fast the chains draw valid ones."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from osn_gs.benchmarks.layer_stacks import LayerStack, boxes_in_a_room
from osn_gs.benchmarks.options import check_counts, check_image_size
from osn_gs.errors import ConfigError
from osn_gs.files import write_json_atomic
from osn_gs.object_scales.nested_sets import nested_sets_up_to, sample_valid
from osn_gs.object_scales.oracle import MAX_OBJECTS, ScaleOracle
from osn_gs.object_scales.ranges import uniform_scales

NUM_CHECKED = 5  # vectors whose count is compared with compositing all frames again


@dataclass(frozen=True)
class ScalesBenchmark:
    """Time the scale oracle and the hit-and-run sampler on boxes that occlude each other in a room.

    Prints medians of wall-clock seconds.
    """

    objects: int = 9
    """Objects, the room (background) included."""
    frames: int = 16
    """Frames of the video."""
    size: tuple[int, int] = (320, 240)
    """Image size, width and height."""
    vectors: int = 1_000_000
    """Scale vectors to label."""
    samples: int = 1_000
    """Valid configurations to draw."""
    tolerance: float = 0.005
    """A vector is valid if its pixel accuracy is within this of the true scales'."""
    repeats: int = 5
    """Timed runs of each row; one more goes before and is not counted."""
    threads: int = 1
    """Torch's threads, for the chains' small operations; the oracle labels on all cores."""
    json: Path | None = None
    """Also write the figures to this file."""


def benchmark_scales(options: ScalesBenchmark, console: Console) -> dict:
    """Run all rows, print a table and return the figures; raises `ConfigError` for options that cannot be."""
    _check(options)
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    width, height = options.size
    stack = boxes_in_a_room(options.objects, options.frames, height, width, generator, depth_noise=0.003)
    oracle = ScaleOracle.from_frames(stack.object_ids, stack.layer_depths, stack.scale_ranges)
    vectors = uniform_scales(stack.scale_ranges, options.vectors, generator)
    threshold = float(oracle.accuracy(stack.true_scales[None])) - options.tolerance
    valid_volume = nested_sets_up_to(oracle.accuracy, threshold, oracle.scale_ranges, generator).log_volumes[-1]

    def draw() -> None:
        sample_valid(oracle.accuracy, threshold, oracle.scale_ranges, options.samples, generator)

    figures = {
        "options": {**asdict(options), "json": str(options.json) if options.json else None},
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "pixels": oracle.num_pixels,
        "joint_pixels": oracle.num_joint_pixels,
        "valid_share_of_box": float(torch.tensor(valid_volume).exp()),
        "counts_differ_from_compositing": _num_wrong_counts(stack, oracle, vectors[:NUM_CHECKED]),
        "label_s": _median_seconds(lambda: oracle.accuracy(vectors), options.repeats),
        "sample_s": _median_seconds(draw, options.repeats),
    }
    console.print(_table(figures, options))
    if options.json:
        write_json_atomic(options.json, figures)
    return figures


def _check(options: ScalesBenchmark) -> None:
    check_counts(least=2, most=MAX_OBJECTS, objects=options.objects)
    check_counts(frames=options.frames, vectors=options.vectors, samples=options.samples)
    check_counts(repeats=options.repeats, threads=options.threads)
    check_image_size("size", options.size)
    if not 0 <= options.tolerance < 1:
        raise ConfigError(f"--tolerance: expected a share of the pixels from 0 to below 1, got {options.tolerance:g}.")


def _num_wrong_counts(stack: LayerStack, oracle: ScaleOracle, vectors: torch.Tensor) -> int:
    """Vectors for which the oracle's count is not that of compositing every pixel again."""
    return sum(
        int(((stack.layer_depths * scales[:, None, None]).argmin(dim=1) != stack.object_ids).sum()) != int(count)
        for scales, count in zip(vectors, oracle.violated_pixels(vectors), strict=True)
    )


def _median_seconds(run: Callable[[], object], repeats: int) -> float:
    times = []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        run()
        if repeat > 0:  # the first run compiles
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _table(figures: dict, options: ScalesBenchmark) -> Table:
    table = Table(
        "", "", title=f"{options.objects} objects, {options.frames} frames of {options.size[0]}x{options.size[1]}"
    )
    table.columns[1].justify = "right"
    table.add_row("pixels", f"{figures['pixels']:,}")
    table.add_row("pixels with three or more candidates", f"{figures['joint_pixels']:,}")
    table.add_row("valid share of the box of scale ranges", f"{figures['valid_share_of_box']:.2g}")
    table.add_row(f"counts unlike compositing again, of {NUM_CHECKED}", f"{figures['counts_differ_from_compositing']}")
    table.add_row(f"label {options.vectors:,} scale vectors", f"{figures['label_s']:.2f} s")
    table.add_row(f"draw {options.samples:,} valid configurations", f"{figures['sample_s']:.2f} s")
    return table
