"""CPU back end: projection, tiles and blending as Numba kernels, forward and backward.

The kernels are serial, release the GIL and are run over ranges of work by one plain thread pool: Numba's own
threading layers either spin under load and break after fork (omp) or abort when two Python threads enter
(workqueue). Every output element is written by exactly one piece of work and sums run in a fixed order, so
results are the same bit for bit over runs and thread counts.
"""

from osn_gs.rendering.numba_backend.blending import blend
from osn_gs.rendering.numba_backend.projection import project
from osn_gs.rendering.numba_backend.spherical_harmonics import sh_colors

__all__ = ["blend", "project", "sh_colors"]
