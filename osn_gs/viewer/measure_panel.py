"""The part of a client's page that fixes the world: known sizes in metres, after which fewer worlds remain."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import viser

from osn_gs.errors import OsnGsError
from osn_gs.export.renderings import World
from osn_gs.object_scales.known_sizes import KnownSize, metres_per_unit, scale_constraints_from_sizes
from osn_gs.scene.measures import Picked, camera_height, camera_travel, length_between, object_length, pick_point
from osn_gs.scene.scene import Scene
from osn_gs.viewer.state import ViewState
from osn_gs.viewer.world_panel import vector

if TYPE_CHECKING:
    from osn_gs.viewer.session import Session

CHOICES = 16  # worlds drawn from what the known sizes leave
MARK_SIZE = 0.012  # of the objects' distance

HELP = (
    "Say what you know in metres. A length of the **background** (camera height, way travelled, two points on it) "
    "fixes the unit; then a length of an **object** fixes its scale. Lengths of two objects fix their ratio."
)


class Length(NamedTuple):
    """Something that can be measured: a length of an object in the object's own units."""

    label: str
    object: int
    units: float


def lengths_of(scene: Scene) -> tuple[Length, ...]:
    """What can be measured without picking points."""
    lengths = [
        Length(f"{name}: longest side", k, object_length(scene, k))
        for k, name in enumerate(scene.object_names)
        if k > 0
    ]
    lengths.append(Length("camera: way travelled", 0, camera_travel(scene)))
    height = camera_height(scene)
    if height is not None:
        lengths.append(Length("camera: height over ground", 0, height))
    return tuple(length for length in lengths if length.units > 0)


