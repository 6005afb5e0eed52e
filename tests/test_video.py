"""A video holds the pictures it was made of, for readers we did not write, or it is not there at all."""

import av
import cv2
import numpy as np
import pytest
import torch

from osn_gs.errors import OsnGsError
from osn_gs.export.video import write_video

COLORS = [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (40, 110, 9)]
COLOR_TOLERANCE = 4  # grey levels: 8-bit limited-range YUV and x264 at crf 18


def counting_pictures(num_pictures: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Grey pictures, each 10 levels brighter than the one before."""
    return [np.full((height, width, 3), 20 + 10 * index, dtype=np.uint8) for index in range(num_pictures)]


def color_chart() -> np.ndarray:
    """A ramp of all greys over patches of saturated colours."""
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (32, 256, 3))
    patches = np.concatenate([np.full((32, 32, 3), color, dtype=np.uint8) for color in COLORS], axis=1)
    return np.concatenate([ramp, patches])


def read_with_opencv(path) -> tuple[np.ndarray, float]:
    """RGB pictures [n, h, w, 3] and the frame rate."""
    video = cv2.VideoCapture(str(path))
    pictures = []
    while True:
        decoded, picture = video.read()
        if not decoded:
            break
        pictures.append(picture[..., ::-1])
    rate = video.get(cv2.CAP_PROP_FPS)
    video.release()
    return np.stack(pictures), rate


def read_with_av(path) -> tuple[np.ndarray, float]:
    # Stated, as releases of PyAV before 17 do not heed the file's; that it states the same is a test of its own.
    colors = {"src_colorspace": "ITU709", "src_color_range": "MPEG", "dst_color_range": "JPEG"}
    with av.open(str(path)) as container:
        frames = container.decode(video=0)
        pictures = [frame.reformat(format="rgb24", **colors).to_ndarray() for frame in frames]
        return np.stack(pictures), float(container.streams.video[0].average_rate)


READERS = pytest.mark.parametrize("read", [read_with_opencv, read_with_av])


@READERS
@pytest.mark.parametrize("fps", [10, 29.97, 24000 / 1001])
def test_every_picture_is_there_in_order_at_its_rate(tmp_path, read, fps):
    path = tmp_path / "new" / "fly.mp4"
    pictures = counting_pictures(20)
    write_video(path, iter(pictures), fps)
    seen, rate = read(path)
    assert seen.shape == (20, 48, 64, 3)
    assert rate == pytest.approx(fps, rel=1e-6)
    assert np.abs(seen.astype(int) - np.stack(pictures)).max() <= COLOR_TOLERANCE


@READERS
def test_colours_come_back(tmp_path, read):
    chart = color_chart()
    write_video(tmp_path / "chart.mp4", [chart] * 3, fps=10)
    seen, _ = read(tmp_path / "chart.mp4")
    for picture in seen:
        assert np.abs(picture[:30].astype(int) - chart[:30]).max() <= COLOR_TOLERANCE
        middles = picture[48, 16::32].astype(int)  # where the half resolution of colours does not mix neighbours
        assert np.abs(middles - np.array(COLORS)).max() <= COLOR_TOLERANCE


@READERS
def test_odd_sizes_grow_by_their_last_row_and_column(tmp_path, read):
    picture = np.zeros((33, 47, 3), dtype=np.uint8)
    picture[-1] = 200
    picture[:, -1] = 90
    write_video(tmp_path / "odd.mp4", [torch.from_numpy(picture)] * 2, fps=10, crf=0)
    seen, _ = read(tmp_path / "odd.mp4")
    assert seen.shape == (2, 34, 48, 3)
    grown = np.pad(picture, ((0, 1), (0, 1), (0, 0)), mode="edge")
    assert np.abs(seen[0].astype(int) - grown).max() <= COLOR_TOLERANCE


def test_the_file_says_what_a_browser_asks(tmp_path):
    path = tmp_path / "fly.mp4"
    write_video(path, counting_pictures(5), fps=10)
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
        assert (codec.color_primaries, codec.color_trc, codec.colorspace) == (1, 1, 1)  # BT.709 in ITU-T H.273
        assert codec.color_range == 1  # limited
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "the index comes after the pictures"


def test_a_lower_crf_keeps_more(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 1), dtype=np.uint8).repeat(3, axis=2)
    errors = []
    for crf in (0, 40):
        write_video(tmp_path / f"{crf}.mp4", [noise] * 2, fps=10, crf=crf)
        errors.append(np.abs(read_with_av(tmp_path / f"{crf}.mp4")[0][0].astype(int) - noise).mean())
    assert errors[0] < 1 < errors[1]


@pytest.mark.parametrize("num_before", [0, 1, 12])
def test_a_failure_leaves_the_earlier_file_and_no_other(tmp_path, num_before):
    path = tmp_path / "fly.mp4"
    path.write_bytes(b"earlier")

    def fail_after_some():
        yield from counting_pictures(num_before)
        raise RuntimeError("the renderer gave up")

    with pytest.raises(RuntimeError, match="gave up"):
        write_video(path, fail_after_some(), fps=10)
    assert [file.name for file in tmp_path.iterdir()] == ["fly.mp4"]
    assert path.read_bytes() == b"earlier"
    write_video(path, counting_pictures(3), fps=10)
    assert len(read_with_opencv(path)[0]) == 3


@pytest.mark.parametrize(
    ("pictures", "fps", "crf", "message"),
    [
        ([], 10, 18, "no picture"),
        ([*counting_pictures(2), *counting_pictures(1, width=32)], 10, 18, "picture 2 is 32x48 but the first is 64x48"),
        (counting_pictures(2), 0, 18, "between 0.001 and 1000 pictures a second, got 0"),
        (counting_pictures(2), float("nan"), 18, "got nan"),
        (counting_pictures(2), 10, 52, "from 0 .best. to 51, got 52"),
    ],
)
def test_what_cannot_be_a_video_is_refused_in_one_line(tmp_path, pictures, fps, crf, message):
    with pytest.raises(OsnGsError, match=message) as caught:
        write_video(tmp_path / "fly.mp4", pictures, fps, crf)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
