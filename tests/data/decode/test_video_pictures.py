"""Which packets are decoded for which pictures, on a decoder made of a table."""

from types import SimpleNamespace

import av
import pytest

from m5ds.data.decode import video_index, video_pictures
from m5ds.data.decode.video_index import VideoIndex
from m5ds.data.decode.video_pictures import pictures_at
from m5ds.inputs.media import MediaError

TICKS = 10


class Context:
    """Packet n brings the frames `brings[n]` (by their timestamps), None an error; says what it was asked for."""

    def __init__(self, brings: list[list | None], last: list) -> None:
        self.brings, self.last, self.asked, self.flushes = brings, last, [], 0

    def decode(self, packet):
        found = self.last if packet is None else self.brings[packet.number]
        if packet is not None:
            self.asked.append(packet.number)
        if found is None:
            raise av.FFmpegError(1, "damaged")
        return [SimpleNamespace(pts=pts) for pts in found]

    def flush_buffers(self) -> None:
        self.flushes += 1


def clip(count: int = 20, keys: tuple = (0, 8, 16), *, brings=None, last=(), counted=False, timed=True) -> VideoIndex:
    """Pictures of TICKS ticks, the key frames named, decoded as they come."""
    packets = [SimpleNamespace(number=number, is_keyframe=number in keys) for number in range(count)]
    time = [number * TICKS for number in range(count)]
    context = Context([[one] for one in time] if brings is None else brings, list(last))
    return VideoIndex(
        container=None,
        stream=SimpleNamespace(codec_context=context),
        packets=packets,
        time=time,
        shown=list(range(count)),
        starts=time,
        end=count * TICKS,
        height=3,
        width=5,
        codec="any",
        timed=timed,
        counted=counted,
        dali=False,
    )


def shown_at(one: VideoIndex, *places: float) -> tuple[list, list[int]]:
    """(timestamps of the pictures in the middle of these places, packets decoded)."""
    found = pictures_at(one, [(place + 0.5) / len(one.starts) for place in places], lambda frame: frame.pts)
    return found, one.stream.codec_context.asked


def test_only_the_groups_of_the_wanted_pictures_are_decoded() -> None:
    assert shown_at(clip(), 3) == ([30], [0, 1, 2, 3])
    assert shown_at(clip(), 8) == ([80], [8])
    assert shown_at(clip(), 10, 17, 10) == ([100, 170, 100], [8, 9, 10, 16, 17])
    assert shown_at(clip(), 12, 9) == ([120, 90], [8, 9, 10, 11, 12])
    one = clip()
    made = []
    pictures_at(one, [0.51, 0.52, 0.51], lambda frame: made.append(frame.pts))
    assert made == [100] and one.stream.codec_context.thread_count == 1 and one.stream.codec_context.flushes == 1


def test_a_decoder_that_gives_other_pictures_is_asked_for_all_of_them() -> None:
    """Wrong, missing or repeated timestamps, or none: the pictures are counted."""
    plain = [[number * TICKS] for number in range(20)]
    for place, instead in ((5, [51]), (4, [None]), (4, [30]), (5, []), (4, [55])):
        brings = [*plain[:place], instead, *plain[place + 1 :]]
        one = clip(brings=brings)
        _, asked = shown_at(one, 5)
        assert asked.count(0) == 3 and asked.count(19) == 1, "a try, a count, and the decoding"
    late = [*plain[:5], None, *plain[6:]]
    assert shown_at(clip(brings=late), 5)[0] == [40], "the picture before stays while one is missing"


def test_counted_pictures_are_those_that_the_decoder_brings() -> None:
    """The fourth and fifth packet bring nothing at once, the end brings the rest."""
    brings = [[0], [10], [], [], [20], [30]]
    assert shown_at(clip(6, (0,), brings=brings, last=[40, 50], counted=True), 0, 3, 5)[0] == [0, 30, 50]
    one = clip(6, (0,), brings=brings, last=[40, 50], counted=True)
    found, asked = shown_at(one, 2)
    assert found == [20] and asked == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4], "no more than is wanted"
    with pytest.raises(MediaError, match="no frame could be decoded"):
        shown_at(clip(3, (0,), brings=[[], None, []], counted=True), 1)


