"""Points of the background that are recognized by their SIFT features, and cameras placed by them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy.optimize import least_squares
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from osn_gs.preprocess.features import FRAME_GAPS, Features, detect_features, join_matches, match_descriptors
from osn_gs.preprocess.progress import Progress, no_progress
from osn_gs.preprocess.sfm.triangulation import triangulate

FEATURES = 3000  # an image
EPIPOLAR_ERROR = 2.0  # pixels a match may miss the line its camera poses leave it
POINT_ERROR = 1.5  # pixels: largest median reprojection error of a point
SMALLEST_ANGLE = 0.5  # degrees between a point's outermost rays; less and its depth is a guess

PLACE_ERROR = 3.0  # pixels: a match farther from its point's projection is taken for wrong
FINE_ERROR = 1.5  # pixels at which errors begin to be forgiven in the last refinement
GUIDED_RADIUS = 8.0  # pixels around a point's projection in which it is looked for again
FEWEST_MATCHES = 15  # points that must agree on a camera
RANSAC_ROUNDS = 5000
PLANE_TOLERANCE = 0.016  # of the image's width: how roughly a homography may fit a point


@dataclass(frozen=True)
class FeatureMap:
    """Points in the background's frame, each with a unit descriptor (mean of RootSIFT, Arandjelovic 2012)."""

    points: Float[np.ndarray, "n 3"]
    descriptors: Float[np.ndarray, "n 128"]


@dataclass(frozen=True)
class PlacedCamera:
    """A camera that `matches` points of the map agree on, to `error` pixels in the median."""

    cam_from_background: Float[np.ndarray, "4 4"]
    matches: int
    error: float


def intrinsics_at_middle(focal: float, height: int, width: int) -> Float[np.ndarray, "3 3"]:
    """A pinhole with its principal point in the middle of the image; `focal` in pixels, centres at +0.5."""
    return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])


def build_feature_map(
    images: UInt8[np.ndarray, "t h w 3"],
    usable: Bool[np.ndarray, "t h w"],
    cam_from_background: Float[np.ndarray, "t 4 4"],
    focal: float,
    progress: Progress = no_progress,
) -> FeatureMap:
    """Match features between frames under their known poses and triangulate them.

    Features lie where `usable`: on the background, away from its borders.
    """
    num_frames, height, width = usable.shape
    centre = np.array([width / 2, height / 2])
    pairs = [(t, t + gap) for gap in FRAME_GAPS for t in range(num_frames - gap)]
    total = num_frames + len(pairs)
    features = []
    for t in range(num_frames):
        features.append(detect_features(cv2.cvtColor(images[t], cv2.COLOR_RGB2GRAY), FEATURES, usable[t]))
        progress(t + 1, total)
    first_of_frame = np.cumsum([0, *(len(found.pixels) for found in features)])
    links = []
    for done, (a, b) in enumerate(pairs, start=num_frames + 1):
        matches = match_descriptors(features[a].descriptors, features[b].descriptors)
        b_from_a = cam_from_background[b] @ np.linalg.inv(cam_from_background[a])
        rays_a, rays_b = (_rays(features[t].pixels[matches[:, i]], focal, centre) for i, t in enumerate((a, b)))
        matches = matches[_epipolar_distances(rays_a, rays_b, b_from_a) * focal < EPIPOLAR_ERROR]
        links.append(matches + first_of_frame[[a, b]])
        progress(done, total)
    pixels, used, descriptors = _as_tracks(features, np.concatenate(links) if links else np.zeros((0, 2), int))
    points = triangulate(pixels, used, cam_from_background, focal, centre)
    kept = _well_triangulated(points, pixels, used, cam_from_background, focal, centre)
    return FeatureMap(points[kept], descriptors[kept])


def place_camera(image: UInt8[np.ndarray, "h w 3"], focal: float, feature_map: FeatureMap) -> PlacedCamera | None:
    """The camera of an image of the same background, by perspective-n-point RANSAC; None if too little agrees.

    What moves need not be masked: it matches no point of the background.
    """
    features = detect_features(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), FEATURES)
    matches = match_descriptors(features.descriptors, feature_map.descriptors)
    if len(matches) < FEWEST_MATCHES:
        return None
    intrinsics = intrinsics_at_middle(focal, *image.shape[:2])
    found, turn, shift, agreeing = cv2.solvePnPRansac(
        feature_map.points[matches[:, 1]],
        features.pixels[matches[:, 0]],  # continuous, as is the principal point
        intrinsics,
        None,
        iterationsCount=RANSAC_ROUNDS,
        reprojectionError=PLACE_ERROR,
        confidence=0.9999,
        flags=cv2.SOLVEPNP_AP3P,
    )
    if not found or agreeing is None or len(agreeing) < FEWEST_MATCHES:
        return None
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_rotvec(turn.ravel()).as_matrix(), shift.ravel()
    matches = matches[agreeing.ravel()]
    for _ in range(2):  # again with the points that the better camera finds
        pose = _refine(pose, feature_map.points[matches[:, 1]], features.pixels[matches[:, 0]], intrinsics)
        matches = _match_near_projections(features, feature_map, pose, intrinsics)
    projected = _project(pose, feature_map.points[matches[:, 1]], intrinsics)
    errors = np.linalg.norm(projected - features.pixels[matches[:, 0]], axis=1)
    agree = errors < PLACE_ERROR
    if agree.sum() < FEWEST_MATCHES:
        return None
    return PlacedCamera(pose, int(agree.sum()), float(np.median(errors[agree])))


