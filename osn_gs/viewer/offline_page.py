"""One HTML file that shows a world moving, for a browser without a server and a colleague without the software."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

import viser

from osn_gs.viewer.snapshot import SceneSnapshot

LOOPBACK = "127.0.0.1"
PORT = 18_080  # where to look for a free port: nothing is served, viser records scenes of servers only


# Browsers start no module from a page that is a file. viser's client sorts the splats in a worker that is one, and says
# nothing where it does not start: splats are drawn in any order then. The worker needs nothing of a module but its
# address, which it has otherwise, too.
START_WORKERS_OF_FILES = """<script>
if (location.protocol === "file:") {
  const [PlainBlob, PlainWorker] = [Blob, Worker];
  const plain = (part) => (typeof part === "string" ? part.replaceAll("import.meta.url", "self.location.href") : part);
  window.Blob = class extends PlainBlob {
    constructor(parts, options) { super((parts || []).map(plain), options); }
  };
  window.Worker = class extends PlainWorker {
    constructor(address) { super(address); }
  };
}
</script>"""


def offline_page(
    title: str,
    snapshot: SceneSnapshot,
    object_scales: Sequence[float],
    shown: Sequence[bool],
    frames_per_second: float,
) -> str:
    """The page as text: splats once, then a pose for each object and frame, played in a loop by viser's client.

    Objects that bend are there once a frame, at 43 bytes a splat in the page's encoding.
    """
    server = viser.ViserServer(host=LOOPBACK, port=PORT, verbose=False)
    try:
        page = _record(server, snapshot, object_scales, shown, frames_per_second)
    finally:
        server.stop()
    named = f"<title>{html.escape(title)}</title>"
    page = re.sub(r"<title>.*?</title>", lambda _: named, page, count=1, flags=re.DOTALL)
    head = page.index("<head>") + len("<head>")
    return page[:head] + START_WORKERS_OF_FILES + page[head:]


def _record(
    server: viser.ViserServer,
    snapshot: SceneSnapshot,
    object_scales: Sequence[float],
    shown: Sequence[bool],
    frames_per_second: float,
) -> str:
    centre, rotation = snapshot.camera_centres[0], snapshot.cam_from_world[0, :3, :3].T
    server.scene.set_up_direction(tuple(snapshot.up))
    server.scene.world_axes.visible = False
    server.initial_camera.position = tuple(centre)
    server.initial_camera.look_at = tuple(centre + snapshot.distance * rotation[:, 2])
    server.initial_camera.up = tuple(snapshot.up)
    server.initial_camera.fov = snapshot.fov_y
    drawn = [k for k, is_shown in enumerate(shown) if is_shown]
    nodes = {
        k: server.scene.add_gaussian_splats(
            f"/objects/{k}",
            snapshot.objects[k].means,
            snapshot.objects[k].covariances,
            snapshot.objects[k].rgbs,
            snapshot.objects[k].opacities[:, None],
        )
        for k in drawn
    }
    serializer = server.get_scene_serializer()
    for time_step in range(snapshot.num_frames):
        for k, node in nodes.items():
            pose = snapshot.pose(k, object_scales[k], time_step)
            node.wxyz, node.position, node.scale = pose.wxyz, pose.position, float(pose.scale)
            node.visible = bool(snapshot.objects[k].visible[time_step])
            part = snapshot.objects[k]
            if part.bending is not None and node.visible:
                node.set_gaussians(*part.splats(time_step), part.rgbs, part.opacities[:, None])
        serializer.insert_sleep(1 / frames_per_second)
    return serializer.as_html()
