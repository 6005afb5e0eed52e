"""Rigid transforms, cameras and alignment. Knows nothing of Gaussians."""
