"""Train a scene: `python tools/train.py [--data SCENE]`. Without --data the built-in demo scene is trained."""

import sys
from functools import partial
from pathlib import Path

from osn_gs.run.command import run_tool
from osn_gs.run.train import train_from_arguments

DEMO_CONFIG = Path(__file__).parents[1] / "cfg" / "demo.yaml"

if __name__ == "__main__":
    sys.exit(run_tool(partial(train_from_arguments, demo_config=DEMO_CONFIG), sys.argv[1:]))
