"""Rasterizing Gaussians with gsplat (CUDA) or Numba (CPU), and compositing object layers."""
