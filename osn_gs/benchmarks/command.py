"""`tools/benchmark.py`: from options to printed figures."""

from __future__ import annotations

from collections.abc import Sequence

import tyro
from rich.console import Console

from osn_gs.benchmarks.preparation import PreparationBenchmark, benchmark_preparation
from osn_gs.benchmarks.rasterize import RasterizeBenchmark, benchmark_rasterize
from osn_gs.benchmarks.scales import ScalesBenchmark, benchmark_scales
from osn_gs.benchmarks.scenes import ScenesBenchmark, benchmark_scenes
from osn_gs.benchmarks.segmentation import SegmentationBenchmark, benchmark_segmentation
from osn_gs.benchmarks.viewer import ViewerBenchmark, benchmark_viewer

PROGRAM = "python tools/benchmark.py"
DESCRIPTION = (
    "Measure the parts that must be fast (the rasterizer; the scale oracle and its sampler; the viewer), how good the "
    "scenes of a list come out beside baselines, and how well a clip whose truth is known is prepared and its objects "
    "are segmented."
)
COMMANDS = {
    "rasterize": RasterizeBenchmark,
    "scales": ScalesBenchmark,
    "scenes": ScenesBenchmark,
    "preparation": PreparationBenchmark,
    "segmentation": SegmentationBenchmark,
    "viewer": ViewerBenchmark,
}
BENCHMARKS = {
    RasterizeBenchmark: benchmark_rasterize,
    ScalesBenchmark: benchmark_scales,
    ScenesBenchmark: benchmark_scenes,
    PreparationBenchmark: benchmark_preparation,
    SegmentationBenchmark: benchmark_segmentation,
    ViewerBenchmark: benchmark_viewer,
}


def benchmark_from_arguments(arguments: Sequence[str]) -> int:
    """Parse the command line and run one benchmark; the exit code of the tool."""
    options = tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments, prog=PROGRAM, description=DESCRIPTION)
    BENCHMARKS[type(options)](options, Console())
    return 0
