"""From a clip and masks to a scene to train: `python tools/prepare.py --video clip.mp4 --masks masks/ --out SCENE`."""

import sys

from osn_gs.run.command import run_tool
from osn_gs.run.prepare import prepare_from_arguments

if __name__ == "__main__":
    sys.exit(run_tool(prepare_from_arguments, sys.argv[1:]))
