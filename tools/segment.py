"""Make masks of a clip's objects: `python tools/segment.py --video CLIP --out MASKS` opens a page in the browser."""

import sys

from osn_gs.run.command import run_tool
from osn_gs.run.segment import segment_from_arguments

if __name__ == "__main__":
    sys.exit(run_tool(segment_from_arguments, sys.argv[1:]))
