"""A whole run: from a scene folder to a run folder with checkpoints, statistics, configurations and exports."""
