"""One HTML file that shows a world moving, for a browser without a server and a colleague without the software."""

from __future__ import annotations

from collections.abc import Sequence

import viser

from osn_gs.viewer.snapshot import SceneSnapshot

LOOPBACK = "127.0.0.1"
PORT = 18_080  # where to look for a free port: nothing is served, viser records scenes of servers only


def offline_page(
    snapshot: SceneSnapshot, object_scales: Sequence[float], shown: Sequence[bool], frames_per_second: float
) -> str:
    """The page as text: splats once, then a pose for each object and frame, played in a loop by viser's client."""
    server = viser.ViserServer(host=LOOPBACK, port=PORT, verbose=False)
    try:
        return _record(server, snapshot, object_scales, shown, frames_per_second)
    finally:
        server.stop()


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
        serializer.insert_sleep(1 / frames_per_second)
    return serializer.as_html()
