"""What a training run can be told. `cfg/*.yaml` hold differences from these defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from osn_gs.errors import ConfigError
from osn_gs.gaussians.density import DensityConfig
from osn_gs.object_scales.labels import FixedLabels, LabelRule, RelativeLabels


@dataclass(frozen=True)
class ScheduleConfig:
    """Steps of the joint optimization (METHOD 3). The paper's: 1000, 5 rounds of 1000 + 1000, to 30000.

    A round begins with the network, so that no scene step draws from an untrained one. Differs from OSN: one more
    round of network steps follows the last scene steps, so that the set belongs to the final layers.
    """

    bootstrap_steps: int = 3000
    """Each object fitted on its own. 0 is the paper's ablation: the first round teaches the network the depth order of
    the Gaussians as they start from sparse points."""
    rounds: int = 5
    """Alternations of network steps and scene steps."""
    network_steps: int = 600
    """Scale-network steps of a round."""
    scene_steps: int = 600
    """Scene steps of a round."""
    final_steps: int = 3000
    """Scene steps after the last round."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "bootstrap_steps", "rounds", "network_steps", "scene_steps", "final_steps")
        if self.gaussian_steps == 0:
            raise ConfigError(
                "schedule: no steps on the Gaussians; set bootstrap_steps, rounds and scene_steps, or final_steps."
            )

    @property
    def last_round(self) -> int:
        """Number of the network round that follows the last scene steps."""
        return self.rounds + 1

    @property
    def gaussian_steps(self) -> int:
        """All steps that move Gaussians."""
        return self.bootstrap_steps + self.rounds * self.scene_steps + self.final_steps


@dataclass(frozen=True)
class GaussiansConfig:
    """Start and learning rates of the Gaussians; shorter runs than 3DGS's want larger rates."""

    sh_degree: Literal[0, 1, 2, 3] = 1
    """Degree of the spherical harmonics. A short video shows few directions: 1 is plenty."""
    start_cell: float = 2.0
    """Sparse points closer than this many pixels, at their median distance, start as one Gaussian."""
    means_lr: float = 3.2e-4
    """Means, per unit of the object's extent (median camera distance); 3DGS: 1.6e-4."""
    means_lr_end: float = 0.02
    """Means' rate at the last step, as a share of the first; 3DGS: 0.01."""
    scales_lr: float = 5e-3
    """Log sizes; as 3DGS."""
    quats_lr: float = 1e-3
    """Rotations; as 3DGS."""
    opacities_lr: float = 5e-2
    """Opacity logits; as 3DGS."""
    sh0_lr: float = 5e-3
    """Colours; 3DGS: 2.5e-3."""
    shN_lr: float = 2.5e-4
    """View-dependent colours; 3DGS: 1.25e-4."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "start_cell")


DeformationMode = Literal["auto", "rigid", "deformable"]


@dataclass(frozen=True)
class DeformationConfig:
    """Which moving objects bend, and how (`osn_gs/gaussians/deformation.py`). The background never does."""

    default: DeformationMode = "auto"
    """auto: an object bends where a trial after the bootstrap says so; none without a bootstrap. rigid: none does.
    deformable: all do."""
    objects: tuple[str, ...] = ()
    """NAME=MODE for single objects, by name or number, such as cactus=deformable or 2=rigid."""
    nodes: int = 32
    """Control nodes of an object that bends."""
    knot_spacing: float = 1.0
    """Frames between the knots of the motion's splines; more makes slower motion."""
    learning_rate: float = 0.03
    """Nodes' motion, in the object's size and radians."""
    learning_rate_end: float = 0.1
    """The rate at the last step, as a share of the first."""
    stretching: float = 0.3
    """Weight of as-rigid-as-possible, against the loss of the object's own pixels."""
    jerkiness: float = 0.3
    """Weight of the motion's acceleration."""
    magnitude: float = 0.015
    """Weight of the motion itself."""
    sparse_depth: float = 3.0
    """Times the depth loss at sparse points counts for an object that bends: pictures alone hardly tell whether it
    leans towards the camera or away. Points of structure from motion come from a rigid model, so less may be better
    where that explains the object badly."""
    trial_steps: int = 300
    """Steps of each of the two fits that are compared for an object (`osn_gs/training/bending_trial.py`)."""
    least_gain: float = 0.1
    """Share by which bending must lower an object's loss in frames that the trial was not fitted to."""

    def __post_init__(self) -> None:
        _at_least(self, 4, "nodes")
        _at_least(self, 1, "knot_spacing", "trial_steps")
        _at_least(
            self, 0, "learning_rate", "learning_rate_end", "stretching", "jerkiness", "magnitude", "sparse_depth",
            "least_gain",
        )  # fmt: skip
        for entry in self.objects:
            name, _, mode = entry.rpartition("=")
            if not name or mode not in get_args(DeformationMode):
                raise ConfigError(
                    f"deformation.objects: expected NAME=MODE with a mode of {', '.join(get_args(DeformationMode))}, "
                    f"got {entry!r}."
                )


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
    """Cross entropy of the layers' opacities with the masks, and of the composited object weights. Released code: 0.01
    on the composited weights alone."""
    configurations_per_step: int = 2
    """Scale vectors composited from one set of layers in a scene step (METHOD 2.1)."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "ssim", "depth", "planarity", "object_ids")
        _at_least(self, 1, "configurations_per_step")


@dataclass(frozen=True)
class ObjectScalesConfig:
    """The object scale network and its labels (METHOD 3)."""

    label_rule: Literal["relative", "paper"] = "relative"
    """relative: valid within `tolerance` of the best pixel accuracy. paper: above `accuracy`, or the best `top_k`."""
    tolerance: float = 0.005
    """Share of pixels by which a valid vector may fall short of the best one."""
    # The released code names iterations in place of rounds. They count steps on the objects alone, 1,000 before every
    # round of its network, so that its second value, from iteration 3,000 on, is the third round's.
    accuracy: tuple[float, ...] = (0.99,)
    """Pixel accuracy above which the paper calls a vector valid (0.95 to 0.995 by scene and round): one value a round,
    the last one for all later rounds."""
    top_k: tuple[float, ...] = (0.01,)
    """Share of vectors the paper takes when fewer are above `accuracy` (0.005 to 0.05 by scene and round): one value a
    round, the last one for all later rounds."""
    learning_rate: float = 1e-3
    """Adam on the network, constant as in the released code."""
    samples: int = 100
    """Configurations drawn into configurations.json."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "tolerance", "learning_rate")
        _at_least(self, 1, "samples")
        _shares_by_round(self, "accuracy", "top_k")

    def rule(self, round_number: int) -> LabelRule:
        """The rule that calls a scale vector valid in a network round, counted from 1."""
        if self.label_rule == "relative":
            return RelativeLabels(self.tolerance)
        return FixedLabels(_of_round(self.accuracy, round_number), _of_round(self.top_k, round_number))


