"""Fly through a run in the browser: `python tools/view.py [RUN]`."""

import sys

from osn_gs.run.command import run_tool
from osn_gs.run.view import view_from_arguments

if __name__ == "__main__":
    sys.exit(run_tool(view_from_arguments, sys.argv[1:]))
