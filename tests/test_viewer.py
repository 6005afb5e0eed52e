"""The viewer in a real browser: what a user sees and does."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import viser
from browser import browser, needs_browser, wait_for
from jaxtyping import UInt8
from PIL import Image
from rich.console import Console
from viewer_scene import BALL_DEPTH, FRAMES, WALL_DEPTH, viewed_wall_and_ball

from osn_gs.export.camera_path import read_camera_path
from osn_gs.export.ply import read_gaussian_ply
from osn_gs.export.renderings import World
from osn_gs.geometry.cameras import orbit
from osn_gs.geometry.se3 import invert_rigid
from osn_gs.run.open_run import open_run
from osn_gs.run.view import viewed_run
from osn_gs.viewer.session import Session
from osn_gs.viewer.viewer import Viewer

pytestmark = [pytest.mark.slow, needs_browser]

WHITE = 245  # the browser's background: any channel of a splat is darker
TOP = 170  # pixels of the canvas that notices cover


class Page:
    """One client: its window and its session, and how to wait for what the browser draws."""

    def __init__(self, window: Any, viewer: Viewer, port: int) -> None:
        before = set(viewer.sessions)
        self.window = window.new_page()
        self.window.goto(f"http://127.0.0.1:{port}/?fixedDpr=1")
        self.window.wait_for_selector(".osn-verdict")
        wait_for(lambda: len(set(viewer.sessions) - before) == 1, "the session")
        (client_id,) = set(viewer.sessions) - before
        self.session: Session = viewer.sessions[client_id]
        self.settled()

    def picture(self) -> UInt8[np.ndarray, "h w 3"]:
        """The canvas without what lies over its edges."""
        box = self.window.locator("canvas").first.bounding_box()
        right = self.window.get_by_role("tab", name="World").bounding_box()["x"] - 15
        clip = {
            "x": box["x"] + 10,
            "y": box["y"] + TOP,
            "width": right - box["x"] - 20,
            "height": box["height"] - TOP - 10,
        }
        return np.asarray(Image.open(io.BytesIO(self.window.screenshot(clip=clip))).convert("RGB"))

    def settled(self, seconds: float = 30.0) -> UInt8[np.ndarray, "h w 3"]:
        """The picture once two in a row are the same: splats fade in, and software WebGL is slow."""
        last = [self.picture()]

        def same() -> bool:
            self.window.wait_for_timeout(200)
            now = self.picture()
            is_same = difference(now, last[0]) < 0.05
            last[0] = now
            return is_same

        wait_for(same, "a still picture", seconds)
        return last[0]

    def tab(self, name: str) -> None:
        self.window.get_by_role("tab", name=name).click()

    def slider(self, label: str) -> Any:
        row = self.window.get_by_text(label, exact=True).locator("xpath=ancestor::*[.//*[@role='slider']][1]")
        return row.locator("[role=slider]").first

    def type_into(self, label: str, value: float) -> None:
        """Type a value into the number beside a slider."""
        row = self.window.get_by_text(label, exact=True).locator("xpath=ancestor::*[.//*[@role='slider']][1]")
        field = row.locator("input[type=text], input:not([type=hidden])").last

        def typed() -> bool:
            """A value that the server sends at this moment takes the place of what is being typed."""
            field.fill(str(value))
            field.press("Enter")
            self.window.wait_for_timeout(200)
            return float(self.slider(label).get_attribute("aria-valuenow")) == pytest.approx(value)

        wait_for(typed, f"{value} beside {label}")

    def download(self, act: Callable[[], object]) -> tuple[str, bytes]:
        with self.window.expect_download() as waiting:
            act()
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()

    def button(self, name: str) -> Any:
        return self.window.get_by_role("button", name=name, exact=True)

    def verdict(self, attribute: str) -> str:
        return self.window.locator(".osn-verdict").get_attribute(f"data-{attribute}")


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference in grey levels."""
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


def red(picture: np.ndarray) -> np.ndarray:
    """Where the ball is."""
    r, g, b = picture.astype(int).transpose(2, 0, 1)
    return (r > g + 60) & (r > b + 60)


@pytest.fixture(scope="module")
def viewer() -> Iterator[Viewer]:
    server = viser.ViserServer(host="127.0.0.1", port=8780, verbose=False)
    viewer = Viewer(server, viewed_wall_and_ball())
    viewer.port = server.get_port()
    yield viewer
    viewer.close()
    server.stop()


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("browser") / "profile", 820, 600) as context:
        yield context


@pytest.fixture(scope="module")
def opened(window: Any, viewer: Viewer) -> Page:
    return Page(window, viewer, viewer.port)


