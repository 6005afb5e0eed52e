"""Render a run's configurations: `python tools/render.py [RUN] --split test --configuration all`."""

import sys

from osn_gs.run.command import run_tool
from osn_gs.run.render import render_from_arguments

if __name__ == "__main__":
    sys.exit(run_tool(render_from_arguments, sys.argv[1:]))
