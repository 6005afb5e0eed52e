"""Settings of the whole test run."""

import torch

torch.set_num_threads(1)  # many small operations: more threads only wait for each other