@pytest.fixture
def page(opened: Page, viewer: Viewer) -> Page:
    """The page as it is right after opening."""
    opened.session.view_panel.follow.value = False
    opened.session.view_panel.draw.value = "in the browser"
    opened.session.follows_camera = opened.session.draws_on_server = False
    opened.session.export_panel._clear_views()
    opened.session.measure_panel._forget_picks()
    viewer.shared.update(lambda state: viewer.first_state())
    look_from_the_side(opened)
    opened.tab("World")
    opened.settled()
    return opened


def look_from_the_side(page: Page) -> None:
    snapshot = page.session.viewed.snapshot
    filmed_from = torch.from_numpy(snapshot.cam_from_world[2])
    side = invert_rigid(orbit(filmed_from, snapshot.distance, 28.0, 10.0)).numpy()
    camera = page.session.client.camera
    with page.session.client.atomic():
        camera.position = side[:3, 3]
        camera.look_at = side[:3, 3] + snapshot.distance * side[:3, 2]
        camera.up_direction = -side[:3, 1]
        camera.fov = 0.9


def test_splats_are_drawn(page: Page):
    picture = page.settled()
    assert (picture.min(axis=2) < WHITE).mean() > 0.5, "the wall fills most of the picture"
    assert 0.005 < red(picture).mean() < 0.3, "and the ball a part of it"


def test_time_moves_the_object_on_the_screen(page: Page, viewer: Viewer):
    columns = []
    for time_step in (0, FRAMES - 1):
        page.type_into("Frame", time_step)
        wait_for(lambda step=time_step: viewer.shared.state.time_step == step, "the time")
        columns.append(np.nonzero(red(page.settled()))[1].mean())
    assert columns[1] < columns[0] - 40, "the ball goes to the left"


def test_playing_goes_round_and_stops(page: Page, viewer: Viewer):
    viewer.shared.change(frames_per_second=4.0)  # a busy machine may skip frames at more
    seen: list[int] = []
    listener = lambda: seen.append(viewer.shared.state.time_step)  # noqa: E731
    viewer.shared.listen(listener)
    page.button("Play").click()
    wait_for(lambda: seen.count(0) >= 2, "a second round")
    page.button("Pause").click()
    wait_for(lambda: not viewer.shared.state.playing, "the pause")
    viewer.shared.leave(listener)
    assert set(range(FRAMES)) <= set(seen)
    assert page.session.timeline.time.value == viewer.shared.state.time_step


def test_a_scale_changes_the_side_view_but_not_the_training_view(page: Page, viewer: Viewer):
    before = page.settled()
    page.type_into("ball", -0.5)
    wait_for(lambda: abs(viewer.shared.state.world.object_scales[1] - 2**-0.5) < 1e-6, "the scale")
    assert difference(page.settled(), before) > 4, "from the side the ball is nearer and smaller"

    page.tab("View")
    page.window.get_by_label("View from training camera").click()
    wait_for(lambda: page.session.follows_camera, "the lock")
    far = page.settled()
    viewer.shared.update(lambda state: viewer.first_state())
    near = page.settled()
    assert red(near).mean() > 0.01
    assert difference(near, far) < 2.0, "as filmed, no scale changes a thing"
    assert np.quantile(np.abs(near.astype(int) - far.astype(int)), 0.99) <= 12


def test_the_locked_camera_returns_after_a_drag(page: Page):
    page.tab("View")
    page.window.get_by_label("View from training camera").click()
    wait_for(lambda: page.session.follows_camera, "the lock")
    locked = page.settled()
    box = page.window.locator("canvas").first.bounding_box()
    page.window.mouse.move(box["x"] + 200, box["y"] + 400)
    page.window.mouse.down()
    page.window.mouse.move(box["x"] + 300, box["y"] + 420, steps=3)
    page.window.mouse.up()
    assert difference(page.settled(), locked) < 1.0


def test_a_key_locks_the_camera_and_frees_it(page: Page):
    box = page.window.locator("canvas").first.bounding_box()
    page.window.mouse.click(box["x"] + 200, box["y"] + 400)  # the keys belong to the canvas
    page.window.keyboard.press("l")
    wait_for(lambda: page.session.follows_camera, "the lock")
    centre = page.session.viewed.snapshot.camera_centres[0]
    wait_for(lambda: np.allclose(page.session.client.camera.position, centre, atol=1e-3), "the camera to go there")
    page.window.keyboard.press("l")
    wait_for(lambda: not page.session.follows_camera, "the camera to be free")
    assert page.session.view_panel.follow.value is False


