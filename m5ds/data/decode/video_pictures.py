"""The pictures of a clip at given moments, decoded by PyAV: by timestamp where packets have it, else by counting.

Counting is what makes the order and the number of pictures those of `ffmpeg -i FILE`: the decoder knows the order that
AVI and raw streams do not hold, and which pictures cannot be decoded since the clip was cut.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import av

from m5ds.data.decode.media import MAX_DECODED_PIXELS
from m5ds.data.decode.video_index import VideoIndex, places_at, usual_length
from m5ds.inputs.media import MediaError

Picture = TypeVar("Picture")


class _Misled(Exception):
    """The decoder gives other pictures than the packets' timestamps announced."""


def pictures_at(clip: VideoIndex, times: Sequence[float], make: Callable[[Any], Picture]) -> list[Picture]:
    """`make(frame)` of the pictures at these fractions in [0, 1) of the clip's duration; made once where they agree.

    Raises MediaError where no picture can be decoded.
    """
    clip.stream.codec_context.thread_count = 1
    if not clip.counted:
        places = clip.frames_at(times)
        if clip.out_of_reach(places):
            return _at_key_frames(clip, places, make)
        try:
            made = {place: make(frame) for place, frame in _by_timestamp(clip, sorted(set(places)))}
            return [made[place] for place in places]
        except _Misled:
            pass
    if len(clip.packets) * clip.height * clip.width > MAX_DECODED_PIXELS:
        return _at_key_frames(clip, clip.frames_at(times), make)
    return _by_counting(clip, times, make)


def _by_timestamp(clip: VideoIndex, places: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """(place, frame) for ascending places, decoding no more than their groups of pictures."""
    groups: dict[int, deque[int]] = {}
    for place in places:
        groups.setdefault(clip.key_before(clip.shown[place]), deque()).append(place)
    for start, group in groups.items():
        last = None
        for frame in _decoded(clip, start):
            if frame.pts is None or (last is not None and frame.pts <= last) or frame.pts > clip.starts[group[0]]:
                raise _Misled
            last = frame.pts
            if frame.pts == clip.starts[group[0]]:
                yield group.popleft(), frame
            if not group:
                break
        if group:
            raise _Misled


def _by_counting(clip: VideoIndex, times: Sequence[float], make: Callable[[Any], Picture]) -> list[Picture]:
    """Decodes twice: to count the pictures, then up to the last one that is wanted; memory holds the wanted only."""
    stamps = [frame.pts for frame in _decoded(clip, 0)]
    if not stamps:
        raise MediaError("no frame could be decoded")
    starts = list(range(len(stamps)))
    if (
        clip.timed
        and None not in stamps
        and all(before < after for before, after in zip(stamps, stamps[1:], strict=False))
    ):
        starts = stamps
    places = places_at(starts, starts[-1] + usual_length(starts), times)
    made: dict[int, Picture] = {}
    for number, frame in enumerate(_decoded(clip, 0)):
        if number in places:
            made[number] = make(frame)
        if number >= max(places):
            break
    return [made[place] for place in places]


def _at_key_frames(clip: VideoIndex, places: Sequence[int], make: Callable[[Any], Picture]) -> list[Picture]:
    """The first picture that the key frame before each place brings, within MAX_DECODED_PIXELS for all of them."""
    left = max(MAX_DECODED_PIXELS // (clip.height * clip.width), 1)
    made: dict[int, Picture] = {}
    keys = [clip.key_before(clip.shown[place]) for place in places]
    for key in sorted(set(keys)):
        frame = next(_decoded(clip, key, key + 1), None)
        left -= 1
        if frame is None and left > 0:  # an edit list discards it
            frame = next(_decoded(clip, key, key + left), None)
            left = 0
        if frame is not None:
            made[key] = make(frame)
    if not made:
        raise MediaError("no frame could be decoded")
    return [made[max((have for have in made if have <= key), default=min(made))] for key in keys]


def _decoded(clip: VideoIndex, start: int, stop: int | None = None) -> Iterator[Any]:
    """The frames of packets start:stop in the decoder's order; damaged packets bring none."""
    context = clip.stream.codec_context
    context.flush_buffers()
    for packet in (*clip.packets[start:stop], None):
        try:
            yield from context.decode(packet)
        except av.FFmpegError:
            continue
