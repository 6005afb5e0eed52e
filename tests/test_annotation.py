"""The segmenter's page: what edits do, what is kept, and the page itself in a browser where there is one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import viser
from browser import browser, needs_browser, wait_for
from moving_patches import HEIGHT, WIDTH, PatchClip, iou, moving_patches
from PIL import Image

from osn_gs.errors import ConfigError, DatasetError
from osn_gs.preprocess.segmentation import segment_clip
from osn_gs.viewer.annotation import FIELD_OF_VIEW, OUTLINE, AnnotationPage
from osn_gs.viewer.annotation_session import AnnotationSession

NAMES = ("a", "b", "c")
DISC, SQUARE = (60.5, 60.5), (110.5, 70.5)  # the middles of the patches in the first frame


@pytest.fixture(scope="module")
def clip() -> PatchClip:
    return moving_patches([(60 + 6 * t, 60) for t in range(3)], [(110 + 5 * t, 70) for t in range(3)])


@pytest.fixture
def session(clip: PatchClip, tmp_path: Path) -> AnnotationSession:
    return AnnotationSession(clip.images, NAMES, tmp_path / "masks", segment_clip)


@pytest.fixture
def server() -> Iterator[viser.ViserServer]:
    server = viser.ViserServer(host="127.0.0.1", port=8765, verbose=False)
    yield server
    server.stop()


def reopened(session: AnnotationSession) -> AnnotationSession:
    return AnnotationSession(session.images, session.names, session.folder, segment_clip)


def test_a_box_shows_its_object_at_once_and_is_kept(session: AnnotationSession, clip: PatchClip):
    assert session.add_box((82.0, 82.0), (38.0, 38.0))
    assert iou(session.shown_ids(0) == 1, clip.object_ids[0] == 1) > 0.9
    assert reopened(session).prompts == session.prompts


def test_a_drag_of_a_pixel_is_no_box(session: AnnotationSession):
    assert not session.add_box((50.0, 50.0), (51.0, 80.0))
    assert session.prompts.prompts == ()


def test_every_edit_can_be_undone_also_in_the_file(session: AnnotationSession):
    seen = [session.prompts]
    edits: list[Callable[[], object]] = [
        lambda: session.add_point(DISC, True),
        session.mark_absent,
        session.clear_prompt,
        session.add_object,
        lambda: session.add_box((95.0, 55.0), (126.0, 86.0)),
        lambda: session.rename_object("square"),
        session.remove_object,
    ]
    for edit in edits:
        edit()
        assert session.prompts != seen[-1]
        seen.append(session.prompts)
    for expected in reversed(seen[:-1]):
        assert session.undo()
        assert session.prompts == expected
        assert reopened(session).prompts == expected
    assert not session.undo()


def test_masks_are_written_for_all_frames_and_out_of_date_after_an_edit(session: AnnotationSession, clip: PatchClip):
    session.add_box((38.0, 38.0), (82.0, 82.0))
    session.add_object()
    session.add_box((94.0, 54.0), (127.0, 87.0))
    assert session.has_unsaved_edits
    session.save()
    assert session.is_saved
    assert not session.has_unsaved_edits
    for name, true in zip(NAMES, clip.object_ids, strict=True):
        found = np.asarray(Image.open(session.folder / f"{name}.png"))
        assert iou(found == 1, true == 1) > 0.85
        assert iou(found == 2, true == 2) > 0.85
    session.add_point((60.5, 30.5), False)
    assert not session.is_propagated
    assert not session.is_saved


def test_a_click_in_another_frame_corrects_what_was_propagated(session: AnnotationSession, clip: PatchClip):
    session.add_box((38.0, 38.0), (82.0, 82.0))
    session.propagate()
    before = session.shown_ids(2) == 1
    session.select(frame=2)
    session.add_point((20.5, 20.5), False)
    assert iou(session.shown_ids(2) == 1, before) > 0.97, "the point is far from the object and changes nothing"
    assert session.prompts.key_frames(1) == [0, 2]


def test_removing_an_object_takes_its_masks_along(session: AnnotationSession):
    session.add_box((38.0, 38.0), (82.0, 82.0))
    session.add_object()
    session.add_box((94.0, 54.0), (127.0, 87.0))
    session.propagate()
    session.select(object_id=1)
    session.remove_object()
    assert session.prompts.names == ("object 2",)
    assert session.shown_ids(0)[70, 110] == 1
    assert session.shown_ids(0)[60, 60] == 0
    assert not session.shown_ids(1).any(), "what was propagated numbers objects as they were"


def test_renaming_does_not_put_masks_out_of_date(session: AnnotationSession):
    session.add_box((38.0, 38.0), (82.0, 82.0))
    session.propagate()
    session.rename_object("disc")
    assert session.is_propagated
    session.add_object()
    for taken in ("disc", " ", "background"):
        with pytest.raises(ConfigError, match="no other object"):
            session.rename_object(taken)


def test_an_object_without_a_prompt_is_named_when_masks_are_asked_for(session: AnnotationSession):
    with pytest.raises(DatasetError, match="object 1"):
        session.save()
    assert not list(session.folder.glob("*.png"))


def click_event(pixel: tuple[float, float], told: list[str]) -> Any:
    """A click as viser reports it, by a camera that looks at the picture's middle from an angle."""
    origin = np.array([0.4, -0.3, 1.7])
    target = np.array([(pixel[0] / WIDTH - 0.5) * WIDTH / HEIGHT, 0.5 - pixel[1] / HEIGHT, 0.0])
    client = SimpleNamespace(add_notification=lambda title, text, **options: told.append(text))
    return SimpleNamespace(client=client, ray_origin=tuple(origin), ray_direction=tuple(target - origin))


