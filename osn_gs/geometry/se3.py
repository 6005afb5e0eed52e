"""Rigid and similarity transforms: rotations, quaternions (wxyz) and 4x4 matrices."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

SAME_DIRECTION = 1e-4  # radians


def quat_to_rotmat(quats: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrices of wxyz quaternions of any non-zero length."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = (
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
    )
    return torch.stack(rows, dim=-2)


def rotmat_to_quat(rotmats: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit wxyz quaternions with w >= 0 of rotation matrices.

    Of the four ways to divide by one component, takes the one whose component is largest (Shepperd 1978).
    """
    m00, m11, m22 = rotmats[..., 0, 0], rotmats[..., 1, 1], rotmats[..., 2, 2]
    trace = m00 + m11 + m22
    squares = torch.stack([1 + trace, 1 + 2 * m00 - trace, 1 + 2 * m11 - trace, 1 + 2 * m22 - trace], -1)
    d21 = rotmats[..., 2, 1] - rotmats[..., 1, 2]
    d02 = rotmats[..., 0, 2] - rotmats[..., 2, 0]
    d10 = rotmats[..., 1, 0] - rotmats[..., 0, 1]
    s01 = rotmats[..., 0, 1] + rotmats[..., 1, 0]
    s02 = rotmats[..., 0, 2] + rotmats[..., 2, 0]
    s12 = rotmats[..., 1, 2] + rotmats[..., 2, 1]
    candidates = torch.stack(
        [
            torch.stack([squares[..., 0], d21, d02, d10], -1),
            torch.stack([d21, squares[..., 1], s01, s02], -1),
            torch.stack([d02, s01, squares[..., 2], s12], -1),
            torch.stack([d10, s02, s12, squares[..., 3]], -1),
        ],
        dim=-2,
    )
    best = squares.argmax(-1)[..., None, None].expand(*squares.shape[:-1], 1, 4)
    quats = torch.nn.functional.normalize(candidates.gather(-2, best).squeeze(-2), dim=-1)
    return torch.where(quats[..., :1] < 0, -quats, quats)


def slerp(start: Float[Tensor, "*batch 4"], end: Float[Tensor, "*batch 4"], share: float) -> Float[Tensor, "*batch 4"]:
    """Unit wxyz quaternions on the shorter way from `start` (share 0) to `end` (1) at even speed (Shoemake 1985)."""
    cosine = (start * end).sum(dim=-1, keepdim=True)
    end = torch.where(cosine < 0, -end, end)
    angle = cosine.abs().clamp(max=1).acos()
    even = angle < SAME_DIRECTION  # the sines vanish, the straight way is as good
    sine = torch.where(even, 1.0, angle.sin())
    before = torch.where(even, 1 - share, ((1 - share) * angle).sin() / sine)
    after = torch.where(even, share, (share * angle).sin() / sine)
    return torch.nn.functional.normalize(before * start + after * end, dim=-1)


def quat_multiply(a: Float[Tensor, "*batch 4"], b: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """Hamilton product: the rotation `b` followed by the rotation `a`."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        dim=-1,
    )


def rigid_matrix(
    rotmats: Float[Tensor, "*batch 3 3"], translations: Float[Tensor, "*batch 3"]
) -> Float[Tensor, "*batch 4 4"]:
    """4x4 matrices [R t; 0 1]."""
    matrix = torch.zeros(*rotmats.shape[:-2], 4, 4, dtype=rotmats.dtype, device=rotmats.device)
    matrix[..., :3, :3] = rotmats
    matrix[..., :3, 3] = translations
    matrix[..., 3, 3] = 1
    return matrix


def invert_rigid(matrix: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Inverse of rigid 4x4 transforms."""
    rotmats = matrix[..., :3, :3].transpose(-1, -2)
    return rigid_matrix(rotmats, -(rotmats @ matrix[..., :3, 3:]).squeeze(-1))


def transform_points(
    matrix: Float[Tensor, "*batch 4 4"], points: Float[Tensor, "*batch n 3"]
) -> Float[Tensor, "*batch n 3"]:
    """Points under affine 4x4 transforms."""
    return points @ matrix[..., :3, :3].transpose(-1, -2) + matrix[..., None, :3, 3]


def opengl_to_opencv(world_from_cam: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """Turn the camera axes of camera-to-world poses: x right, y up, z backward <-> x right, y down, z forward.

    The map is its own inverse. The world axes stay as they are.
    """
    flip = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=world_from_cam.dtype, device=world_from_cam.device)
    return world_from_cam * flip
