"""What a training costs: seconds and memory, over all its sessions."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from osn_gs.data.osn_files import read_json
from osn_gs.files import write_json_atomic


@dataclass(frozen=True)
class ResourceUse:
    """Wall-clock seconds from the first step to the last, and the most memory a session of the run held, in bytes.

    Memory is the process's own (None where the system does not tell), on CUDA also what the device held of it.
    """

    training_seconds: float = 0.0
    peak_memory: int | None = None
    peak_cuda_memory: int | None = None


class ResourceMeter:
    """Counts on from what a run's earlier sessions have used, as their last checkpoint left it."""

    def __init__(self, path: Path, resumed: bool) -> None:
        self._path = path
        self._earlier = read_resource_use(path) if resumed and path.exists() else ResourceUse()
        self._start = time.monotonic()

    def save(self) -> None:
        """Write what was used until now; call it where a checkpoint is saved, so that both tell of the same steps."""
        now = ResourceUse(
            self._earlier.training_seconds + time.monotonic() - self._start, _peak_memory(), _peak_cuda_memory()
        )
        peaks = {
            name: max((value for value in (getattr(self._earlier, name), getattr(now, name)) if value), default=None)
            for name in ("peak_memory", "peak_cuda_memory")
        }
        write_json_atomic(self._path, asdict(replace(now, **peaks)))


def read_resource_use(path: Path) -> ResourceUse:
    """What `ResourceMeter.save` wrote."""
    return ResourceUse(**read_json(path))


def _peak_memory() -> int | None:
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where the other figure is also that of the process which started this one
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return 1024 * int(lines["VmHWM"].split()[0])
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _peak_cuda_memory() -> int | None:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None
