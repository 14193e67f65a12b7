"""What a clip's packets tell of its pictures, on containers made of a table."""

from types import SimpleNamespace

import av
import pytest
from media_samples import video

from m5ds.data.decode import video_index
from m5ds.data.decode.media import MAX_VIDEO_PIXELS
from m5ds.data.decode.video_index import CODEC_OPTIONS, VideoIndex, open_container
from m5ds.inputs.media import MediaError

MATROSKA, AVI = b"\x1a\x45\xdf\xa3", b"RIFF....AVI "
COVER = av.stream.Disposition.attached_pic


class Packet:
    """A packet whose bytes are `data`; None where nobody may look at them."""

    def __init__(self, pts, *, key=False, data=b"", size=9, hidden=False, dts=None, duration=10) -> None:
        self.pts, self.dts, self.duration = pts, dts, duration
        self.is_keyframe, self.is_discard, self.size = key, hidden, size
        self._data = data

    def __bytes__(self) -> bytes:
        assert self._data is not None, "copied for nothing"
        return self._data


def packets(*stamps, **kinds) -> list[Packet]:
    """The first one is a key frame."""
    return [Packet(pts, key=not number, **kinds) for number, pts in enumerate(stamps)]


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch):
    def make(given, name="h264", data=MATROSKA, on_gpu=True, sides=(3, 5), **context) -> VideoIndex:
        known = {"name": name, "codec": SimpleNamespace(reorder=False), "has_b_frames": False, "extradata": None}
        stream = SimpleNamespace(
            codec_context=SimpleNamespace(**{**known, "colorspace": 2, **context}),
            height=sides[0],
            width=sides[1],
            disposition=av.stream.Disposition(0),
        )
        container = SimpleNamespace(streams=SimpleNamespace(video=[stream]), demux=lambda one: iter(given))
        monkeypatch.setattr(video_index, "open_container", lambda file: container)
        return video_index.video_index(data, on_gpu)

    return make


def test_pictures_are_shown_by_their_times(indexed) -> None:
    given = packets(0, 40, 20, 60)
    one = indexed(given)
    assert one.packets == given and one.time == [0, 40, 20, 60]
    assert one.shown == [0, 2, 1, 3] and one.starts == [0, 20, 40, 60] and one.end == 70
    assert (one.height, one.width, one.codec) == (3, 5, "h264")
    assert one.timed and not one.counted and one.dali
    assert one.stream.codec_context.options == {"max_pixels": str(4096 * 4096)}


def test_the_last_picture_lasts_as_it_says_or_as_the_others_do(indexed) -> None:
    assert indexed(packets(0, 20, 40, duration=7)).end == 47
    for unknown in (None, 0):
        assert indexed(packets(0, 20, 40, duration=unknown)).end == 60


@pytest.mark.parametrize("stamps", [(0, 20, None), (0, 20, 20), (None, None, None)])
def test_without_times_of_their_own_pictures_are_counted(indexed, stamps: tuple) -> None:
    one = indexed(packets(*stamps))
    assert one.time == one.shown == one.starts == [0, 1, 2]
    assert one.counted and not one.timed and not one.dali


def test_a_clip_that_does_not_begin_with_its_key_frame_is_counted(indexed) -> None:
    assert indexed([Packet(0), Packet(20, key=True)]).counted
    assert indexed(packets(20, 0, 40)).counted and not indexed(packets(0, 40, 20)).counted


@pytest.mark.parametrize("codec", ["h263p", "mpeg4", "flv", "msmpeg4v2", "wmv1", "snow", "rv20"])
def test_key_frames_of_h263_and_its_kin_are_not_believed_where_all_are(indexed, codec: str) -> None:
    every = [Packet(pts, key=True) for pts in (0, 20, 40)]
    assert indexed(every, codec).counted and not indexed(every, "h264").counted
    assert not indexed(every[:1], codec).counted and not indexed(packets(0, 20, 40), codec).counted


def test_decoders_that_reorder_are_asked_where_the_container_cannot_know(indexed) -> None:
    def reordering(stamps=(0, 40, 20), reorder=True, **kinds) -> bool:
        return indexed(packets(*stamps), codec=SimpleNamespace(reorder=reorder), **kinds).counted

    for data in (AVI, b"\0\0\1\xb3\0\0\0\0\0\0", b"\0\0\0\1\x40\1\0\0\0\0\0\0"):
        assert reordering(data=data) and not reordering(data=data, reorder=False)
        assert not indexed(packets(0, 40), data=data).timed
    assert not reordering() and not reordering(has_b_frames=True)
    assert not reordering((0, 20, 40)) and reordering((0, 20, 40), has_b_frames=True)
    assert not reordering((0, 20, 40), has_b_frames=True, reorder=False)


def test_packed_mpeg4_is_counted_wherever_it_says_so(indexed) -> None:
    mark, other = b"..DivX503b1393p..", b"..DivX503b1393.."
    reorder = {"codec": SimpleNamespace(reorder=True)}
    assert indexed(packets(0, 40, 20), extradata=mark, **reorder).counted
    assert not indexed(packets(0, 40, 20), extradata=other, **reorder).counted
    assert indexed(packets(0, 40, 20, data=mark), **reorder).counted
    assert not indexed([*packets(0), Packet(40, data=mark)], **reorder).counted