def plane_homography(
    points: Float[np.ndarray, "n 3"],
    first: Float[np.ndarray, "4 4"],
    first_intrinsics: Float[np.ndarray, "3 3"],
    second: Float[np.ndarray, "4 4"],
    second_intrinsics: Float[np.ndarray, "3 3"],
) -> Float[np.ndarray, "3 3"]:
    """The homography from one camera's pixels to another's that fits most of the points of a background.

    Cameras are cam_from_background, the points in the background's frame. Without a common plane it is the cameras'
    turn alone.
    """
    cameras = ((first, first_intrinsics), (second, second_intrinsics))
    seen = np.all([_in_view(points, pose, intrinsics) for pose, intrinsics in cameras], axis=0)
    pixels = [_project(pose, points[seen], intrinsics) for pose, intrinsics in cameras]
    if seen.sum() >= FEWEST_MATCHES:
        homography, _ = cv2.findHomography(*pixels, cv2.RANSAC, PLANE_TOLERANCE * 2 * second_intrinsics[0, 2])
        if homography is not None:
            return homography
    turn = second[:3, :3] @ first[:3, :3].T
    return second_intrinsics @ turn @ np.linalg.inv(first_intrinsics)


def training_homographies(
    points: Float[np.ndarray, "n 3"],
    camera: Float[np.ndarray, "4 4"],
    intrinsics: Float[np.ndarray, "3 3"],
    training_cameras: Float[np.ndarray, "t 4 4"],
    training_intrinsics: Float[np.ndarray, "3 3"],
) -> Float[np.ndarray, "t 3 3"]:
    """`plane_homography` from a camera's pixels to those of every training camera."""
    return np.stack(
        [plane_homography(points, camera, intrinsics, training, training_intrinsics) for training in training_cameras]
    )


def _match_near_projections(
    features: Features, feature_map: FeatureMap, pose: Float[np.ndarray, "4 4"], intrinsics: Float[np.ndarray, "3 3"]
) -> Int[np.ndarray, "k 2"]:
    """Mutual nearest descriptors among features and points that a camera sees in the same place."""
    ahead = np.flatnonzero((feature_map.points @ pose[:3, :3].T + pose[:3, 3])[:, 2] > 0)
    projected = _project(pose, feature_map.points[ahead], intrinsics)
    near = cKDTree(features.pixels).sparse_distance_matrix(cKDTree(projected), GUIDED_RADIUS, output_type="coo_matrix")
    candidates = np.stack([near.row, ahead[near.col]], axis=1)
    likeness = (features.descriptors[candidates[:, 0]] * feature_map.descriptors[candidates[:, 1]]).sum(1)
    best = [_is_largest_of_group(likeness, candidates[:, side]) for side in (0, 1)]
    return candidates[best[0] & best[1]]


