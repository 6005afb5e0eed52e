"""The Gaussians of one object: parameters, start, density control, spherical harmonics."""