def test_packets_that_are_not_shown_are_kept_for_those_that_are(indexed) -> None:
    given = [Packet(0, key=True), Packet(None, hidden=True, dts=15), Packet(20), Packet(30, size=0)]
    one = indexed(given)
    assert one.packets == given[:3] and one.shown == [0, 2] and one.starts == [0, 20]
    assert one.time == [0, 15, 20] and one.timed and not one.counted and not one.dali
    assert indexed([*packets(0), Packet(None, hidden=True)]).time == [0, 0]
    for codec in ("vp8", "libvpx"):  # two decoders of one codec
        shown, reference = Packet(0, key=True, data=b"\x10"), Packet(10, data=b"\0")
        assert indexed([shown, reference], codec).shown == [0]
        with pytest.raises(MediaError, match="shows no frames"):
            indexed([reference], codec)
    for codec in ("vp9", "libvpx-vp9"):
        assert indexed([Packet(0, key=True, data=b"\x86"), Packet(10, data=b"\x84")], codec).shown == [0]


def test_packets_are_copied_only_where_a_picture_may_hide(indexed) -> None:
    assert indexed(packets(0, 20, data=None)).dali
    with pytest.raises(AssertionError, match="copied"):
        indexed(packets(0, 20, data=None), "vp9")


@pytest.mark.parametrize(
    ("codec", "cpu", "gpu"),
    [(name, False, True) for name in ("h264", "hevc", "av1", "libdav1d")]
    + [("vp8", True, True), ("mpeg4", False, False), ("libvpx", False, False), ("vp8_qsv", False, False)],
)
def test_dali_gets_what_its_builds_decode(indexed, codec: str, cpu: bool, gpu: bool) -> None:
    inter = b"\x11"  # a VP8 packet that refers to another, and is shown
    assert indexed(packets(0, 20, data=inter), codec, on_gpu=False).dali is cpu
    assert indexed(packets(0, 20, data=inter), codec, on_gpu=True).dali is gpu


def test_dali_gets_no_colours_turns_or_sizes_that_it_does_not_know(indexed) -> None:
    assert [number for number in range(12) if indexed(packets(0), colorspace=number).dali] == [2, 5, 6]
    assert not indexed(packets(0), data=MATROSKA + b"\x76\x75\x1f\x43\xb6\x75").dali
    key = b"\x10\0\0\x9d\x01\x2a\x05\0\x03\0"  # 5 x 3
    assert indexed(packets(0, data=key), "vp8", on_gpu=False).dali
    for sides in ((3, 4), (4, 5), (5, 3)):
        assert not indexed(packets(0, data=key), "vp8", on_gpu=False, sides=sides).dali
        assert indexed(packets(0, data=key), "vp8", on_gpu=True, sides=sides).dali
    assert not indexed([*packets(0, data=key), Packet(9, data=b"\x10")], "vp8", on_gpu=False).dali


def test_streams_without_packets_or_of_too_large_pictures_are_absences(indexed) -> None:
    for given in ([], [Packet(0, size=0)]):
        with pytest.raises(MediaError, match="holds no frames"):
            indexed(given)
    with pytest.raises(MediaError, match="shows no frames"):
        indexed([Packet(0, hidden=True)])
    assert indexed(packets(0), sides=(1, MAX_VIDEO_PIXELS)).dali
    with pytest.raises(MediaError, match="the header claims"):
        indexed(packets(0), sides=(1, MAX_VIDEO_PIXELS + 1))


def test_damage_ends_a_stream_and_is_an_error_only_at_its_start(indexed) -> None:
    def broken(given):
        yield from given
        raise av.FFmpegError(1, "damaged")

    assert len(indexed(broken(packets(0, 20))).packets) == 2
    with pytest.raises(av.FFmpegError):
        indexed(broken([]))


def test_a_clip_without_a_decoder_is_an_absence() -> None:
    data = video("mjpeg", "avi", "yuvj420p").replace(b"MJPG", b"ZQXX")
    with pytest.raises(MediaError, match="no decoder for the video stream"):
        video_index.video_index(data, on_gpu=False)


def test_the_first_stream_that_is_no_cover_is_the_clip() -> None:
    cover, clip, other = (SimpleNamespace(disposition=kind) for kind in (COVER, COVER ^ COVER, COVER ^ COVER))

    def chosen(*streams):
        return video_index._video_stream(SimpleNamespace(streams=SimpleNamespace(video=streams)))

    assert chosen(cover, clip, other) is clip and chosen(clip, cover) is clip and chosen(cover) is cover
    with pytest.raises(MediaError, match="there is no video stream"):
        chosen()


def test_files_are_opened_by_their_content_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The named demuxer alone, in memory, with a time limit; text of any encoding."""
    asked = {}
    monkeypatch.setattr(av, "open", lambda file, **options: asked.update(options, data=file.read()))
    open_container(AVI)
    assert asked == {
        "data": AVI,
        "mode": "r",
        "format": "avi",
        "options": CODEC_OPTIONS,
        "timeout": 30.0,
        "metadata_errors": "replace",
    }
