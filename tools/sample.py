"""Draw configurations of a trained run: `python tools/sample.py [RUN] --num 100 --fix OBJECT=SCALE`."""

import sys

from osn_gs.run.command import run_tool
from osn_gs.run.sample import sample_from_arguments

if __name__ == "__main__":
    sys.exit(run_tool(sample_from_arguments, sys.argv[1:]))