class MeasurePanel:
    """Known sizes of the shared state, and two points this client picks."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._picks: list[Picked] = []
        self._marks: list[Any] = []
        self._marked: tuple[World, int] | None = None  # the world and the time that the points were picked in
        self._picking = False
        self._between: dict[str, Length] = {}  # points that were picked, by label
        gui = session.client.gui
        self.help = gui.add_markdown(HELP)
        self.what = gui.add_dropdown("What is known", tuple(length.label for length in self._lengths))
        self.pick = gui.add_button("Pick two points", icon=viser.Icon.RULER, color="gray")
        self.metres = gui.add_number("Metres", 1.0, step=0.01)
        self.add = gui.add_button("Fix it", icon=viser.Icon.CHECK)
        self.fixes = gui.add_markdown("")
        self.clear = gui.add_button("Forget all sizes", color="gray", visible=False)
        self.facts = gui.add_markdown("")
        self.pick.on_click(session.handler(lambda event: self._start_picking()))
        self.add.on_click(session.handler(lambda event: self._add()))
        self.what.on_update(session.handler(lambda event: self._say_what_is_fixed()))
        self.metres.on_update(session.handler(lambda event: self._say_what_is_fixed()))
        self._say_what_is_fixed()
        self.clear.on_click(session.handler(lambda event: session.run_long(lambda: self._know(()))))

    @property
    def _lengths(self) -> tuple[Length, ...]:
        """Of the scene as it is now: it may have been trained on since the page was opened."""
        return (*self._session.viewed.lengths, *self._between.values())

    def show(self, state: ViewState) -> None:
        """Show the known sizes and what follows for the world shown; marks of points hold for one moment only."""
        if self._marks and self._marked != (state.world, state.time_step):
            self._forget_picks()
        text = self._facts(state)
        if self.facts.content != text:
            self.facts.content = text
        self.clear.visible = len(state.known_sizes) > 0

    def _facts(self, state: ViewState) -> str:
        unit = metres_per_unit(state.known_sizes, vector(state.world))
        if unit is None:
            return ""
        names = self._session.viewed.scene.object_names
        lines = [f"- {size.label} = {size.metres:g} m" for size in state.known_sizes]
        constraints = scale_constraints_from_sizes(state.known_sizes, names).constraints
        if not constraints.held and not constraints.tied:
            lines.append("- one size fixes the unit, not yet a scale: add a length of another object or the background")
        follows = [
            f"{length.label} {length.units * unit * state.world.object_scales[length.object]:.3g} m"
            for length in self._lengths
        ]
        return "\n".join([*lines, "", "In this world: " + ", ".join(follows) + "."])

    def _say_what_is_fixed(self) -> None:
        """What the button would do: a field that was emptied keeps its last number."""
        self.fixes.content = f"Fixes *{self.what.value}* at {self.metres.value:g} m."

    def _add(self) -> None:
        """Know one more size, or know it anew."""
        length = next((length for length in self._lengths if length.label == self.what.value), None)
        if length is None:
            raise OsnGsError("nothing is chosen; pick two points or choose a length first.")
        metres = float(self.metres.value)
        if not (metres > 0 and math.isfinite(metres)):
            raise OsnGsError(f"{length.label}: expected a length above 0 m, got {metres:g}.")
        known = tuple(size for size in self._session.state.known_sizes if size.label != length.label)
        size = KnownSize(length.object, length.units, metres, length.label)
        self._session.run_long(lambda: self._know((*known, size)))

    def _know(self, known: tuple[KnownSize, ...]) -> None:
        """Collapse the set to the worlds that agree with the sizes, and show one; nothing changes if none does.

        Held scales stay in the worlds that are drawn.
        """
        session = self._session
        by_sizes = scale_constraints_from_sizes(known, session.viewed.scene.object_names).constraints
        if not by_sizes.held and not by_sizes.tied:
            state = session.viewer.first_state()
            session.channel.change(known_sizes=known, choices=state.choices, choice=None)
            return
        seed = session.state.seed
        constraints = session.world_panel.constraints(known)
        try:
            session.viewed.worlds.sample(seed, constraints)
        except OsnGsError as error:
            raise OsnGsError(self._disagreement(known) or str(error)) from error
        vectors = [session.viewed.worlds.sample(seed + i, constraints) for i in range(CHOICES)]
        apart = torch.unique(torch.stack(vectors), dim=0)
        choices = tuple(World(f"known sizes, {i + 1}", tuple(scales)) for i, scales in enumerate(apart.tolist()))
        session.channel.change(known_sizes=known, choices=choices, choice=0, world=choices[0])
        left = "one world is left" if len(choices) == 1 else f"{len(choices)} of the worlds left are drawn: Next"
        session.tell("The set has collapsed", f"{left}.", "green")

    def _disagreement(self, known: tuple[KnownSize, ...]) -> str | None:
        """What the last size could be, given those before it, in metres; None where they do not say what a metre is."""
        *before, last = known
        session = self._session
        metric = scale_constraints_from_sizes(before, session.viewed.scene.object_names)
        if metric.metres_per_unit is None or last.object == 0:
            return None
        scales = session.viewed.worlds.interval(last.object, session.world_panel.constraints(before))
        lo, hi = (last.units * scale * metric.metres_per_unit for scale in scales)
        return (
            f"{last.label} = {last.metres:g} m does not agree with {', '.join(size.label for size in before)}: this "
            f"video allows about {lo:.3g} to {hi:.3g} m."
        )

    def _start_picking(self) -> None:
        """Listen for two clicks into the scene; it stands still for them."""
        self._session.channel.change(playing=False)
        with self._session.lock:
            self._forget_picks()
        self._session.tell("Pick two points", "Click on two points of one object, or of the background.", "blue")
        if not self._picking:
            self._picking = True
            self._session.client.scene.on_click()(self._session.handler(self._clicked))

    def _clicked(self, event: viser.SceneClickEvent) -> None:
        session, state = self._session, self._session.state
        like = session.viewed.scene.intrinsics
        picked = pick_point(
            session.viewed.scene,
            like.new_tensor(state.world.object_scales),
            state.time_step,
            like.new_tensor(event.ray_origin),
            like.new_tensor(event.ray_direction),
        )
        if picked is None:
            raise OsnGsError("nothing is hit there; click on an object or the background.")
        names = session.viewed.scene.object_names
        if self._picks and self._picks[0].object != picked.object:
            raise OsnGsError(
                f"the first point is on {names[self._picks[0].object]}, this one on {names[picked.object]}: what lies "
                "between two objects changes with their scales; click on the first one again."
            )
        with session.lock:
            self._picks.append(picked)
            self._marked = (state.world, state.time_step)
            self._mark(picked)
            if len(self._picks) == 2:
                self._stop_picking()
                self._measure(*self._picks)

    def _measure(self, first: Picked, second: Picked) -> None:
        units = length_between(first, second)
        name = self._session.viewed.scene.object_names[first.object]
        label = f"{name}: between picked points"
        self._between[label] = Length(label, first.object, units)
        self.what.options = tuple(length.label for length in self._lengths)
        self.what.value = label
        self._say_what_is_fixed()
        state = self._session.state
        self.show(state)
        unit = metres_per_unit(state.known_sizes, vector(state.world))
        told = f"{units * (unit or 1.0) * state.world.object_scales[first.object]:.3g} {'m' if unit else 'scene units'}"
        self._session.tell("Measured", f"{label}: {told}. Type its metres if you know them.", "green")

    def _mark(self, picked: Picked) -> None:
        mark = self._session.client.scene.add_icosphere(
            f"/picks/{len(self._picks)}",
            radius=MARK_SIZE * self._session.viewed.snapshot.distance,
            color=(230, 30, 120),
            position=picked.world_point.double().cpu().numpy(),
        )
        self._marks.append(mark)

    def _forget_picks(self) -> None:
        for mark in self._marks:
            mark.remove()
        self._picks, self._marks = [], []

    def _stop_picking(self) -> None:
        self._picking = False
        self._session.client.scene.remove_click_callback()
