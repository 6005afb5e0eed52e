"""OSN-GS: every 3D scene that explains one monocular video.

Conventions inside the package (files in others are converted where they are read or written):
OpenCV camera axes (x right, y down, z forward), world-to-camera `viewmats`, wxyz quaternions,
batch dimensions first, pixel centres at +0.5, z-depth along the camera axis.
`scales` are Gaussian sizes; `object_scales` are the K scale factors of the objects.
"""

__version__ = "0.1.0"
