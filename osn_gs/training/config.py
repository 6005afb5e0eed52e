"""What a training run can be told. `cfg/*.yaml` hold differences from these defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from osn_gs.gaussians.density import DensityConfig


@dataclass(frozen=True)
class ScheduleConfig:
    """Steps of the joint optimization (METHOD 3). The paper's: 1000, 5 rounds of 1000 + 1000, to 30000.

    Differs from OSN: a round begins with the network, so that no scene step draws from an untrained one, and
    one more round of network steps follows the last scene steps, so that the set belongs to the final layers.
    """

    bootstrap_steps: int = 3000
    """Each object fitted on its own."""
    rounds: int = 5
    """Alternations of network steps and scene steps."""
    network_steps: int = 600
    """Scale-network steps of a round."""
    scene_steps: int = 600
    """Scene steps of a round."""
    final_steps: int = 3000
    """Scene steps after the last round."""

    @property
    def gaussian_steps(self) -> int:
        """All steps that move Gaussians."""
        return self.bootstrap_steps + self.rounds * self.scene_steps + self.final_steps


@dataclass(frozen=True)
class GaussiansConfig:
    """Start and learning rates of the Gaussians. Rates are those of 3DGS unless said otherwise."""

    sh_degree: int = 1
    """Degree of the spherical harmonics, 0 to 3. A short video shows few directions: 1 is plenty."""
    start_cell: float = 2.0
    """Sparse points closer than this many pixels, at their median distance, start as one Gaussian."""
    means_lr: float = 3.2e-4
    """Per unit of the object's extent (median camera distance); twice 3DGS's, for a tenth of its steps."""
    means_lr_end: float = 0.02
    """Means' rate at the last step, as a share of the first."""
    scales_lr: float = 5e-3
    quats_lr: float = 1e-3
    opacities_lr: float = 5e-2
    sh0_lr: float = 5e-3
    """Twice 3DGS's, for a tenth of its steps."""
    shN_lr: float = 2.5e-4


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses (METHOD 3)."""

    ssim: float = 0.2
    """D-SSIM's share of the colour loss, as in 3DGS."""
    depth: float = 0.2
    """Relative depth error at sparse points."""
    planarity: float = 0.1
    """Bending of surfaces where the image shows no edge."""
    object_ids: float = 0.05
    """Cross entropy of the object weights; the released code has 0.01 with summed, not averaged, weights."""
    configurations_per_step: int = 2
    """Scale vectors composited from one set of layers in a scene step (METHOD 2.1)."""


@dataclass(frozen=True)
class ObjectScalesConfig:
    """The object scale network and its labels (METHOD 3)."""

    label_rule: Literal["relative", "paper"] = "relative"
    """relative: valid within `tolerance` of the best pixel accuracy. paper: above `accuracy`, or the best `top_k`."""
    tolerance: float = 0.005
    """Share of pixels by which a valid vector may fall short of the best one."""
    accuracy: float = 0.99
    """Pixel accuracy above which the paper calls a vector valid (0.97 to 0.995 by scene)."""
    top_k: float = 0.01
    """Share of vectors the paper takes when none is above `accuracy` (0.005 to 0.05 by scene)."""
    learning_rate: float = 1e-3
    """Adam on the network, constant as in the released code."""
    samples: int = 64
    """Configurations drawn into configurations.json."""


@dataclass(frozen=True)
class ExportConfig:
    """What is written beside the checkpoint at the end."""

    configurations: int = 3
    """Sampled configurations exported as .ply, beside the contact configuration."""
    frames: int = 3
    """Times of each exported configuration, evenly spread; 0 for every frame."""


@dataclass(frozen=True)
class TrainConfig:
    """Learn every 3D scene that explains one video: object groups of Gaussians and their valid object scales.

    Without --data, a small scene made by the package itself is trained.
    """

    data: Path | None = None
    """Scene folder in the layout of the released OSN code."""
    run: Path | None = None
    """Run folder; default runs/NAME."""
    preproc: str | None = None
    """Name of the PREPROC folder inside the scene folder, where it has more than one."""
    poses: Literal["auto", "preproc", "truth"] = "auto"
    """Poses from a PREPROC folder, or a synthetic set's own with an arbitrary gauge per object."""
    downscale: int = 1
    """Train on images this many times smaller."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is a GPU."""
    seed: int = 0
    resume: bool = False
    """Go on from the run folder's last checkpoint."""
    checkpoint_every: int = 500
    """Gaussian steps between checkpoints."""
    evaluate_configurations: int = 8
    """Sampled configurations that held-out views are rendered from at the end."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    gaussians: GaussiansConfig = field(default_factory=GaussiansConfig)
    density: DensityConfig = field(default_factory=DensityConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    object_scales: ObjectScalesConfig = field(default_factory=ObjectScalesConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
