"""A Chromium without a window or a GPU, and how long it takes to draw."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from osn_gs.errors import ConfigError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
SETTLE_SECONDS = 1.5  # without a change of the picture: splats fade in

# Every frame in which splats are drawn is read back once all of the page's own work for it is done: that waits for the
# software renderer, so a frame counts when its pixels exist. A key's time is the browser's own of the event, and its
# frame is the first whose sampled pixels are not those of the last frame before the key.
PROBE = """
(() => {
  const probe = window.probe = {frames: 0, changed: 0, key: null, drawn: null};
  const original = HTMLCanvasElement.prototype.getContext;
  HTMLCanvasElement.prototype.getContext = function (type, options) {
    return original.call(this, type, type === "webgl2" ? {...options, preserveDrawingBuffer: true} : options);
  };
  let pending = false, last = null, before = null;
  const read = (gl) => {
    pending = false;
    const [width, height] = [gl.drawingBufferWidth, gl.drawingBufferHeight];
    const pixels = new Uint8Array(4 * width * height);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
    const now = performance.now();
    probe.frames += 1;
    const differs = (other) => {
      if (other === null || other.length !== pixels.length) return true;
      for (let i = 0; i < pixels.length; i += 20) if (Math.abs(pixels[i] - other[i]) > 6) return true;
      return false;
    };
    if (differs(last)) probe.changed = now;
    if (probe.key !== null && probe.drawn === null && differs(before)) probe.drawn = now;
    last = pixels;
  };
  const draw = WebGL2RenderingContext.prototype.drawElementsInstanced;
  WebGL2RenderingContext.prototype.drawElementsInstanced = function (...values) {
    if (!pending) { pending = true; setTimeout(() => read(this), 0); }
    return draw.apply(this, values);
  };
  addEventListener("keydown", (event) => {
    before = last; probe.drawn = null; probe.key = event.timeStamp;
  }, true);
})();
"""


class KeyPress(NamedTuple):
    """Seconds since the epoch of a key press, and from it to the first frame that shows its effect."""

    pressed: float
    to_frame: float


class ProbedPage:
    """A page of the viewer whose frames are counted."""

    def __init__(self, window: Any) -> None:
        self._window = window

    def settle(self, timeout: float = 60.0) -> None:
        """Wait until the picture no longer changes; raises ConfigError where it never stands still."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            self._window.wait_for_timeout(200)
            frames, still = self._window.evaluate("[probe.frames, performance.now() - probe.changed]")
            if frames > 0 and still > 1000 * SETTLE_SECONDS:
                return
        raise ConfigError(f"the page showed no still picture within {timeout:g} s; try fewer --splats.")

    def press(self, slider: int, key: str) -> KeyPress:
        """Press a key on the slider with an index, and wait for the frame it leads to."""
        self._window.locator("[role=slider]").nth(slider).press(key)
        self._window.wait_for_function("probe.drawn !== null", timeout=30_000)
        origin, pressed, drawn = self._window.evaluate("[performance.timeOrigin, probe.key, probe.drawn]")
        return KeyPress((origin + pressed) / 1000, (drawn - pressed) / 1000)

    def frames_per_second(self, seconds: float) -> float:
        """Frames drawn while something keeps the picture moving."""
        first, start = self._window.evaluate("[probe.frames, performance.now()]")
        self._window.wait_for_timeout(1000 * seconds)
        last, end = self._window.evaluate("[probe.frames, performance.now()]")
        return 1000 * (last - first) / (end - start)


def missing_browser() -> str | None:
    """Why no browser can be measured here; None where one can."""
    if CHROMIUM is None:
        return "no Chromium was found; install chromium"
    try:
        import playwright.sync_api  # noqa: F401  only developers have it
    except ImportError:
        return 'playwright is missing; install it with pip install -e ".[dev]"'
    return None


@contextmanager
def probed_page(url: str, width: int, height: int) -> Iterator[ProbedPage]:
    """The viewer's page in a fresh browser, once its panel is there."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as profile, sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            headless=True,
            args=list(FLAGS),
            viewport={"width": width, "height": height},
        )
        try:
            context.add_init_script(PROBE)
            window = context.new_page()
            window.goto(f"{url}/?fixedDpr=1")
            window.wait_for_selector(".osn-verdict", timeout=60_000)
            yield ProbedPage(window)
        finally:
            context.close()