def test_next_and_surprise_change_the_readout(page: Page, viewer: Viewer):
    assert page.verdict("world") == "contact"
    page.button("Next").click()
    wait_for(lambda: page.verdict("world") == "configuration_000", "the next world")
    box = page.window.locator("canvas").first.bounding_box()
    page.window.mouse.click(box["x"] + 200, box["y"] + 400)  # the keys belong to the canvas
    page.window.keyboard.press("b")
    wait_for(lambda: page.verdict("world") == "contact", "the world before, by its key")
    page.button("Surprise me").click()
    wait_for(lambda: page.verdict("world") == "surprise, seed 1", "a new sample with its seed")
    assert page.verdict("valid") == "1"
    first = viewer.shared.state.world.object_scales
    page.button("Surprise me").click()
    wait_for(lambda: page.verdict("world") == "surprise, seed 2", "another")
    assert viewer.shared.state.world.object_scales != first


def test_leaving_the_set_says_who_is_wrong_where_and_the_nearest_is_offered(page: Page, viewer: Viewer):
    page.type_into("ball", 0.5)
    wait_for(lambda: page.verdict("valid") == "0", "the verdict")
    page.window.get_by_text("background stands in front of ball").wait_for()
    assert "worst in frame" in page.window.locator(".osn-verdict").inner_text()
    page.button("Nearest valid world").click()
    wait_for(lambda: page.verdict("valid") == "1", "the nearest world")
    scale = viewer.shared.state.world.object_scales[1]
    assert 1.0 < scale < 1.05 * WALL_DEPTH / BALL_DEPTH, "just before the wall"


def test_a_held_scale_stays(page: Page, viewer: Viewer):
    page.window.get_by_label("Hold ball").click()
    wait_for(lambda: viewer.shared.state.held == (False, True), "the hold")
    before = viewer.shared.state.world.object_scales
    page.button("Surprise me").click()
    wait_for(lambda: viewer.shared.state.seed == 1, "the sample")
    assert viewer.shared.state.world.object_scales == pytest.approx(before, rel=1e-6)


def test_known_sizes_collapse_the_set(page: Page, viewer: Viewer):
    lengths = {length.label: length for length in page.session.measure_panel._lengths}
    travelled, ball = lengths["camera: way travelled"], lengths["ball: longest side"]
    page.tab("Measure")
    for label, metres in ((travelled.label, 2 * travelled.units), (ball.label, 2 * 0.8 * ball.units)):
        page.window.get_by_label("What is known").first.click()
        page.window.get_by_role("option", name=label).click()
        page.window.get_by_label("Metres").first.fill(f"{metres:.4f}")
        page.window.get_by_label("Metres").first.press("Enter")
        page.button("Fix it").click()
        wait_for(lambda label=label: label in [size.label for size in viewer.shared.state.known_sizes], label)
    wait_for(lambda: viewer.shared.state.choice == 0, "the worlds left")
    assert viewer.shared.state.world.object_scales[1] == pytest.approx(0.8, rel=1e-2)
    page.window.get_by_text("In this world:").wait_for()
    page.button("Forget all sizes").click()
    wait_for(lambda: len(viewer.shared.state.choices) == 3, "all worlds again")


def test_two_picked_points_measure_an_object(page: Page, viewer: Viewer):
    page.tab("Measure")
    page.button("Pick two points").click()
    rows, columns = np.nonzero(red(page.settled()))
    box = page.window.locator("canvas").first.bounding_box()
    row = int(np.median(rows))
    across = columns[np.abs(rows - row) < 3]
    for column in (np.quantile(across, 0.15), np.quantile(across, 0.85)):
        page.window.mouse.click(box["x"] + 10 + column, box["y"] + TOP + row)
        page.window.wait_for_timeout(300)
    wait_for(lambda: "ball: between picked points" in page.session.measure_panel.what.options, "the length")
    picked = page.session.measure_panel._lengths[-1]
    assert picked.object == 1
    assert 0.3 < picked.units < 1.3, "the ball is 0.9 and some blur across"


def test_a_ply_of_the_moment_reads_back(page: Page, viewer: Viewer, tmp_path: Path):
    page.tab("Export")
    name, content = page.download(page.button("Gaussians (.ply)").click)
    assert name == "contact_frame_0000.ply"
    (tmp_path / name).write_bytes(content)
    cloud = read_gaussian_ply(tmp_path / name)
    placed = viewer.viewed.scene.place(torch.ones(2), 0)
    torch.testing.assert_close(cloud.means, placed.means, rtol=1e-5, atol=1e-5)


