"""What a person sees while a run goes on."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from osn_gs.training.joint_optimizer import BendingReport, JointOptimizer, Phase, RoundReport, StepReport

SMOOTHING = 0.98  # of the PSNR on display: a frame differs from the next by several dB


class TrainingProgress:
    """A bar over all steps of the schedule with stage, PSNR and speed; one line is kept per finished phase."""

    def __init__(self, console: Console, optimizer: JointOptimizer) -> None:
        self.console = console
        self.optimizer = optimizer
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.fields[stage]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[psnr]}"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self.progress.add_task(
            "training",
            total=sum(phase.steps for phase in optimizer.plan),
            completed=self._steps_done(),
            stage=self._stage(),
            psnr="",
            speed="",
        )
        self._psnr: float | None = None
        self._phase_index = optimizer.phase_index
        self._started = time.monotonic()
        self._gaussian_steps_before = optimizer.gaussian_step

    def __enter__(self) -> TrainingProgress:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def show(self, report: StepReport | RoundReport | BendingReport) -> None:
        """Take in one report of the optimizer."""
        if isinstance(report, RoundReport):
            self.console.print(_round_line(report), highlight=False)
        elif isinstance(report, BendingReport):
            self.console.print(_bending_line(report), highlight=False)
        else:
            previous = report.psnr if self._psnr is None else self._psnr
            self._psnr = SMOOTHING * previous + (1 - SMOOTHING) * report.psnr
        self._tell_of_finished_phase()
        self.progress.update(
            self._task,
            completed=self._steps_done(),
            stage=self._stage(),
            psnr="" if self._psnr is None else f"PSNR {self._psnr:.1f} dB",
            speed=self._speed(),
        )

    def _tell_of_finished_phase(self) -> None:
        """One line when steps on the Gaussians end; rounds of the network have their own."""
        if self.optimizer.phase_index == self._phase_index:
            return
        phase = self.optimizer.plan[self._phase_index]
        self._phase_index = self.optimizer.phase_index
        if phase.kind != "network":
            self.console.print(
                f"{stage_name(phase)}: {phase.steps} steps, PSNR {self._psnr:.1f} dB, "
                f"{self.optimizer.scene.num_gaussians} Gaussians, {self._speed()}",
                highlight=False,
            )

    def _speed(self) -> str:
        steps = self.optimizer.gaussian_step - self._gaussian_steps_before
        seconds = time.monotonic() - self._started
        return f"{steps / seconds:.1f} steps/s" if steps else ""

    def _steps_done(self) -> int:
        before = sum(phase.steps for phase in self.optimizer.plan[: self.optimizer.phase_index])
        return before + self.optimizer.step_in_phase

    def _stage(self) -> str:
        if self.optimizer.finished:
            return "done"
        phase = self.optimizer.plan[self.optimizer.phase_index]
        modes = self.optimizer.deformation_modes
        if phase.kind != "bootstrap" and self.optimizer.bending is None and set(modes) != {"rigid"}:
            return "fitting what may bend"
        return stage_name(phase)


def stage_name(phase: Phase) -> str:
    """A phase in a user's words."""
    if phase.kind == "bootstrap":
        return "bootstrap: each object alone"
    work = "scale network" if phase.kind == "network" else "scene"
    return f"round {phase.round}: {work}"


def _round_line(report: RoundReport) -> str:
    learned = report.learned_set
    return (
        f"round {report.round}  IoU with the oracle {learned.iou:.3f}  precision {learned.precision:.3f}  "
        f"recall {learned.recall:.3f}  valid {100 * learned.learned_volume:.3g} % of the box"
    )


def _bending_line(report: BendingReport) -> str:
    names_tried = {trial.object_name for trial in report.trials}
    bending = [name if name in names_tried else f"{name} as told" for name in report.deforming]
    tried = [
        f"{trial.object_name} {'seen too seldom' if trial.gain is None else f'{100 * trial.gain:.0f} %'}"
        for trial in report.trials
    ]
    gains = f" (loss that bending saves in frames left out: {', '.join(tried)})" if tried else ""
    return escape(f"objects that bend: {', '.join(bending) or 'none'}{gains}")
