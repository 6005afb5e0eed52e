"""The part of a client's page that chooses a world: object scales, where they stay valid, samples, kept worlds."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import viser
from jaxtyping import Float
from torch import Tensor

from osn_gs.export.renderings import World
from osn_gs.object_scales.constraints import Held, ScaleConstraints
from osn_gs.object_scales.known_sizes import KnownSize, scale_constraints_from_sizes
from osn_gs.viewer.state import ViewState
from osn_gs.viewer.worlds import ScaleStrip, Verdict

if TYPE_CHECKING:
    from osn_gs.viewer.session import Session

STEP = 0.01  # of a slider, in powers of two: 0.7 % of scale
PREVIOUS, NEXT, SURPRISE = "Previous", "Next", "Surprise me"
EDITED = "set by hand"
LABEL_WIDTH, SLIDER_WIDTH = 36.0, 45.5  # percent of a row of the page: where viser puts a slider
VALID_COLOR, INVALID_COLOR = (64, 160, 92), (205, 84, 76)


class WorldPanel:
    """Sliders and read-outs of one client. `judge` is slow and runs on a thread of its own."""

    def __init__(self, session: Session) -> None:
        self._session = session
        gui = session.client.gui
        self.verdict = gui.add_html("")
        self.choose = gui.add_button_group("Worlds", (PREVIOUS, NEXT, SURPRISE))
        self.sliders, self.strips, self.holds = [], [], []
        for k, name in enumerate(session.viewed.scene.object_names):
            if k > 0:
                self._add_object(k, name)
        self.nearest = gui.add_button("Nearest valid world", icon=viser.Icon.MAGNET)
        self.keep = gui.add_button("Keep this world", icon=viser.Icon.PIN, color="gray")
        self.compare = gui.add_checkbox("Side by side", False, hint="This world beside the kept ones, drawn here.")
        self.kept = gui.add_markdown("")
        self.drop = gui.add_button("Let kept worlds go", color="gray", visible=False)
        self._bind()

    def _add_object(self, k: int, name: str) -> None:
        gui = self._session.client.gui
        lo, hi = self._session.viewed.worlds.scale_ranges[k].log2().tolist()
        lo, hi = math.floor(lo / STEP) * STEP, math.ceil(hi / STEP) * STEP
        value = self._on_slider(self._session.state.world.object_scales[k])
        self.sliders.append(
            gui.add_slider(name, lo, hi, STEP, min(max(value, lo), hi), hint="Scale as a power of two; 0 is the start.")
        )
        self.strips.append(gui.add_html(""))
        self.holds.append(gui.add_checkbox(f"Hold {name}", False))

    def _bind(self) -> None:
        session, gui = self._session, self._session.client.gui
        self.choose.on_click(session.handler(lambda event: self._choose(self.choose.value)))
        for k, (slider, hold) in enumerate(zip(self.sliders, self.holds, strict=True), 1):
            session.on_value(slider, lambda value, k=k: self._scale(k, 2.0**value))
            session.on_value(hold, lambda is_held, k=k: self._hold(k, is_held))
        self.nearest.on_click(session.handler(lambda event: session.run_long(self._go_to_nearest)))
        self.keep.on_click(session.handler(lambda event: self._keep()))
        session.on_value(self.compare, lambda compares: session.channel.change(comparing=compares))
        self.drop.on_click(session.handler(lambda event: session.channel.change(kept=(), comparing=False)))
        for label, hotkey in ((NEXT, "N"), (PREVIOUS, "B"), (SURPRISE, "S")):
            command = gui.add_command(f"{label} world" if label != SURPRISE else label, hotkey=hotkey)
            command.on_trigger(session.handler(lambda event, label=label: self._choose(label)))
        keep = gui.add_command("Keep this world", hotkey="K")
        keep.on_trigger(session.handler(lambda event: self._keep()))

    def show(self, state: ViewState) -> None:
        """Show the scales and what is kept; the verdict follows from `judge`."""
        for k, (slider, hold) in enumerate(zip(self.sliders, self.holds, strict=True), 1):
            value = min(max(self._on_slider(state.world.object_scales[k]), slider.min), slider.max)
            if abs(slider.value - value) > STEP / 2:
                self._session.show_value(slider, value)
            self._session.show_value(hold, state.held[k])
        self._session.show_value(self.compare, state.comparing)
        self.drop.visible = len(state.kept) > 0
        kept = "Nothing is kept yet." if not state.kept else "Kept: " + ", ".join(world.name for world in state.kept)
        if self.kept.content != kept:
            self.kept.content = kept

    def judge(self, settled: bool) -> None:
        """Say how valid the world is, and draw where each scale stays valid; why not, once the sliders rest."""
        try:
            state, worlds = self._session.state, self._session.viewed.worlds
            scales = vector(state.world)
            verdict = worlds.judge(scales)
            broken = worlds.explain(verdict) if settled else None
            self.verdict.content = verdict_html(state, verdict, broken)
            for k, strip in enumerate(self.strips, 1):
                strip.content = strip_html(worlds.strip(scales, k), float(scales[k]))
        except Exception as error:  # a thread of its own: nobody else would hear of it
            self._session.failed(error)

    def constraints(self, known_sizes: Sequence[KnownSize]) -> ScaleConstraints:
        """What new worlds have to agree with: held scales and known sizes."""
        state = self._session.state
        held = tuple(Held(k, state.world.object_scales[k]) for k, is_held in enumerate(state.held) if is_held)
        names = self._session.viewed.scene.object_names
        return ScaleConstraints(held) & scale_constraints_from_sizes(known_sizes, names).constraints

    def _choose(self, which: str) -> None:
        if which == SURPRISE:
            self._session.run_long(self._surprise)
            return
        step = 1 if which == NEXT else -1

        def go(state: ViewState) -> ViewState:
            start = state.choice if state.choice is not None else (-1 if step > 0 else 0)
            choice = (start + step) % len(state.choices)
            return dataclasses.replace(state, choice=choice, world=state.choices[choice])

        self._session.channel.update(go)

    def _surprise(self) -> None:
        state = self._session.state
        seed = state.seed + 1
        scales = self._session.viewed.worlds.sample(seed, self.constraints(state.known_sizes))
        self._session.channel.change(seed=seed, choice=None, world=world(f"surprise, seed {seed}", scales))

    def _scale(self, k: int, object_scale: float) -> None:
        lo, hi = self._session.viewed.worlds.scale_ranges[k].tolist()

        def scale(state: ViewState) -> ViewState:
            scales = list(state.world.object_scales)
            scales[k] = min(max(object_scale, lo), hi)  # the slider's ends are rounded outward
            return dataclasses.replace(state, choice=None, world=World(EDITED, tuple(scales)))

        self._session.channel.update(scale)

    def _hold(self, k: int, is_held: bool) -> None:
        self._session.channel.update(
            lambda state: dataclasses.replace(
                state, held=tuple(is_held if i == k else held for i, held in enumerate(state.held))
            )
        )

    def _go_to_nearest(self) -> None:
        state = self._session.state
        scales = self._session.viewed.worlds.nearest(vector(state.world), self.constraints(state.known_sizes))
        self._session.channel.change(choice=None, world=world("nearest valid", scales))

    def _keep(self) -> None:
        def keep(state: ViewState) -> ViewState:
            if any(kept.object_scales == state.world.object_scales for kept in state.kept):
                return state
            taken = {kept.name for kept in state.kept}
            name, number = state.world.name, 2
            while name in taken:
                name, number = f"{state.world.name} {number}", number + 1
            return dataclasses.replace(state, kept=(*state.kept, World(name, state.world.object_scales)))

        self._session.channel.update(keep)

    @staticmethod
    def _on_slider(object_scale: float) -> float:
        return round(math.log2(object_scale) / STEP) * STEP


def vector(shown: World) -> Float[Tensor, "k"]:
    """A world's object scales as the samplers take them."""
    return torch.tensor(shown.object_scales, dtype=torch.float64)


