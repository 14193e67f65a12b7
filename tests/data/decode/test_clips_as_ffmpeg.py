"""Frame by frame what ffmpeg shows: trims, containers without timestamps, raw streams."""

from pathlib import Path

import numpy as np
import pytest
import torch
from ffmpeg_cases import HEIGHT, WIDTH, clip, copied, ffmpeg, frames_of
from media_samples import item

from m5ds.data.decode.decoder import PIXEL_MEAN, PIXEL_STD, Decoder
from m5ds.data.decode.probes.streams import stream_format
from m5ds.data.decode.video_index import video_index
from m5ds.inputs import VideoTubes

X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-b_strategy", 0, "-sc_threshold", 0, "-g", 12, "-bf", 3)
OPEN_GOP = (*X264, "-x264-params", "open-gop=1")
X265 = ("-c:v", "libx265", "-pix_fmt", "yuv420p", "-x265-params", "log-level=error:keyint=12:pools=1")
VP9 = ("-c:v", "libvpx-vp9", "-g", 12, "-cpu-used", 8, "-pix_fmt", "yuv420p")
MPEG4 = ("-c:v", "mpeg4", "-g", 12, "-bf", 2)
MAKERS = {
    "b.mp4": X264,
    "one_group.mp4": (*X264[:-4], "-g", 250, "-bf", 3),
    "no_b.mp4": (*X264[:-1], 0),
    "open.mp4": OPEN_GOP,
    "b.mkv": X264,
    "b.avi": X264,
    "b.ts": X264,
    "hevc.mp4": X265,
    "vp9.mp4": VP9,
    "vp9.webm": VP9,
    "b.mov": X264,
}


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder("cpu", 1)


def assert_as_ffmpeg(decoder: Decoder, path: Path, tolerance: float = 3.0) -> int:
    """Every frame that ffmpeg shows, at its own time, is the frame that we show then; the number of frames."""
    expected_NHW3, middles = frames_of(path)
    spec = VideoTubes(frames=len(middles), size=HEIGHT, patch=16, tube_frames=1)
    decoded = decoder.videos([item(path.read_bytes())], spec, [None], [middles])
    assert not decoded.failures, decoded.failures
    pixels_N3HW = (decoded.values[0] * PIXEL_STD + PIXEL_MEAN) * 255
    expected_N3HW = torch.from_numpy(expected_NHW3.copy()).permute(0, 3, 1, 2).float()
    # Neighbours differ by 5 levels; which of the decoders converts the colours costs less than one.
    assert (pixels_N3HW - expected_N3HW).abs().mean(dim=(1, 2, 3)).max() < tolerance / 2
    levels_N = pixels_N3HW.mean(dim=(1, 2, 3))
    nearest = (levels_N[:, None] - expected_N3HW.mean(dim=(1, 2, 3))).abs().argmin(dim=1)
    assert nearest.tolist() == list(range(len(middles)))
    return len(middles)


@pytest.mark.parametrize("source", MAKERS)
def test_stream_copied_trims_show_what_ffmpeg_shows(decoder: Decoder, tmp_path: Path, source: str) -> None:
    """A cut begins with packets, key frame included, whose pictures an edit list hides but others refer to."""
    whole = clip(tmp_path / source, *MAKERS[source])
    suffix = whole.suffix
    assert assert_as_ffmpeg(decoder, whole) == 40
    start = copied(tmp_path / f"start{suffix}", whole, "-ss", 0.71)
    assert assert_as_ffmpeg(decoder, start) >= 15
    both = copied(tmp_path / f"both{suffix}", whole, "-ss", 0.3, "-t", 0.6)
    assert assert_as_ffmpeg(decoder, both) >= 12
    if source in ("b.mp4", "one_group.mp4", "vp9.mp4"):
        index = video_index(start.read_bytes(), on_gpu=True)
        assert any(packet.is_discard for packet in index.packets) and not index.counted and not index.dali


