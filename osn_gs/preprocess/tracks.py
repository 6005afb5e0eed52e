"""2D point tracks of all objects over a clip, and their files in the OSN layout (METHOD 5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from osn_gs.errors import DatasetError


@dataclass(frozen=True)
class Tracks:
    """Points followed over T frames, each on one object.

    `pixels` are continuous positions in the training images (pixel centres at +0.5), meaningless where not
    `visible`; `object_ids` the object each track lies on, 0 the background.
    """

    pixels: Float[np.ndarray, "n t 2"]
    visible: Bool[np.ndarray, "n t"]
    object_ids: Int[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.object_ids)

    @property
    def num_frames(self) -> int:
        return self.visible.shape[1]

    def select(self, chosen: Bool[np.ndarray, "n"] | Int[np.ndarray, "m"]) -> Tracks:
        """The tracks a mask or an index array names."""
        return Tracks(self.pixels[chosen], self.visible[chosen], self.object_ids[chosen])


def save_tracks(folder: Path, tracks: Tracks) -> None:
    """Write trajectories.npy (N,T,2), visibilities.npy (N,T) and segm_preds.npy (N,) into a PREPROC folder."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "trajectories.npy", tracks.pixels.astype(np.float32))
    np.save(folder / "visibilities.npy", tracks.visible)
    np.save(folder / "segm_preds.npy", tracks.object_ids.astype(np.int64))


def load_tracks(folder: Path) -> Tracks:
    """Read what `save_tracks` wrote.

    Raises:
        DatasetError: a file is missing, or the three do not belong together.
    """
    arrays = []
    for name in ("trajectories", "visibilities", "segm_preds"):
        path = folder / f"{name}.npy"
        if not path.is_file():
            raise DatasetError(f"{path}: no such file; run the tracks step again.")
        arrays.append(np.load(path, allow_pickle=False))
    pixels, visible, object_ids = arrays
    if pixels.shape != (*visible.shape, 2) or visible.shape[:1] != object_ids.shape:
        raise DatasetError(
            f"{folder}: trajectories {pixels.shape}, visibilities {visible.shape} and segm_preds {object_ids.shape} "
            "do not belong together; run the tracks step again."
        )
    return Tracks(pixels.astype(np.float64), visible.astype(bool), object_ids.astype(np.int64))