def scene_callback(server: viser.ViserServer, kind: str, modifier: str | None) -> Callable[[Any], None]:
    entries = server.scene._scene_pointer_cb
    (found,) = [entry.callback for entry in entries if (entry.event_type, entry.modifier) == (kind, modifier)]
    return found


def test_clicks_land_on_the_pixel_under_them(session: AnnotationSession, server: viser.ViserServer):
    AnnotationPage(server, session)
    scene_callback(server, "click", None)(click_event(DISC, []))
    scene_callback(server, "click", "shift")(click_event((3.5, 117.5), []))
    scene_callback(server, "click", None)(click_event((-5.0, 30.0), []))
    prompt = session.prompts.get(0, 1)
    assert prompt.inside == (DISC,)
    assert prompt.outside == ((3.5, 117.5),)


def test_a_dragged_box_is_the_one_under_the_screen(session: AnnotationSession, server: viser.ViserServer):
    """A camera straight before the picture that sees it with a margin: a window twice as wide as high."""
    AnnotationPage(server, session)
    distance = 0.625 / math.tan(FIELD_OF_VIEW / 2)  # the window shows 1.25 picture heights
    # Looking down -z with y up, in OpenCV axes: half a turn about x.
    camera = SimpleNamespace(fov=FIELD_OF_VIEW, aspect=2.0, position=(0.0, 0.0, distance), wxyz=(0.0, 1.0, 0.0, 0.0))
    corners = []
    for x, y in ((40.0, 30.0), (80.0, 90.0)):
        right, down = (x / WIDTH - 0.5) * WIDTH / HEIGHT, y / HEIGHT - 0.5
        corners.append((0.5 + right / 2.5, 0.5 + down / 1.25))
    event = SimpleNamespace(client=SimpleNamespace(camera=camera), screen_min=corners[0], screen_max=corners[1])
    scene_callback(server, "rect-select", None)(event)
    assert session.prompts.get(0, 1).box == pytest.approx((40.0, 30.0, 80.0, 90.0), abs=0.02)


def test_an_outline_is_clicked_corner_by_corner(session: AnnotationSession, server: viser.ViserServer, clip: PatchClip):
    page = AnnotationPage(server, session)
    page.marks.value = OUTLINE
    click = scene_callback(server, "click", None)
    for angle in np.linspace(0, 2 * np.pi, 12, endpoint=False):
        assert page.close.disabled == (len(session.corners) < 3)
        click(click_event((60.5 + 20 * np.cos(angle), 60.5 + 20 * np.sin(angle)), []))
    assert len(session.corners) == 12
    session.close_outline()
    assert iou(session.shown_ids(0) == 1, clip.object_ids[0] == 1) > 0.9


def test_what_cannot_work_becomes_a_notice(session: AnnotationSession, server: viser.ViserServer):
    page = AnnotationPage(server, session)
    told: list[str] = []
    page._handler(page._propagate)(click_event(DISC, told))
    assert len(told) == 1
    assert "object 1" in told[0]
    assert not page.progress.visible


@pytest.mark.slow
@needs_browser
def test_the_page_in_a_browser(session: AnnotationSession, server: viser.ViserServer, clip: PatchClip, tmp_path: Path):
    """Drag a box, click, look at another frame, save: as a user would."""
    AnnotationPage(server, session)
    with browser(tmp_path / "profile") as window:
        page = window.new_page()
        page.goto(f"http://127.0.0.1:{server.get_port()}/?fixedDpr=1")
        page.wait_for_selector("text=Propagate")
        wait_for(lambda: len(server.get_clients()) == 1, "the page to connect")
        page.wait_for_timeout(2000)  # for the first picture
        client = next(iter(server.get_clients().values()))
        canvas = page.locator("canvas").first.bounding_box()

        def on_screen(x: float, y: float) -> tuple[float, float]:
            """Where a pixel of the frame is in the window, by the camera the browser told."""
            pixels_a_unit = canvas["height"] / (2 * math.tan(client.camera.fov / 2) * client.camera.position[2])
            right, down = (x / WIDTH - 0.5) * WIDTH / HEIGHT, y / HEIGHT - 0.5
            return (
                canvas["x"] + canvas["width"] / 2 + right * pixels_a_unit,
                canvas["y"] + canvas["height"] / 2 + down * pixels_a_unit,
            )

        page.mouse.move(*on_screen(38, 38))
        page.mouse.down()
        page.mouse.move(*on_screen(60, 60), steps=4)
        page.mouse.move(*on_screen(82, 82), steps=4)
        page.mouse.up()
        wait_for(lambda: session.prompts.get(0, 1).box is not None, "the box")
        assert session.prompts.get(0, 1).box == pytest.approx((38, 38, 82, 82), abs=1.5)

        page.keyboard.down("Shift")
        page.mouse.click(*on_screen(*SQUARE))
        page.keyboard.up("Shift")
        wait_for(lambda: len(session.prompts.get(0, 1).outside) == 1, "the point")
        assert session.prompts.get(0, 1).outside[0] == pytest.approx(SQUARE, abs=1.0)

        page.get_by_role("button", name="Next", exact=True).click()
        wait_for(lambda: session.frame == 1, "the next frame")
        page.get_by_text("Frame 1 of 3").wait_for()
        page.get_by_role("button", name="Save masks").click()
        wait_for(lambda: session.is_saved, "the masks")
    assert iou(np.asarray(Image.open(session.folder / "c.png")) == 1, clip.object_ids[2] == 1) > 0.85
    assert json.loads((session.folder / "prompts.json").read_text())["objects"] == ["object 1"]