@pytest.mark.parametrize(
    ("stamps", "timed", "expected"),
    [
        ([0, 10, 20, 70], True, [0, 20, 20, 20, 70]),
        ([0, 10, 20, 70], False, [0, 10, 20, 20, 70]),
        ([0, 10, None, 70], True, [0, 10, None, None, 70]),
        ([0, 10, 10, 70], True, [0, 10, 10, 10, 70]),
        ([0, 70, 20, 10], True, [0, 70, 20, 20, 10]),
    ],
)
def test_counted_pictures_go_by_their_times_where_these_ascend(stamps: list, timed: bool, expected: list) -> None:
    """Shown for 10 ticks each, the third for 50; else all alike."""
    one = clip(4, (0,), brings=[[stamp] for stamp in stamps], counted=True, timed=timed)
    assert pictures_at(one, [0.0, 0.3, 0.5, 0.74, 0.99], lambda frame: frame.pts) == expected


def test_of_clips_too_long_to_decode_the_key_frames_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = 3 * 5
    for module in (video_index, video_pictures):
        monkeypatch.setattr(module, "MAX_DECODED_PIXELS", 6 * pixels)
    assert shown_at(clip(), 5)[0] == [50] and shown_at(clip(), 6) == ([0], [0])
    assert shown_at(clip(), 6, 9, 19, 18) == ([0, 80, 160, 160], [0, 8, 16])
    assert shown_at(clip(counted=True), 9) == ([80], [8])
    assert shown_at(clip(6, (0,), counted=True), 3)[0] == [30], "few enough to count"
    assert shown_at(clip(7, (0,), counted=True), 3) == ([0], [0])


def test_a_key_frame_that_brings_nothing_is_followed_as_far_as_pixels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [[number * TICKS] for number in range(20)]
    monkeypatch.setattr(video_index, "MAX_DECODED_PIXELS", 1)
    for pixels, expected in ((4, [30]), (3, [160])):
        monkeypatch.setattr(video_pictures, "MAX_DECODED_PIXELS", pixels * 15)
        brings = [*[[]] * 3, *plain[3:]]
        if expected == [30]:
            with pytest.raises(MediaError, match="no frame could be decoded"):
                shown_at(clip(brings=[[]] * 20), 5)
            found, asked = shown_at(clip(brings=[[], [], *plain[2:]]), 5)
            assert found == [20] and asked == [0, 0, 1, 2]
        else:
            found, _ = shown_at(clip(brings=brings), 5, 17)
            assert found == [160, 160], "the nearest earlier key frame that showed something, else the first"
    monkeypatch.setattr(video_pictures, "MAX_DECODED_PIXELS", 1)
    assert shown_at(clip(), 9) == ([80], [8]), "one picture at least"


def test_reach_is_counted_in_packets_from_the_key_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    one = clip()
    for places, packets in (
        ([0], 1),
        ([5], 6),
        ([5, 5, 7], 8),
        ([7, 5], 8),
        ([5, 12], 6 + 5),
        ([8], 1),
        ([7, 8], 8 + 1),
        ([19], 4),
    ):
        monkeypatch.setattr(video_index, "MAX_DECODED_PIXELS", packets * 15)
        assert not one.out_of_reach(places), places
        monkeypatch.setattr(video_index, "MAX_DECODED_PIXELS", packets * 15 - 1)
        assert one.out_of_reach(places), places


def test_pictures_shown_ahead_of_a_key_frame_need_the_one_before() -> None:
    """Packet 9 is decoded after the key frame 8 and shown before it."""
    one = clip()
    one.time[8], one.time[9] = 90, 80
    assert [one.key_before(number) for number in (7, 8, 9, 10, 16, 19)] == [0, 8, 0, 8, 16, 16]
    assert clip(keys=()).key_before(7) == 0 and clip(keys=(3,)).key_before(2) == 0
    assert one.frames_at([0.0, 0.049, 0.05, 0.999]) == [0, 0, 1, 19]
