"""The joint optimizer: object groups of Gaussians and the scale network, each helping the other (METHOD 3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from osn_gs.data.scene_data import SceneData
from osn_gs.errors import OsnGsError
from osn_gs.gaussians.deformation import NodeDeformation
from osn_gs.gaussians.density import DensityControl
from osn_gs.image_similarity import psnr
from osn_gs.object_scales.learning import SetReport, fit_to_oracle, report_set
from osn_gs.object_scales.nested_sets import ValidSet, sample_first_found
from osn_gs.object_scales.network import ObjectScaleNetwork
from osn_gs.object_scales.oracle import ScaleOracle
from osn_gs.scene.render import ObjectLayers, render_layers
from osn_gs.scene.scene import ObjectGroup, Scene
from osn_gs.training import losses
from osn_gs.training.bending_trial import BendingTrial, bend, try_bending
from osn_gs.training.config import TrainConfig
from osn_gs.training.deformation import deformation_loss, deformation_modes, deformation_optimizer
from osn_gs.training.observed_layers import oracle_of_scene
from osn_gs.training.optimizers import gaussian_optimizers
from osn_gs.training.start import object_extent

POOL_SIZE = 256  # valid scale vectors drawn after each network round, for the scene steps to choose from

PhaseKind = Literal["bootstrap", "network", "scene"]


@dataclass(frozen=True)
class Phase:
    """A stretch of the schedule."""

    kind: PhaseKind
    steps: int
    round: int


@dataclass(frozen=True)
class StepReport:
    """One step on the Gaussians: the loss and the PSNR of the picture it was taken from."""

    kind: PhaseKind
    loss: float
    psnr: float


@dataclass(frozen=True)
class RoundReport:
    """One round of network steps: the learned set against the oracle on the layers of that moment."""

    round: int
    gaussian_step: int
    network_loss: float
    learned_set: SetReport

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RoundReport:
        """Undo `dataclasses.asdict`."""
        return cls(**{**values, "learned_set": SetReport(**values["learned_set"])})


@dataclass(frozen=True)
class BendingReport:
    """Which objects bend from a step on, by name, and the trials of those that were not told to or not to."""

    gaussian_step: int
    deforming: tuple[str, ...]
    trials: tuple[BendingTrial, ...]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BendingReport:
        """Undo `dataclasses.asdict`."""
        trials = tuple(BendingTrial(**trial) for trial in values["trials"])
        return cls(values["gaussian_step"], tuple(values["deforming"]), trials)


def phases(config: TrainConfig) -> list[Phase]:
    """Bootstrap; rounds of network steps and scene steps; the last scene steps; a last network round.

    What has no steps is left out.
    """
    schedule = config.schedule
    plan = [Phase("bootstrap", schedule.bootstrap_steps, 0)]
    for r in range(1, schedule.rounds + 1):
        plan += [Phase("network", schedule.network_steps, r), Phase("scene", schedule.scene_steps, r)]
    plan += [
        Phase("scene", schedule.final_steps, schedule.rounds),
        Phase("network", schedule.network_steps, schedule.last_round),
    ]
    return [phase for phase in plan if phase.steps > 0]


class JointOptimizer:
    """Everything a run changes: the scene, the network, their optimizers, the random state and the position.

    `generator` is on the CPU and drives every draw of ours; gsplat's strategies draw from torch's default generator
    of the device, so hand in torch's own CPU one, seeded, to have a run that repeats bit for bit on the CPU.
    """

    def __init__(self, scene: Scene, data: SceneData, config: TrainConfig, generator: torch.Generator) -> None:
        self.scene = scene
        self.data = data
        self.config = config
        self.generator = generator
        self.device = scene.intrinsics.device
        self.plan = phases(config)
        self.phase_index = 0
        self.step_in_phase = 0
        self.gaussian_step = 0
        self.extents = [object_extent(data, k) for k in range(scene.num_objects)]
        self._shares = _gaussian_shares(data, config.density.max_gaussians)
        self.optimizers = [self._gaussian_optimizers(k) for k in range(scene.num_objects)]
        self.density = [self._density_control(k) for k in range(scene.num_objects)]
        self.network = ObjectScaleNetwork(data.scale_ranges, generator)
        self.network_optimizer = torch.optim.Adam(self.network.parameters(), lr=config.object_scales.learning_rate)
        self.valid_scales: Float[Tensor, "p k"] = torch.ones(1, scene.num_objects)
        self.rounds: list[RoundReport] = []
        self.oracle: ScaleOracle | None = None
        self.deformation_modes = deformation_modes(config.deformation, data.object_names)
        self.bending: BendingReport | None = None
        self.deformation_optimizers: dict[int, torch.optim.Optimizer] = {}
        self._extents_on_device = torch.tensor(self.extents, device=self.device)
        self._pixel_shares = [float((data.object_ids == k).float().mean()) for k in range(scene.num_objects)]
        self._images = data.images.to(self.device)
        self._object_ids = data.object_ids.to(self.device)
        self._points_by_frame = [
            [points.in_frame(t, self.device) for points in data.sparse_points] for t in range(data.num_frames)
        ]

    @property
    def finished(self) -> bool:
        """Whether the schedule has been run to its end."""
        return self.phase_index >= len(self.plan)

    def run(self) -> Iterator[StepReport | RoundReport | BendingReport]:
        """Take the remaining steps of the schedule, one report each; stop between any two and go on later.

        What bends is decided on the way from the bootstrap to what follows it.
        """
        while not self.finished:
            phase = self.plan[self.phase_index]
            if phase.kind != "bootstrap" and self.bending is None:
                yield self.let_objects_bend()
            if phase.kind == "network":
                report = self.network_round(phase)
                self._advance(phase.steps)
            else:
                report = self.gaussian_update(phase.kind)
                self._advance(1)
            yield report

    def _advance(self, steps: int) -> None:
        self.step_in_phase += steps
        if self.step_in_phase >= self.plan[self.phase_index].steps:
            self.phase_index += 1
            self.step_in_phase = 0

    def let_objects_bend(self) -> BendingReport:
        """Give a deformation to each object that is said to bend, or that bends in a trial where that is asked for.

        One that bends begins anew with the Gaussians of the trial's fit: those of the bootstrap are blurred by what it
        could not explain. Without a bootstrap there is nothing to try on, and `auto` leaves all rigid.
        """
        trials = []
        bootstrapped = self.config.schedule.bootstrap_steps > 0
        for k, mode in enumerate(self.deformation_modes):
            if mode == "auto" and bootstrapped:
                trial, bent = try_bending(self.scene, k, self.data, self.config)
                trials.append(trial)
                if trial.bends:
                    self._let_bend(k, bent)
            elif mode == "deformable":
                self._let_bend(k, bend(self.scene, k, self.data, self.config))
        self.bending = BendingReport(self.gaussian_step, self.deforming, tuple(trials))
        return self.bending

    @property
    def deforming(self) -> tuple[str, ...]:
        """Names of the objects that bend."""
        return tuple(group.name for group in self.scene.objects if group.deformation is not None)

    def _let_bend(self, k: int, bent: ObjectGroup) -> None:
        self.scene.objects[k].gaussians = bent.gaussians
        self.optimizers[k] = self._gaussian_optimizers(k)
        self.density[k] = self._density_control(k)
        self.set_deformation(k, bent.deformation)

    def set_deformation(self, k: int, deformation: NodeDeformation) -> None:
        """Let object k bend from now on, with an optimizer of its own."""
        self.scene.objects[k].deformation = deformation
        self.deformation_optimizers[k] = deformation_optimizer(deformation, self.config.deformation)

    def _gaussian_optimizers(self, k: int) -> dict[str, torch.optim.Optimizer]:
        return gaussian_optimizers(self.scene.objects[k].gaussians, self.config.gaussians, self.extents[k])

    def _density_control(self, k: int) -> DensityControl:
        return DensityControl(
            self.scene.objects[k].gaussians,
            self.optimizers[k],
            self.config.density,
            self.extents[k],
            stop_step=int(self.config.density.stop_fraction * self.config.schedule.gaussian_steps),
            max_gaussians=self._shares[k],
        )

    def gaussian_update(self, kind: PhaseKind) -> StepReport:
        """One step on all objects' Gaussians from one random frame."""
        t = int(torch.randint(self.data.num_frames, (1,), generator=self.generator))
        self._decay_rates()
        layers = render_layers(self.scene, t)
        loss, picture = self._loss(kind, layers, t)
        for k, info in enumerate(layers.infos):
            loss = loss + self.density[k].regularization()
            if info is not None:
                self.density[k].before_backward(self.gaussian_step, info)
        if not torch.isfinite(loss):
            raise OsnGsError(
                f"training diverged: the loss of step {self.gaussian_step} is {loss.item()}; "
                "start again with smaller learning rates."
            )
        loss.backward()
        self.gaussian_step += 1
        for k, info in enumerate(layers.infos):
            for optimizer in self.optimizers[k].values():
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if info is not None:
                self.density[k].after_backward(self.gaussian_step, info)
        for optimizer in self.deformation_optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return StepReport(kind, loss.item(), psnr(picture.detach(), self._image(t)).item())

    def _loss(self, kind: PhaseKind, layers: ObjectLayers, t: int) -> tuple[Float[Tensor, ""], Float[Tensor, "h w 3"]]:
        """The loss of one frame and the picture its colour term was taken on."""
        weights = self.config.losses
        object_ids = self._object_ids[t]
        loss = weights.object_ids * losses.layer_mask_loss(layers.alphas, object_ids)
        loss = loss + weights.depth * losses.sparse_depth_loss(
            layers.depths, layers.alphas, self._points_by_frame[t], self._depth_weights()
        )
        planarity = losses.planarity_loss(layers.depths, layers.alphas, self._image(t), self._extents_on_device)
        loss = loss + weights.planarity * planarity
        for k in self.deformation_optimizers:
            held_back = deformation_loss(self.scene.objects[k].deformation, self.config.deformation, t)
            loss = loss + self._pixel_shares[k] * held_back
        if kind == "bootstrap":
            pictures = losses.labelled_composite(layers.rgb, object_ids)[None]
        else:
            composited = layers.composite(self._draw_scales(weights.configurations_per_step))
            pictures = composited.features
            loss = loss + weights.object_ids * losses.composite_id_loss(composited.object_weights, object_ids)
        return loss + losses.color_loss(pictures, self._image(t), weights.ssim), pictures[0]

    def _depth_weights(self) -> list[float]:
        bending = self.config.deformation.sparse_depth
        return [bending if k in self.deformation_optimizers else 1.0 for k in range(self.scene.num_objects)]

    def _image(self, t: int) -> Float[Tensor, "h w 3"]:
        return self._images[t].float() / 255

    def _draw_scales(self, count: int) -> Float[Tensor, "m k"]:
        chosen = torch.randint(len(self.valid_scales), (count,), generator=self.generator)
        return self.valid_scales[chosen].to(self.scene.intrinsics)

    def _decay_rates(self) -> None:
        config = self.config.gaussians
        progress = self.gaussian_step / max(self.config.schedule.gaussian_steps, 1)
        for optimizers, extent in zip(self.optimizers, self.extents, strict=True):
            lr = config.means_lr * extent * config.means_lr_end**progress
            optimizers["means"].param_groups[0]["lr"] = lr
        for optimizer in self.deformation_optimizers.values():
            rate = self.config.deformation.learning_rate
            optimizer.param_groups[0]["lr"] = rate * self.config.deformation.learning_rate_end**progress

    def network_round(self, phase: Phase) -> RoundReport:
        """Label scale vectors on the layers as they are now and fit the network to the labels."""
        self.oracle = oracle_of_scene(self.scene, self.data.object_ids)
        threshold = self.config.object_scales.rule(phase.round).accuracy_threshold(self.oracle, self.generator)
        fit = fit_to_oracle(self.network, self.network_optimizer, self.oracle, threshold, phase.steps, self.generator)
        self.valid_scales = self.sample_valid_scales(POOL_SIZE, threshold)
        report = RoundReport(
            round=phase.round,
            gaussian_step=self.gaussian_step,
            network_loss=fit.losses[-1],
            learned_set=report_set(self.network, self.oracle, threshold, self.generator),
        )
        self.rounds.append(report)
        return report

    def current_oracle(self) -> ScaleOracle:
        """The depth-order constraints the last round was taught; tabulated anew after a resume."""
        if self.oracle is None:
            self.oracle = oracle_of_scene(self.scene, self.data.object_ids)
        return self.oracle

    def accuracy_threshold(self) -> float:
        """The pixel accuracy from which on the last round called a vector valid."""
        if self.rounds:
            return self.rounds[-1].learned_set.accuracy_threshold
        rule = self.config.object_scales.rule(self.config.schedule.last_round)
        return rule.accuracy_threshold(self.current_oracle(), self.generator)

    @torch.no_grad()
    def sample_valid_scales(self, count: int, threshold: float) -> Float[Tensor, "n k"]:
        """Scale vectors spread over the learned set (score above 0.5), or over the oracle's while that is empty.

        The oracle's set is that of accuracy of at least `threshold`.
        """
        learned = ValidSet(self.network.logit, 0.0)
        allowed = ValidSet(lambda scales: self.current_oracle().accuracy(scales), threshold)
        _, samples = sample_first_found([learned, allowed], self.data.scale_ranges, count, self.generator)
        return samples


def _gaussian_shares(data: SceneData, at_most: int) -> list[int]:
    """How many of all Gaussians each object may have: half by its share of mask pixels, half equally.

    A small object in the picture may be the one looked at closely.
    """
    pixels = torch.bincount(data.object_ids.flatten().long(), minlength=data.num_objects).double()
    shares = 0.5 * pixels / pixels.sum() + 0.5 / data.num_objects
    return [int(at_most * share) for share in shares]
