"""Frames: chosen and read from anything usual, seen through a pinhole whose principal point is in the middle."""

import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import Image

from osn_gs.errors import ConfigError, DatasetError
from osn_gs.preprocess.camera import LARGEST_PLAIN_ERROR, SourceCamera, fit_warp
from osn_gs.preprocess.camera_files import read_camera
from osn_gs.preprocess.frames import (
    FramesConfig,
    extract_frames,
    load_frames,
    read_frames,
    read_frames_record,
)
from osn_gs.preprocess.image_folder import read_picture

SIZE = (96, 64)  # width, height
RATE = 10.0  # frames per second


def texture(seed=0, size=SIZE):
    """Blobs some pixels wide: survives compression, shows blur."""
    noise = np.random.default_rng(seed).normal(size=(size[1], size[0], 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), 1.5)
    return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def moving_pictures(count=12, size=SIZE):
    """A camera that passes a texture, two pixels a frame."""
    wide = texture(size=(size[0] + 2 * count, size[1]))
    return [np.ascontiguousarray(wide[:, 2 * i : 2 * i + size[0]]) for i in range(count)]


def write_folder(folder, pictures, name="{:02d}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / name.format(number))
    return folder


def write_numbered_video(path, count=30, size=SIZE, codec="mp4v"):
    """A video whose frame i is grey of value 8 i, with a white left edge."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), RATE, size)
    assert writer.isOpened()
    for number in range(count):
        frame = np.full((size[1], size[0], 3), 8 * number, dtype=np.uint8)
        frame[:, :8] = 255
        writer.write(frame)
    writer.release()
    return path


def write_uncompressed_video(path, pixel_aspect, count=4):
    """A YUV4MPEG2 video, whose header is plain text, of one grey."""
    header = f"YUV4MPEG2 W{SIZE[0]} H{SIZE[1]} F10:1 Ip A{pixel_aspect} C420jpeg\n".encode()
    frame = b"FRAME\n" + bytes([128]) * (SIZE[0] * SIZE[1] * 3 // 2)
    path.write_bytes(header + count * frame)
    return path


def numbers_in(images):
    """Which frames of a numbered video these are."""
    return [round(float(image[16:-16, 24:-24].mean()) / 8) for image in images]


def prepared(scene, **options):
    advice = extract_frames(scene, scene, FramesConfig(**options))
    return read_frames(scene), read_frames_record(scene), advice


# The view


LENSES = {
    "pinhole off its middle": SourceCamera("PINHOLE", (640, 480), (500.0, 500.0, 290.0, 260.0)),
    "pixels not square": SourceCamera("PINHOLE", (640, 480), (500.0, 530.0, 320.0, 240.0)),
    "barrel": SourceCamera("OPENCV", (640, 480), (500.0, 505.0, 310.0, 244.0, -0.2, 0.05, 0.001, -0.001)),
    "pincushion": SourceCamera("SIMPLE_RADIAL", (640, 480), (500.0, 330.0, 235.0, 0.15)),
    "fisheye": SourceCamera("OPENCV_FISHEYE", (640, 480), (330.0, 330.0, 320.0, 240.0, 0.01, 0.0, 0.0, 0.0)),
}


@pytest.mark.parametrize("longest_side", [None, 400])
@pytest.mark.parametrize("lens", LENSES)
def test_a_point_is_seen_where_a_centred_pinhole_sees_it(lens, longest_side):
    camera = LENSES[lens]
    warp = fit_warp(camera.size, camera, longest_side)
    width, height = warp.size
    focal = camera.focal * warp.scale
    assert longest_side is None or max(warp.size) == longest_side
    for x, y in [(0.0, 0.0), (0.8, 0.8), (-0.8, 0.7), (0.7, -0.8), (-0.85, -0.1)]:
        expected = np.array([0.5 * width * (1 + x), 0.5 * height * (1 + y)])
        ray = np.array([(expected[0] - 0.5 * width) / focal, (expected[1] - 0.5 * height) / focal, 1.0])
        source = camera.colmap().img_from_cam(ray)
        rows, columns = np.mgrid[: camera.size[1], : camera.size[0]] + 0.5
        spot = 255 * np.exp(-((columns - source[0]) ** 2 + (rows - source[1]) ** 2) / (2 * 3.0**2))
        frame = warp.image(np.repeat(np.rint(spot).astype(np.uint8)[..., None], 3, axis=2))[..., 0].astype(float)
        rows, columns = np.mgrid[:height, :width] + 0.5
        found = np.array([(columns * frame).sum(), (rows * frame).sum()]) / frame.sum()
        # A plain lens is only cropped, which may leave a quarter of a pixel; a spot on a bent lens is not quite round.
        np.testing.assert_allclose(found, expected, atol=LARGEST_PLAIN_ERROR + 0.25)


@pytest.mark.parametrize("lens", LENSES)
def test_frames_have_no_pixels_from_beside_the_image_and_cannot_be_larger(lens):
    camera = LENSES[lens]
    warp = fit_warp(camera.size, camera, None)
    source_width, source_height = camera.size

    def looks_inside(width, height):
        x, y = np.meshgrid(np.linspace(-0.5, 0.5, 41) * width, np.linspace(-0.5, 0.5, 41) * height)
        rays = np.column_stack([x.ravel(), y.ravel(), np.full(x.size, camera.focal)])
        found = camera.colmap().img_from_cam(rays)
        return (found > -0.3).all() and (found < np.array([source_width, source_height]) + 0.3).all()

    width, height = warp.size
    assert looks_inside(width, height)
    assert not looks_inside(width + 8, height)
    assert not looks_inside(width, height + 8)


@pytest.mark.parametrize("longest_side", [None, 301])
@pytest.mark.parametrize("lens", [None, *LENSES])
def test_ids_stay_on_what_they_mark(lens, longest_side):
    rows, columns = np.mgrid[:480, :640]
    ids = ((columns - 250) ** 2 + (rows - 200) ** 2 < 90**2).astype(np.uint8) * 3
    warp = fit_warp((640, 480), LENSES.get(lens), longest_side)
    seen = warp.image(np.repeat(85 * ids[..., None], 3, axis=2))[..., 0] > 127
    warped = warp.ids(ids)
    assert set(np.unique(warped)) == {0, 3}
    both, either = (seen & (warped == 3)).sum(), (seen | (warped == 3)).sum()
    assert both / either > 0.985
    for a, b in zip(np.nonzero(seen), np.nonzero(warped), strict=True):
        assert abs(a.mean() - b.mean()) < 0.2


def test_without_a_camera_and_a_size_images_stay_as_they_are(tmp_path):
    pictures = moving_pictures(4)
    images, record, _ = prepared(tmp_path / "scene", images=write_folder(tmp_path / "in", pictures))
    np.testing.assert_array_equal(images, pictures)
    np.testing.assert_array_equal(record.warp_image(pictures[1]), pictures[1])


def test_frames_are_made_smaller_by_area_and_never_larger(tmp_path):
    folder = write_folder(tmp_path / "in", moving_pictures(3, (256, 128)))
    images, record, _ = prepared(tmp_path / "small", images=folder, longest_side=64, focal=300.0)
    blocks = read_picture(folder / "00.png").reshape(32, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(images[0] - blocks).max() <= 1
    assert record.focal == pytest.approx(300 / 4)
    assert prepared(tmp_path / "large", images=folder, longest_side=4000)[0].shape == (3, 128, 256, 3)


# Focal lengths and cameras


def test_exif_gives_a_focal_length_in_frame_pixels(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 50  # millimetres for 36 x 24 of film
    for number, picture in enumerate(moving_pictures(3, (300, 200))):
        Image.fromarray(picture).save(tmp_path / f"{number}.jpg", exif=exif)
    _, record = load_frames(FramesConfig(images=tmp_path, longest_side=150))
    assert record.focal_source == "EXIF"
    assert record.focal == pytest.approx(50 / 36 * 150, rel=1e-6)
    _, record = load_frames(FramesConfig(images=tmp_path, focal=444.0))
    assert (record.focal, record.focal_source) == (444.0, "given")


@pytest.mark.parametrize("millimetres", [0, 5])
def test_exif_of_an_unknown_or_panorama_lens_gives_none(tmp_path, millimetres):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = millimetres
    for number, picture in enumerate(moving_pictures(3)):
        Image.fromarray(picture).save(tmp_path / f"{number}.jpg", exif=exif)
    _, record = load_frames(FramesConfig(images=tmp_path))
    assert (record.focal, record.focal_source) == (None, None)


def test_a_zoomed_clip_is_told(tmp_path):
    for number, picture in enumerate(moving_pictures(3, (300, 200))):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0xA405] = 26 + 10 * number
        Image.fromarray(picture).save(tmp_path / f"{number}.jpg", exif=exif)
    assert any("zoomed" in line for line in extract_frames(tmp_path, tmp_path / "out", FramesConfig(images=tmp_path)))


def test_a_camera_file_crops_about_its_principal_point(tmp_path):
    folder = write_folder(tmp_path / "in", moving_pictures(3, (124, 38)))
    camera = tmp_path / "camera.json"
    camera.write_text(json.dumps({"fl_x": 72.0, "cx": 61.0, "cy": 17.0, "w": 124, "h": 38}))
    images, record, _ = prepared(tmp_path / "scene", images=folder, camera=camera)
    np.testing.assert_array_equal(images[0], read_picture(folder / "00.png")[0:34, 0:122])
    assert (record.focal, record.focal_source, record.size) == (72.0, "camera file", (122, 34))


def test_cameras_of_nerfstudio_and_colmap_agree_at_any_size(tmp_path):
    lens = dict(fl_x=500.0, fl_y=510.0, cx=318.0, cy=244.0, k1=-0.1, k2=0.02, p1=0.001, p2=-0.002)
    json_file = tmp_path / "transforms.json"
    json_file.write_text(json.dumps({**lens, "w": 640, "h": 480, "camera_model": "OPENCV", "frames": []}))
    per_frame = tmp_path / "per_frame.json"
    per_frame.write_text(json.dumps({"frames": [{**lens, "w": 640, "h": 480}] * 2}))
    model = pycolmap.Reconstruction()
    model.add_camera(pycolmap.Camera(camera_id=1, model="OPENCV", width=640, height=480, params=list(lens.values())))
    (tmp_path / "model" / "sparse" / "0").mkdir(parents=True)
    model.write(str(tmp_path / "model" / "sparse" / "0"))
    rays = np.array([[0.1, 0.2, 1.0], [-0.5, 0.3, 1.0], [0.0, 0.0, 1.0]])
    full = pycolmap.Camera(model="OPENCV", width=640, height=480, params=list(lens.values())).img_from_cam(rays)
    for path in (json_file, per_frame, tmp_path / "model"):
        np.testing.assert_allclose(read_camera(path, (640, 480)).colmap().img_from_cam(rays), full, atol=1e-9)
        np.testing.assert_allclose(read_camera(path, (320, 240)).colmap().img_from_cam(rays), full / 2, atol=1e-9)


def test_a_field_of_view_is_a_focal_length_too(tmp_path):
    (tmp_path / "camera.json").write_text(json.dumps({"camera_angle_x": math.radians(90)}))
    assert read_camera(tmp_path / "camera.json", (640, 480)).focal == pytest.approx(320)


# Videos


def test_a_time_range_and_every_nth_frame_of_a_video(tmp_path):
    video = write_numbered_video(tmp_path / "clip.mp4")
    images, record, _ = prepared(tmp_path / "scene", video=video, start=0.5, end=1.45, every=3)
    assert [frame.index for frame in record.frames] == [5, 8, 11, 14]
    assert [frame.time for frame in record.frames] == pytest.approx([0.5, 0.8, 1.1, 1.4])
    assert numbers_in(images) == [5, 8, 11, 14]
    assert {frame.name for frame in record.frames} == {""}


def test_at_most_n_frames_are_spread_from_first_to_last(tmp_path):
    video = write_numbered_video(tmp_path / "clip.mp4")
    images, record = load_frames(FramesConfig(video=video, max_frames=4))
    assert numbers_in(images) == [frame.index for frame in record.frames]
    assert record.frames[0].index == 0
    assert record.frames[-1].index == 29
    assert set(np.diff([frame.index for frame in record.frames])) <= {9, 10}


def test_a_video_is_turned_as_it_says(tmp_path):
    video = write_numbered_video(tmp_path / "clip.mp4")
    upright = load_frames(FramesConfig(video=video))[0][0]
    data = bytearray(video.read_bytes())
    matrix = data.index(b"tkhd") + 44  # ISO 14496-12: 16.16 fixed point, here a quarter turn
    one = 0x10000
    assert struct.unpack_from(">9i", data, matrix) == (one, 0, 0, 0, one, 0, 0, 0, 0x40000000)
    struct.pack_into(">9i", data, matrix, 0, one, 0, -one, 0, 0, SIZE[1] * one, 0, 0x40000000)
    turned_file = tmp_path / "turned.mp4"
    turned_file.write_bytes(data)
    turned, record = load_frames(FramesConfig(video=turned_file))
    assert record.source_size == (SIZE[1], SIZE[0])
    np.testing.assert_array_equal(turned[0], np.rot90(upright, -1))


def test_frames_that_a_video_lost_are_told(tmp_path):
    """The index of an AVI is at its begin, so a download that broke off can still be opened."""
    video = write_numbered_video(tmp_path / "clip.avi", count=20, codec="MJPG")
    assert prepared(tmp_path / "whole", video=video)[2] == ()
    frames = video.read_bytes().split(b"00dc")
    video.write_bytes(b"00dc".join(frames[:13]))  # the header and twelve frames
    images, _, (advice,) = prepared(tmp_path / "cut", video=video)
    assert numbers_in(images) == list(range(len(images)))
    assert 10 <= len(images) <= 12
    assert advice.startswith(f"The last {20 - len(images)} frames that the video says it has cannot be decoded")
    assert prepared(tmp_path / "range", video=video, end=0.55)[2] == ()  # what is asked for is there


def test_pixels_that_are_square_or_of_unknown_shape_are_taken_as_they_are(tmp_path):
    for name, aspect in (("square.y4m", "1:1"), ("unknown.y4m", "0:0")):
        images, _ = load_frames(FramesConfig(video=write_uncompressed_video(tmp_path / name, aspect)))
        assert images.shape == (4, *SIZE[::-1], 3)


# Image folders


def test_images_come_in_the_order_of_their_numbers(tmp_path):
    pictures = moving_pictures(12)
    images, record = load_frames(FramesConfig(images=write_folder(tmp_path, pictures, "view{}.png")))
    np.testing.assert_array_equal(images, pictures)
    assert [frame.name for frame in record.frames] == [f"view{i}.png" for i in range(12)]
    assert [frame.index for frame in record.frames] == list(range(12))


def deep(picture):
    return picture.astype(np.uint16) * 257


WRITERS = {
    "indexed.png": lambda path, picture: Image.fromarray(picture).quantize(256).save(path),
    "grey.png": lambda path, picture: Image.fromarray(picture[..., 0]).save(path),
    "grey16.png": lambda path, picture: cv2.imwrite(str(path), deep(picture[..., 0])),
    "rgb16.png": lambda path, picture: cv2.imwrite(str(path), deep(picture[..., ::-1])),
    "grey16.tif": lambda path, picture: cv2.imwrite(str(path), deep(picture[..., 0])),
    "rgb16.tif": lambda path, picture: cv2.imwrite(str(path), deep(picture[..., ::-1])),
    "lossless.webp": lambda path, picture: Image.fromarray(picture).save(path, lossless=True),
    "upper.PNG": lambda path, picture: Image.fromarray(picture).save(path),
    "alpha.png": lambda path, picture: Image.fromarray(np.dstack([picture, np.full(SIZE[::-1], 255, np.uint8)])).save(
        path
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_usual_kind_of_image_reads_as_8_bit_rgb(name, tmp_path):
    picture = texture() // 64 * 64  # few enough colours for a palette
    if name.startswith("grey"):
        picture = np.repeat(picture[..., :1], 3, axis=2)
    WRITERS[name](tmp_path / name, picture)
    read = read_picture(tmp_path / name)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, picture)


def test_transparent_pixels_are_black(tmp_path):
    alpha = np.full(SIZE[::-1], 255, np.uint8)
    alpha[:, :10] = 0
    Image.fromarray(np.dstack([np.full((*SIZE[::-1], 3), 200, np.uint8), alpha])).save(tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png")
    assert (read[:, :10] == 0).all()
    assert (read[:, 10:] == 200).all()


def test_images_are_turned_upright_by_exif(tmp_path):
    picture = texture()
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right side
    Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), np.rot90(picture, -1))


# What is said of a clip


def blur_along_rows(picture, length):
    kernel = np.zeros((length, length), np.float32)
    kernel[length // 2] = 1 / length
    return cv2.filter2D(picture, -1, kernel)


def test_blurred_frames_are_named_and_others_are_not(tmp_path):
    pictures = moving_pictures()
    for number in (4, 9):
        pictures[number] = blur_along_rows(pictures[number], 9)
    advice = extract_frames(tmp_path, tmp_path / "out", FramesConfig(images=write_folder(tmp_path, pictures)))
    assert len(advice) == 1
    assert advice[0].startswith("Frames 4, 9 (source 04.png, 09.png) are blurred")
    assert extract_frames(tmp_path, tmp_path / "three", FramesConfig(images=tmp_path, every=5, max_frames=3)) == ()


def test_frames_shown_twice_are_named_even_after_compression(tmp_path):
    pictures = moving_pictures(6)
    pictures.insert(3, pictures[2])
    folder = tmp_path / "in"
    folder.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number}.jpg", quality=95 if number == 3 else 90)
    advice = extract_frames(tmp_path, tmp_path / "out", FramesConfig(images=folder))
    assert len(advice) == 1
    assert advice[0].startswith("Frame 3 (source 3.jpg) is the same picture as the frame before")


def test_large_frames_and_a_crop_that_loses_much_are_told(tmp_path):
    folder = write_folder(tmp_path / "in", moving_pictures(3, (1400, 40)))
    camera = tmp_path / "camera.json"
    camera.write_text('{"fl_x": 1400, "cx": 450}')
    (large,) = extract_frames(tmp_path, tmp_path / "large", FramesConfig(images=folder))
    assert large.startswith("Frames of 1400x40 pixels")
    (lost,) = extract_frames(tmp_path, tmp_path / "lost", FramesConfig(images=folder, camera=camera))
    assert lost.startswith("Only 64% of the 1400x40 source pixels")


def test_an_object_that_moves_a_little_is_no_repetition(tmp_path):
    background, thing = texture(), texture(1)[:16, :16]
    pictures = []
    for number in range(5):
        pictures.append(background.copy())
        pictures[-1][20:36, 30 + number : 46 + number] = thing
    assert extract_frames(tmp_path, tmp_path / "out", FramesConfig(images=write_folder(tmp_path, pictures))) == ()


# Files


def test_a_record_reads_back_and_the_same_input_gives_the_same_bytes(tmp_path):
    folder = write_folder(tmp_path / "in", moving_pictures(size=(640, 480)))
    camera = tmp_path / "camera.json"
    camera.write_text(json.dumps({"fl_x": 500.0, "k1": -0.1}))
    config = FramesConfig(images=folder, camera=camera, longest_side=200, every=2)
    contents = []
    for name in ("a", "b"):
        extract_frames(tmp_path / name, tmp_path / name, config)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert {Path("prepare/frames.json"), Path("prepare/frames.png"), Path("images_train/0005.png")} <= set(contents[0])
    images, record = load_frames(config)
    assert read_frames_record(tmp_path / "a") == record
    np.testing.assert_array_equal(read_frames(tmp_path / "a"), images)


def test_progress_is_told_to_the_end(tmp_path):
    told = []
    load_frames(FramesConfig(images=write_folder(tmp_path, moving_pictures(5))), lambda *pair: told.append(pair))
    assert told == [(done, 5) for done in range(1, 6)]


# Bad input


def text_file(folder):
    (folder / "clip.mp4").write_text("this is no video\n" * 100)
    return dict(video=folder / "clip.mp4")


def cut_video(folder):
    data = write_numbered_video(folder / "clip.mp4").read_bytes()
    (folder / "clip.mp4").write_bytes(data[: len(data) // 2])
    return dict(video=folder / "clip.mp4")


def range_outside(folder):
    return dict(video=write_numbered_video(folder / "clip.mp4"), start=20.0, end=30.0)


def start_behind(folder):
    return dict(video=write_numbered_video(folder / "clip.mp4"), start=20.0)


def stretched_pixels(folder):
    return dict(video=write_uncompressed_video(folder / "clip.y4m", "4:3"))


def two_frames_in_range(folder):
    return dict(video=write_numbered_video(folder / "clip.mp4"), start=0.55, end=0.75)


def folder_of_texts(folder):
    (folder / "notes.txt").write_text("x")
    return dict(images=folder)


def other_sizes(folder):
    pictures = moving_pictures(4)
    pictures[2] = pictures[2][:, :-2]
    return dict(images=write_folder(folder, pictures))


def two_images(folder):
    return dict(images=write_folder(folder, moving_pictures(2)))


def cut_image(folder):
    write_folder(folder, moving_pictures(4), "{}.jpg")
    (folder / "3.jpg").write_bytes((folder / "3.jpg").read_bytes()[:900])
    return dict(images=folder)


def empty_image(folder):
    write_folder(folder, moving_pictures(4))
    (folder / "02.png").write_bytes(b"")
    return dict(images=folder)


def with_camera(text):
    def make(folder):
        (folder / "camera.json").write_text(text)
        return dict(images=write_folder(folder / "in", moving_pictures(3)), camera=folder / "camera.json")

    return make


BAD_CLIPS = {
    "nothing given": (lambda folder: {}, ConfigError, "--video FILE"),
    "a text file called .mp4": (text_file, DatasetError, "cannot be opened as a video"),
    "a video cut short": (cut_video, DatasetError, "cut short"),
    "no such video": (lambda folder: dict(video=folder / "no.mp4"), DatasetError, "no such file"),
    "a folder for a video": (lambda folder: dict(video=folder), DatasetError, "--images"),
    "an image for a video": (
        lambda folder: dict(video=write_folder(folder, moving_pictures(1)) / "00.png"),
        DatasetError,
        "--images",
    ),
    "a time range outside": (range_outside, ConfigError, "from 0 to 2.9 s"),
    "a start behind the end": (
        start_behind,
        ConfigError,
        "no frame from 20 s on; the video's frames are from 0 to 2.9",
    ),
    "pixels that are not square": (stretched_pixels, DatasetError, "its pixels are 4:3, not square"),
    "two frames in range": (two_frames_in_range, DatasetError, "2 of 2 frames"),
    "no such folder": (lambda folder: dict(images=folder / "no"), DatasetError, "no such folder"),
    "a video for a folder": (
        lambda folder: dict(images=write_numbered_video(folder / "clip.mp4")),
        DatasetError,
        "--video",
    ),
    "an empty folder": (lambda folder: dict(images=folder), DatasetError, "no files at all"),
    "a folder of texts": (folder_of_texts, DatasetError, "1 .txt"),
    "images of other sizes": (other_sizes, DatasetError, "02.png: is 94x64 pixels but"),
    "two images": (two_images, DatasetError, "2 of 2 frames"),
    "an image cut short": (cut_image, DatasetError, "3.jpg: cannot be read"),
    "an empty image": (empty_image, DatasetError, "02.png: cannot be read"),
    "millimetres": (
        lambda folder: dict(images=write_folder(folder, moving_pictures(3)), focal=5.0),
        ConfigError,
        "millimetres",
    ),
    "no camera file": (
        lambda folder: dict(images=write_folder(folder, moving_pictures(3)), camera=folder / "no.json"),
        ConfigError,
        "no such file or folder",
    ),
    "a folder without a camera": (
        lambda folder: dict(images=write_folder(folder, moving_pictures(3)), camera=folder),
        ConfigError,
        "no COLMAP model",
    ),
    "a camera of other images": (
        with_camera('{"fl_x": 80, "w": 64, "h": 96}'),
        ConfigError,
        "64x96 but they are 96x64",
    ),
    "a camera without focal": (with_camera('{"cx": 48}'), ConfigError, "`fl_x`"),
    "a camera that is no JSON": (with_camera("fl_x: 80"), ConfigError, "not valid JSON"),
    "a camera with text in it": (with_camera('{"fl_x": "80"}'), ConfigError, "expected a number"),
    "two cameras": (
        with_camera('{"frames": [{"fl_x": 80}, {"fl_x": 90}]}'),
        ConfigError,
        "80 for one frame and 90 for another",
    ),
    "an unknown lens": (with_camera('{"fl_x": 80, "camera_model": "MIRROR"}'), ConfigError, "MIRROR"),
    "a principal point at the border": (with_camera('{"fl_x": 80, "cx": 2}'), ConfigError, "principal point"),
}


@pytest.mark.parametrize("case", BAD_CLIPS)
def test_bad_input_is_told_in_one_line(case, tmp_path):
    make, error, expected = BAD_CLIPS[case]
    options = make(tmp_path)
    with pytest.raises(error) as caught:
        extract_frames(tmp_path / "scene", tmp_path / "scene", FramesConfig(**options))
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message


def test_libraries_add_nothing_to_our_line_about_a_bad_video(tmp_path):
    """In a process of its own: OpenCV settles at its first video how much its decoder says."""
    path = str(text_file(tmp_path)["video"])
    code = (
        "from pathlib import Path\n"
        "from osn_gs.preprocess.frames import FramesConfig, open_clip\n"
        "try:\n"
        f"    open_clip(FramesConfig(video=Path({path!r})))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("DatasetError\n", "")


@pytest.mark.parametrize(
    "options",
    [
        dict(video=Path("a.mp4"), images=Path("b")),
        dict(focal=500.0, camera=Path("c.json")),
        dict(images=Path("b"), start=1.0),
        dict(video=Path("a.mp4"), start=2.0, end=1.0),
        dict(video=Path("a.mp4"), start=-1.0),
        dict(every=0),
        dict(max_frames=2),
        dict(longest_side=0),
        dict(focal=0.0),
        dict(focal=math.nan),
    ],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigError, match=r"expected|use"):
        FramesConfig(**options)


def test_a_scene_without_or_with_a_broken_record_says_so(tmp_path):
    with pytest.raises(DatasetError, match="run the frames step first"):
        read_frames_record(tmp_path)
    images = write_folder(tmp_path / "in", moving_pictures(3))
    extract_frames(tmp_path, tmp_path, FramesConfig(images=images))
    (tmp_path / "images_train" / "0001.png").unlink()
    with pytest.raises(DatasetError, match="0001"):
        read_frames(tmp_path)
    content = json.loads((tmp_path / "prepare" / "frames.json").read_text())
    del content["warp"]["crop"]
    (tmp_path / "prepare" / "frames.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="run that step again"):
        read_frames_record(tmp_path)