def test_kept_worlds_leave_as_folders_with_manifests(page: Page, viewer: Viewer, tmp_path: Path):
    page.button("Keep this world").click()
    page.button("Next").click()
    wait_for(lambda: viewer.shared.state.choice == 1, "the next world")
    page.button("Keep this world").click()
    wait_for(lambda: len(viewer.shared.state.kept) == 2, "both worlds")
    page.tab("Export")
    for label, option in (("Export", "all kept worlds"), ("Times", "all frames")):
        page.window.get_by_label(label, exact=True).first.click()
        page.window.get_by_role("option", name=option).click()
    wait_for(lambda: page.session.export_panel.span.value == "all frames", "the choice")
    name, content = page.download(page.button("Gaussians (.ply)").click)
    assert name == "kept_worlds_ply.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        archive.extractall(tmp_path)
    for world, scale in (("contact", 1.0), ("configuration_000", 0.6)):
        manifest = json.loads((tmp_path / world / "manifest.json").read_text())
        assert manifest["object_scales"] == [1.0, scale]
        assert len(manifest["frames"]) == FRAMES
        assert (
            len(read_gaussian_ply(tmp_path / world / "frame_0003.ply").means) == manifest["frames"][3]["num_gaussians"]
        )
    page.session.export_panel.which.value, page.session.export_panel.span.value = "the world shown", "this moment"


def test_a_video_and_its_camera_path_leave(page: Page, tmp_path: Path):
    page.tab("Export")
    page.session.export_panel.height.value = 120
    page.button("Add this view").click()
    page.window.get_by_text("One view").wait_for()  # added before the camera goes on, however busy the machine
    page.session.client.camera.position = page.session.client.camera.position + 0.2
    page.window.wait_for_timeout(500)
    page.button("Add this view").click()
    page.window.get_by_text("2 views").wait_for()
    name, content = page.download(page.button("Path (.json)").click)
    (tmp_path / name).write_bytes(content)
    path = read_camera_path(tmp_path / name, FRAMES)
    name, content = page.download(page.button("Video (.mp4)").click)
    (tmp_path / name).write_bytes(content)
    with av.open(str(tmp_path / name)) as video:
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(pictures) == len(path.times)
    assert pictures[0].shape[0] == 120
    assert red(pictures[0]).any(), "the ball is in it"
    assert difference(pictures[0], pictures[-1]) > 1, "the camera moves"


def test_a_screenshot_is_what_the_window_shows(page: Page):
    shown = page.settled()
    page.tab("Export")
    _, content = page.download(page.button("Screenshot (.png)").click)
    shot = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    camera = page.session.client.camera
    assert shot.shape[:2] == (camera.image_height, camera.image_width)
    ours, theirs = (np.array([positions.mean() for positions in np.nonzero(red(p))]) for p in (shot, shown))
    off = np.abs(ours - theirs - (TOP, 10)).max() / shot.shape[0]
    assert off < 0.05, "the ball is in the same place, but for what the panel covers of it"


def test_an_offline_page_moves_without_a_server(page: Page, window: Any, tmp_path: Path):
    page.tab("Export")
    name, content = page.download(page.button("Offline page of this world (.html)").click)
    assert b"<title>wall and ball: contact</title>" in content
    (tmp_path / name).write_bytes(content)
    requests = []
    alone = window.new_page()
    alone.on("request", lambda request: requests.append(request.url))
    alone.goto(f"file://{tmp_path / name}?fixedDpr=1")
    columns = set()

    def moves() -> bool:
        shot = np.asarray(Image.open(io.BytesIO(alone.screenshot())).convert("RGB"))
        ball = np.nonzero(red(shot))[1]
        if len(ball) > 50:
            columns.add(int(ball.mean()) // 20)
        return len(columns) > 2

    wait_for(moves, "the ball to move", 60)
    alone.close()
    assert [url for url in requests if url.startswith(("http://", "https://", "ws://"))] == []


def test_an_offline_page_sorts_its_splats(page: Page, window: Any, viewer: Viewer, tmp_path: Path):
    """Opened as a file, where browsers start no worker that is a module. Unsorted, the ball is drawn over the wall."""
    viewer.shared.change(world=World("behind the wall", (1.0, 1.45)), choice=None)
    page.tab("Export")
    name, content = page.download(page.button("Offline page of this world (.html)").click)
    (tmp_path / name).write_bytes(content)
    alone = window.new_page()
    alone.goto(f"file://{tmp_path / name}?fixedDpr=1")

    def shot() -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(alone.screenshot())).convert("RGB"))

    wait_for(lambda: (shot().min(axis=2) < 200).mean() > 0.5, "the wall")
    alone.wait_for_timeout(2000)
    assert red(shot()).mean() < 0.002
    alone.close()