def _is_largest_of_group(values: Float[np.ndarray, "n"], groups: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """Whether a value is the largest among those of its group."""
    order = np.lexsort((values, groups))
    last = np.append(groups[order][1:] != groups[order][:-1], True)
    largest = np.zeros(len(values), bool)
    largest[order[last[: len(order)]]] = True
    return largest


def _rays(pixels: Float[np.ndarray, "n 2"], focal: float, centre: Float[np.ndarray, "2"]) -> Float[np.ndarray, "n 3"]:
    return np.concatenate([(pixels - centre) / focal, np.ones((len(pixels), 1))], axis=1)


def _epipolar_distances(
    rays_a: Float[np.ndarray, "n 3"], rays_b: Float[np.ndarray, "n 3"], b_from_a: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, "n"]:
    """Sampson distances of matches in the image plane at depth 1 (Hartley and Zisserman 2004, eq. 11.9)."""
    x, y, z = b_from_a[:3, 3]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ b_from_a[:3, :3]
    lines_b, lines_a = rays_a @ essential.T, rays_b @ essential
    slopes = (lines_b[:, :2] ** 2).sum(1) + (lines_a[:, :2] ** 2).sum(1)
    return np.abs((rays_b * lines_b).sum(1)) / np.sqrt(np.maximum(slopes, 1e-30))


def _as_tracks(
    features: list[Features], links: Int[np.ndarray, "k 2"]
) -> tuple[Float[np.ndarray, "n t 2"], Bool[np.ndarray, "n t"], Float[np.ndarray, "n 128"]]:
    """Where the features joined by links are, whether they are there, and their mean descriptors."""
    frames = np.repeat(np.arange(len(features)), [len(found.pixels) for found in features])
    members = join_matches(links, frames, len(features))
    rows, columns = np.nonzero(members >= 0)
    numbers = members[rows, columns]
    pixels = np.zeros((*members.shape, 2))
    pixels[rows, columns] = np.concatenate([found.pixels for found in features])[numbers]
    descriptors = np.zeros((len(members), 128), np.float32)
    np.add.at(descriptors, rows, np.concatenate([found.descriptors for found in features])[numbers])
    descriptors /= np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-9)
    return pixels, members >= 0, descriptors


def _well_triangulated(
    points: Float[np.ndarray, "n 3"],
    pixels: Float[np.ndarray, "n t 2"],
    used: Bool[np.ndarray, "n t"],
    cam_from_background: Float[np.ndarray, "t 4 4"],
    focal: float,
    centre: Float[np.ndarray, "2"],
) -> Bool[np.ndarray, "n"]:
    """Points before all their cameras, near their observations, and seen from directions that differ."""
    points_cam = np.einsum("tij,nj->nti", cam_from_background[:, :3, :3], points) + cam_from_background[:, :3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        misses = np.linalg.norm(focal * points_cam[..., :2] / points_cam[..., 2:] + centre - pixels, axis=-1)
    ahead = ((points_cam[..., 2] > 0) | ~used).all(1)
    near = np.nanmedian(np.where(used, misses, np.nan), axis=1) < POINT_ERROR if len(points) else np.zeros(0, bool)
    background_from_cam = cam_from_background[:, :3, :3].swapaxes(-1, -2)
    directions = np.einsum("tij,ntj->nti", background_from_cam, points_cam)
    directions /= np.maximum(np.linalg.norm(directions, axis=-1, keepdims=True), 1e-30)
    first, last = used.argmax(1), used.shape[1] - 1 - used[:, ::-1].argmax(1)
    rows = np.arange(len(points))
    cosine = (directions[rows, first] * directions[rows, last]).sum(-1)
    return ahead & near & (cosine < np.cos(np.deg2rad(SMALLEST_ANGLE)))


def _refine(
    pose: Float[np.ndarray, "4 4"],
    points: Float[np.ndarray, "n 3"],
    pixels: Float[np.ndarray, "n 2"],
    intrinsics: Float[np.ndarray, "3 3"],
) -> Float[np.ndarray, "4 4"]:
    """The camera near `pose` with the least reprojection errors, large ones forgiven (Cauchy)."""

    def moved(step: Float[np.ndarray, "6"]) -> Float[np.ndarray, "4 4"]:
        turned = np.eye(4)
        turned[:3, :3] = Rotation.from_rotvec(step[:3]).as_matrix() @ pose[:3, :3]
        turned[:3, 3] = pose[:3, 3] + step[3:]
        return turned

    def residuals(step: Float[np.ndarray, "6"]) -> Float[np.ndarray, "2n"]:
        return (_project(moved(step), points, intrinsics) - pixels).ravel()

    return moved(least_squares(residuals, np.zeros(6), loss="cauchy", f_scale=FINE_ERROR, x_scale="jac").x)


def _in_view(
    points: Float[np.ndarray, "n 3"], pose: Float[np.ndarray, "4 4"], intrinsics: Float[np.ndarray, "3 3"]
) -> Bool[np.ndarray, "n"]:
    """Points before a camera that fall into its image; the principal point is its middle."""
    points_cam = points @ pose[:3, :3].T + pose[:3, 3]
    half_view = intrinsics[:2, 2] / intrinsics[[0, 1], [0, 1]]
    return (np.abs(points_cam[:, :2]) < points_cam[:, 2:] * half_view).all(1)


def _project(
    pose: Float[np.ndarray, "4 4"], points: Float[np.ndarray, "n 3"], intrinsics: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "n 2"]:
    homogeneous = (points @ pose[:3, :3].T + pose[:3, 3]) @ intrinsics.T
    return homogeneous[:, :2] / homogeneous[:, 2:]
