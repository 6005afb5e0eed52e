"""Score a run: `python tools/evaluate.py [RUN] --split test --num-configurations 100`."""

import sys

from osn_gs.run.command import run_tool
from osn_gs.run.evaluate import evaluate_from_arguments

if __name__ == "__main__":
    sys.exit(run_tool(evaluate_from_arguments, sys.argv[1:]))
