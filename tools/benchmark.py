"""Measure the parts that must be fast or right: `python tools/benchmark.py rasterize`, `scales` or `preparation`."""

import sys

from osn_gs.benchmarks.command import benchmark_from_arguments
from osn_gs.run.command import run_tool

if __name__ == "__main__":
    sys.exit(run_tool(benchmark_from_arguments, sys.argv[1:]))
