"""Measure what must be fast or right: `rasterize`, `scales`, `preparation`, `segmentation`; see `--help`."""

import sys

from osn_gs.benchmarks.command import benchmark_from_arguments
from osn_gs.run.command import run_tool

if __name__ == "__main__":
    sys.exit(run_tool(benchmark_from_arguments, sys.argv[1:]))