@dataclass(frozen=True)
class ExportConfig:
    """What is written beside the checkpoint at the end."""

    configurations: int = 3
    """Sampled configurations exported as .ply, beside the contact configuration."""
    frames: int = 3
    """Times of each exported configuration, evenly spread; 0 for every frame."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "configurations", "frames")


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
    num_objects: int | None = None
    """Objects, background included, that the scene folder must have; by default any number."""
    poses: Literal["auto", "preproc", "truth"] = "auto"
    """Poses from a PREPROC folder, or a synthetic set's own with an arbitrary gauge per object."""
    downscale: int = 1
    """Train on images this many times smaller."""
    near: float | None = None
    """Nearest depth of the scene, in the background's units after it was scaled to end before `far`; by default what
    the folder says, else 1."""
    far: float | None = None
    """Farthest depth of the scene; by default what the folder says, else 8. Near and far bound what no occlusion
    bounds."""
    pixel_center: float | None = None
    """Where the first pixel's centre lies in the files' own coordinates: 0 in folders of the released code, 0.5 for
    images taken at their word; by default what the folder says."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is a GPU."""
    seed: int = 0
    """Of every random draw."""
    resume: bool = False
    """Go on from the run folder's last checkpoint."""
    view: bool = False
    """Show the run in the browser as it learns, and until Ctrl-C when it is done."""
    host: str = "127.0.0.1"
    """Address that page is served at; 0.0.0.0 lets other machines in."""
    port: int = 8080
    """Port that page is served at; the next free one where it is taken."""
    checkpoint_every: int = 500
    """Gaussian steps between checkpoints."""
    evaluate_configurations: int = 100
    """Sampled configurations that held-out views are scored under at the end; at most object_scales.samples."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    gaussians: GaussiansConfig = field(default_factory=GaussiansConfig)
    density: DensityConfig = field(default_factory=DensityConfig)
    deformation: DeformationConfig = field(default_factory=DeformationConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    object_scales: ObjectScalesConfig = field(default_factory=ObjectScalesConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        _at_least(self, 1, "downscale", "checkpoint_every", "evaluate_configurations")
        if self.num_objects is not None:
            _at_least(self, 2, "num_objects")
        for name in ("near", "far"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name}: expected a depth above 0, got {value:g}.")
        if self.near is not None and self.far is not None and not self.near < self.far:
            raise ConfigError(f"near and far: expected 0 < near < far, got {self.near:g} and {self.far:g}.")
        if self.evaluate_configurations > self.object_scales.samples:
            raise ConfigError(
                f"evaluate_configurations: {self.evaluate_configurations} asked for, but only "
                f"{self.object_scales.samples} are drawn; raise object_scales.samples too."
            )


def _of_round(values: tuple[float, ...], round_number: int) -> float:
    """The value of a round, counted from 1, where the last value holds for all later rounds."""
    return values[min(round_number, len(values)) - 1]


def _at_least(config: object, least: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not value >= least:
            raise ConfigError(f"{name}: expected at least {least:g}, got {value:g}.")


def _shares_by_round(config: object, *names: str) -> None:
    for name in names:
        shares = getattr(config, name)
        if not shares or not all(0 < share <= 1 for share in shares):
            raise ConfigError(f"{name}: expected one value or more, each above 0 and at most 1, got {list(shares)}.")
