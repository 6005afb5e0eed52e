"""`tools/benchmark.py`: from options to printed figures."""

from __future__ import annotations

from collections.abc import Sequence

import tyro
from rich.console import Console

from osn_gs.benchmarks.deformation import DeformationBenchmark, benchmark_deformation
from osn_gs.benchmarks.preparation import PreparationBenchmark, benchmark_preparation
from osn_gs.benchmarks.rasterize import RasterizeBenchmark, benchmark_rasterize
from osn_gs.benchmarks.scales import ScalesBenchmark, benchmark_scales
from osn_gs.benchmarks.segmentation import SegmentationBenchmark, benchmark_segmentation
from osn_gs.benchmarks.viewer import ViewerBenchmark, benchmark_viewer

PROGRAM = "python tools/benchmark.py"
DESCRIPTION = (
    "Measure the parts that must be fast (the rasterizer; the scale oracle and its sampler; the viewer), and how well "
    "a clip whose truth is known is prepared, its objects are segmented and those that bend are followed."
)
COMMANDS = {
    "rasterize": RasterizeBenchmark,
    "scales": ScalesBenchmark,
    "preparation": PreparationBenchmark,
    "segmentation": SegmentationBenchmark,
    "viewer": ViewerBenchmark,
    "deformation": DeformationBenchmark,
}
BENCHMARKS = {
    RasterizeBenchmark: benchmark_rasterize,
    ScalesBenchmark: benchmark_scales,
    PreparationBenchmark: benchmark_preparation,
    SegmentationBenchmark: benchmark_segmentation,
    ViewerBenchmark: benchmark_viewer,
    DeformationBenchmark: benchmark_deformation,
}


def benchmark_from_arguments(arguments: Sequence[str]) -> int:
    """Parse the command line and run one benchmark; the exit code of the tool."""
    options = tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments, prog=PROGRAM, description=DESCRIPTION)
    BENCHMARKS[type(options)](options, Console())
    return 0