def test_pictures_can_be_drawn_by_the_server(page: Page, viewer: Viewer):
    by_browser = page.settled()
    page.tab("View")
    for colours in ("colour", "depth", "objects"):
        viewer.shared.change(colouring=colours)
        before = page.session.server_view.num_pictures
        page.session.view_panel.draw.value = "on the server"
        page.session.view_panel._choose_drawing(None)
        wait_for(lambda before=before: page.session.server_view.num_pictures > before, "a picture")
        picture = page.settled()
        if colours == "colour":
            assert difference(picture, by_browser) < 12, "the same picture but for the browser's edges"
        else:
            assert difference(picture, by_browser) > 12


def test_kept_worlds_stand_side_by_side(page: Page, viewer: Viewer):
    page.button("Keep this world").click()
    page.button("Next").click()
    wait_for(lambda: viewer.shared.state.choice == 1, "the next world")
    page.window.get_by_label("Side by side").click()
    wait_for(lambda: viewer.shared.state.comparing, "the comparison")
    _, columns = np.nonzero(red(page.settled()))
    assert np.ptp(columns) > 150, "there is a ball in both halves"


def test_an_object_can_be_hidden(page: Page, viewer: Viewer):
    page.tab("View")
    page.window.get_by_label("Show ball").click()
    wait_for(lambda: viewer.shared.state.shown == (True, False), "the choice")
    assert red(page.settled()).mean() < 0.001


def test_a_failing_render_is_told_and_the_viewer_lives_on(page: Page, viewer: Viewer, monkeypatch, capfd):
    def broken(*_):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr("osn_gs.viewer.server_view.draw", broken)
    page.session.draws_on_server = True
    page.session.refresh()
    page.window.get_by_text("no kernel image is available").first.wait_for()
    monkeypatch.undo()
    before = page.session.server_view.num_pictures
    page.session.refresh()
    wait_for(lambda: page.session.server_view.num_pictures > before, "a picture again")
    assert "no kernel image" in capfd.readouterr().err


def test_two_clients_share_what_they_change_until_one_goes_private(page: Page, window: Any, viewer: Viewer):
    other = Page(window, viewer, viewer.port)
    page.button("Next").click()
    wait_for(lambda: other.verdict("world") == "configuration_000", "the other client to follow")
    assert not np.allclose(other.session.client.camera.position, page.session.client.camera.position), "own cameras"
    other.tab("View")
    other.window.get_by_label("Share with everyone").click()
    wait_for(lambda: other.session.channel is not viewer.shared, "a state of its own")
    page.button("Next").click()
    wait_for(lambda: page.verdict("world") == "configuration_001", "the next world")
    other.tab("World")
    assert other.verdict("world") == "configuration_000"
    other.window.close()
    wait_for(lambda: len(viewer.sessions) == 1, "the client to be gone")


def test_screenshots_for_the_readme(window: Any, viewer: Viewer, request: pytest.FixtureRequest, tmp_path: Path):
    """One world as filmed and set by hand from the side; see `--screenshots` and `--screenshots-of`."""
    folder = request.config.getoption("--screenshots")
    run = request.config.getoption("--screenshots-of")
    server = viser.ViserServer(host="127.0.0.1", port=8790, verbose=False)
    viewed = viewer.viewed if run is None else viewed_run(open_run(run, Console()), torch.device("cpu"))
    shown = Viewer(server, viewed)
    page = Page(window, shown, server.get_port())
    if folder is not None:
        page.window.set_viewport_size({"width": 1240, "height": 800})  # more pixels take long
    page.window.get_by_text("Software WebGL").locator("xpath=ancestor::*[.//button][1]//button").first.click()
    page.tab("View")
    page.window.get_by_label("View from training camera").click()
    page.tab("World")
    pictures = [page.settled(60)]
    page.window.screenshot(path=(folder or tmp_path) / "viewer_as_filmed.png")
    page.session.follows_camera = False
    page.session.browser.shows_frustums = page.session.browser.shows_paths = True
    look_from_the_side(page)
    shown.shared.change(time_step=viewed.snapshot.num_frames // 2)
    page.button("Surprise me").click()
    pictures.append(page.settled(60))
    page.window.screenshot(path=(folder or tmp_path) / "viewer_from_the_side.png")
    page.window.close()
    shown.close()
    server.stop()
    assert all((picture.min(axis=2) < WHITE).mean() > 0.3 for picture in pictures)
    assert difference(*pictures) > 10
