"""Train a scene: `python tools/train.py [--data SCENE]`. Without --data the built-in demo scene is trained."""

import sys

from osn_gs.run.command import run_tool
from osn_gs.run.train import train_from_arguments

if __name__ == "__main__":
    sys.exit(run_tool(train_from_arguments, sys.argv[1:]))