def world(name: str, object_scales: Float[Tensor, "k"]) -> World:
    """A world of a vector that a sampler gave."""
    return World(name, tuple(object_scales.tolist()))


def verdict_html(state: ViewState, verdict: Verdict, broken: str | None) -> str:
    """The read-out: name, score, share of pixels explained, and what is wrong."""
    word, color = ("valid", VALID_COLOR) if verdict.valid else ("not valid", INVALID_COLOR)
    lines = [f"score {verdict.score:.2f}"]
    if verdict.accuracy is not None:
        enough = {True: ": enough", False: ": too few", None: ""}[verdict.allowed]
        lines.append(f"{100 * verdict.accuracy:.2f} % of the pixels explained{enough}")
    if broken is not None:
        lines.append(html.escape(broken))
    number = "" if state.choice is None else f" ({state.choice + 1} of {len(state.choices)})"
    return (
        f'<div class="osn-verdict" data-world="{html.escape(state.world.name, quote=True)}" '
        f'data-valid="{int(verdict.valid)}" data-score="{verdict.score:.4f}" '
        'style="margin:0.3em 0.6em;font-size:0.85em">'
        f"<b>{html.escape(state.world.name.replace('_', ' '))}</b>{number}: "
        f'<b style="color:rgb{color}">{word}</b><br>{"<br>".join(lines)}</div>'
    )


def strip_html(strip: ScaleStrip, object_scale: float) -> str:
    """A bar under a slider: green where the network calls the object's scale valid, given the others, red where not.

    A line below it marks what the occlusions allow (the oracle), an upright stroke the scale at hand.
    """
    log_lo, log_hi = math.log(strip.lo), math.log(strip.hi)

    def percent(scale: float) -> float:
        return 100 * min(max((math.log(scale) - log_lo) / max(log_hi - log_lo, 1e-12), 0.0), 1.0)

    scores = strip.scores.tolist()
    stops = [f"rgb{_mixed(score)} {100 * i / max(len(scores) - 1, 1):.1f}%" for i, score in enumerate(scores)]
    allowed = "".join(
        f'<div style="position:absolute;top:10px;height:3px;background:#234;left:{percent(lo):.1f}%;'
        f'width:{max(percent(hi) - percent(lo), 0.6):.1f}%"></div>'
        for lo, hi in strip.allowed or ()
    )
    return (
        '<div style="display:flex;align-items:center;margin:-0.2em 0.75em 0.3em">'
        f'<div style="width:{LABEL_WIDTH}%;font-size:0.75em;opacity:0.7">scale {object_scale:.3f}</div>'
        f'<div class="osn-strip" style="position:relative;height:14px;width:{SLIDER_WIDTH}%">'
        f'<div style="height:8px;border-radius:4px;background:linear-gradient(to right,{",".join(stops)})"></div>'
        f"{allowed}"
        f'<div style="position:absolute;left:{percent(object_scale):.1f}%;top:-3px;width:2px;height:14px;'
        f'background:#000"></div>'
        f"</div></div>"
    )


def _mixed(score: float) -> tuple[int, int, int]:
    return tuple(round(score * a + (1 - score) * b) for a, b in zip(VALID_COLOR, INVALID_COLOR, strict=True))