def test_a_cut_of_avi_put_into_mp4_goes_by_the_decoders_order(decoder: Decoder, tmp_path: Path) -> None:
    """The timestamps were made up on the way: they show every packet as it comes."""
    whole = clip(tmp_path / "b.avi", *X264)
    cut = copied(tmp_path / "cut.mp4", whole, "-ss", 0.5)
    assert video_index(cut.read_bytes(), on_gpu=True).counted
    expected_NHW3, _ = frames_of(cut)
    count = len(expected_NHW3)
    spec = VideoTubes(frames=count, size=HEIGHT, patch=16, tube_frames=1)
    times = [(number + 0.5) / count for number in range(count)]
    values = decoder.videos([item(cut.read_bytes())], spec, [None], [times]).values[0]
    levels_N = ((values * PIXEL_STD + PIXEL_MEAN) * 255).mean(dim=(1, 2, 3)).numpy()
    np.testing.assert_allclose(levels_N, expected_NHW3.mean(axis=(1, 2, 3)), atol=1.5)
    assert (np.diff(levels_N) > 3).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("raw.h264", X264),
        ("raw.hevc", X265),
        ("raw.m2v", ("-c:v", "mpeg2video", "-g", 12, "-bf", 2, "-q:v", 2)),
        ("raw.m4v", (*MPEG4, "-q:v", 2, "-f", "m4v")),
        ("mpeg4.avi", (*MPEG4, "-q:v", 2)),
        ("xvid.avi", ("-c:v", "libxvid", "-bf", 2, "-g", 12, "-q:v", 2)),
        ("b.mpg", X264),
        ("mpeg2.mpg", ("-c:v", "mpeg2video", "-g", 12, "-bf", 2, "-q:v", 2)),
        ("b.flv", X264),
        ("b.nut", X264),
        ("b.m2ts", (*X264, "-mpegts_m2ts_mode", 1, "-f", "mpegts")),
        ("h263.mkv", ("-c:v", "h263p", "-q:v", 2, "-g", 12)),
        ("vp8.ivf", ("-c:v", "libvpx", "-auto-alt-ref", 1, "-lag-in-frames", 16, "-b:v", "2M", "-pix_fmt", "yuv420p")),
        ("mjpeg.mjpeg", ("-c:v", "mjpeg", "-q:v", 2, "-pix_fmt", "yuvj420p")),
        ("animated.png", ("-f", "apng")),
        ("animated.gif", ()),
        ("plain.y4m", ("-pix_fmt", "yuv420p")),
    ],
)
def test_containers_show_the_frames_of_ffmpeg_in_its_order(
    decoder: Decoder, tmp_path: Path, name: str, options: tuple[object, ...]
) -> None:
    assert assert_as_ffmpeg(decoder, clip(tmp_path / name, *options), tolerance=4.0) >= 38


def test_raw_streams_are_told_by_their_first_units(tmp_path: Path) -> None:
    for name, options, demuxer in (
        ("a.h264", X264, "h264"),
        ("a.hevc", X265, "hevc"),
        ("a.m2v", ("-c:v", "mpeg2video"), "mpegvideo"),
        ("a.m4v", (*MPEG4, "-f", "m4v"), "m4v"),
    ):
        data = clip(tmp_path / name, *options, frames=3).read_bytes()
        assert stream_format(data) == demuxer
    assert WIDTH == HEIGHT, "the centred square is the whole picture"


COLOURS = "color=red:size=48x48:rate=25,format=rgb24,geq=r='200':g='80+2*X':b='40+3*Y'"


@pytest.mark.parametrize("container", ["webm", "mp4", "ivf"])
@pytest.mark.parametrize(
    ("codec", "matrix", "dali"),
    [
        ("libvpx-vp9", "bt709", False),
        ("libvpx-vp9", "bt2020nc", False),
        ("libvpx-vp9", "smpte240m", False),
        ("libvpx-vp9", "smpte170m", True),
        ("libvpx-vp9", "bt470bg", True),
        ("libvpx-vp9", "unknown", True),
        ("libx264", "bt709", False),
    ],
)
def test_colours_are_those_of_the_clips_own_matrix(
    decoder: Decoder, tmp_path: Path, codec: str, matrix: str, dali: bool, container: str
) -> None:
    """DALI takes every clip for BT.601, which would move these colours by 13 to 32 levels."""
    if codec == "libx264" and container != "mp4":
        pytest.skip("one container is enough")
    path = tmp_path / f"clip.{container}"
    written = {"bt2020nc": "bt2020", "bt709": "bt709", "smpte240m": "smpte240m"}.get(matrix, "bt601")
    filters = f"{COLOURS},scale=out_color_matrix={written}:out_range=tv,format=yuv420p,setparams=colorspace={matrix}"
    ffmpeg("-f", "lavfi", "-i", filters, "-frames:v", 3, "-c:v", codec, "-crf", 4, "-b:v", "2M", path)
    raw = ffmpeg("-i", path, "-pix_fmt", "rgb24", "-f", "rawvideo", "-")
    expected_HW3 = np.frombuffer(raw, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)[1].astype(np.float32)
    assert video_index(path.read_bytes(), on_gpu=False).dali is dali
    spec = VideoTubes(frames=1, size=HEIGHT, patch=16, tube_frames=1)
    values = decoder.videos([item(path.read_bytes())], spec, [None], [[0.5]]).values[0, 0]
    made_HW3 = ((values * PIXEL_STD + PIXEL_MEAN) * 255).permute(1, 2, 0).numpy()
    # The decoders spread the halved colours by other filters.
    assert np.abs(made_HW3 - expected_HW3).max() < 7
