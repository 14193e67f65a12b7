"""Clips to frames: DALI for the codecs that its build decodes, PyAV for the others, the same frames from both.

Shape letters: K clips, F frames of a clip, H x W pixels, S the square's side.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from m5ds.data.dali_runtime import DaliRuntime
from m5ds.data.media import MAX_DECODED_PIXELS, Box, Crop, MediaError, MediaItem, crop_box, reason_for
from m5ds.data.resize import cut_and_resize
from m5ds.data.video_index import VideoIndex, video_index

_WHOLE_PIXELS = 16 * 2**20
"""Most pixels of full-size frames that DALI holds at once (48 MiB as RGB); PyAV holds one frame."""


def decode_videos(
    dali: DaliRuntime,
    items: Sequence[MediaItem],
    size: int,
    crops: Sequence[Crop | None],
    times: Sequence[Sequence[float]],
) -> tuple[dict[int, Tensor], dict[int, str]]:
    """[F, S, S, 3] in 0..255 for every clip that decodes, and the reason for every other, by index."""
    values: dict[int, Tensor] = {}
    reasons: dict[int, str] = {}
    clips: dict[int, tuple[VideoIndex, list[int]]] = {}
    for index, item in enumerate(items):
        try:
            clip = video_index(item.data, dali.on_gpu)
            clips[index] = clip, clip.frames_at(times[index])
        except Exception as error:  # av.FFmpegError, MediaError, ValueError and more from damaged containers
            reasons[index] = reason_for(error)

    def keep(index: int, frames: Sequence[Tensor]) -> None:
        clip, places = clips[index]
        if len(frames) == len(places):
            boxes = [crop_box(clip.height, clip.width, crops[index])] * len(places)
            values[index] = torch.stack(cut_and_resize(frames, boxes, size, dali.device))

    for indices in _bounded({index: clip for index, (clip, _) in clips.items() if clip.dali}, len(times[0])):
        _by_dali(dali, items, indices, [clips[index][1] for index in indices], keep)
    for index, (clip, places) in clips.items():
        if index in values:
            continue
        try:
            values[index] = _by_pyav(dali, clip, places, size, crops[index])
        except Exception as error:
            reasons[index] = reason_for(error)
    return values, reasons


def _bounded(clips: dict[int, VideoIndex], num_frames: int) -> Iterator[list[int]]:
    """The clips in groups of at most _WHOLE_PIXELS of full-size frames; larger clips are left to PyAV."""
    group: list[int] = []
    pixels = 0
    for index, clip in clips.items():
        count = num_frames * clip.height * clip.width
        if count > _WHOLE_PIXELS:
            continue
        if pixels + count > _WHOLE_PIXELS:
            yield group
            group, pixels = [], 0
        group.append(index)
        pixels += count
    if group:
        yield group


def _by_dali(
    dali: DaliRuntime,
    items: Sequence[MediaItem],
    indices: Sequence[int],
    places: Sequence[Sequence[int]],
    keep: Callable[[int, Sequence[Tensor]], None],
) -> None:
    """Decode together; where one is damaged, one by one. What fails alone, or lacks frames, is left to PyAV."""
    try:
        clips = dali.videos([items[index].data for index in indices], places)
    except Exception:  # DALI raises RuntimeError and its own types
        for index, numbers in zip(indices, places, strict=True) if len(indices) > 1 else ():
            _by_dali(dali, items, [index], [numbers], keep)
        return
    for index, frames in zip(indices, clips, strict=True):
        keep(index, frames)


def _by_pyav(dali: DaliRuntime, clip: VideoIndex, places: Sequence[int], size: int, crop: Crop | None) -> Tensor:
    """The frames at these places of the presentation order, each resized as it comes."""
    made: dict[int, Tensor] = {}
    reformatter = VideoReformatter()
    for place, frame in _frames(clip, sorted(set(places))):
        # FFmpeg's rotation is counter-clockwise in degrees; the box is drawn on the picture as it is to be seen.
        turns = round((frame.rotation or 0) / 90) % 4
        seen = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
        box = _unturned(crop_box(*seen, crop), seen, turns)
        picture = torch.from_numpy(
            np.ascontiguousarray(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())
        )
        made[place] = torch.rot90(cut_and_resize([picture], [box], size, dali.device)[0], turns)
    if not made:
        raise MediaError("no frame could be decoded")
    # Frames that a damaged clip no longer holds are those before them.
    known = sorted(made)
    nearest = [max((have for have in known if have <= place), default=known[0]) for place in places]
    return torch.stack([made[place] for place in nearest])


def _frames(clip: VideoIndex, places: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """(place, frame) for ascending places in presentation order, decoding no more than their groups of pictures.

    The frame of a place is the last one that is not shown later than its packet. Places before any frame that could be
    decoded are left out.
    """
    clip.stream.codec_context.thread_count = 1
    groups: dict[int, deque[int]] = {}
    for place in places:
        # Without timestamps frames can only be counted, from the first on.
        start = clip.key_before(clip.shown[place]) if clip.timed else 0
        groups.setdefault(start, deque()).append(place)
    for start, group in groups.items():
        yield from _from_key(clip, start, group)
        clip.stream.codec_context.flush_buffers()


def _from_key(clip: VideoIndex, start: int, places: deque[int]) -> Iterator[tuple[int, Any]]:
    last = None
    number = -1
    most = max(MAX_DECODED_PIXELS // (clip.height * clip.width), 1)
    for packet in chain(islice(clip.packets, start, start + most), (None,)):
        for frame in _decoded(clip.stream.codec_context, packet):
            number += 1
            time = frame.pts if clip.timed and frame.pts is not None else number
            while places and clip.time[clip.shown[places[0]]] < time:
                place = places.popleft()
                if last is not None:
                    yield place, last
            last = frame
            while places and clip.time[clip.shown[places[0]]] == time:
                yield places.popleft(), frame
        if not places:
            return
    if last is not None:
        for place in places:
            yield place, last


def _decoded(context: Any, packet: av.Packet | None) -> list[Any]:
    """The frames that a packet, or the end of the stream, brings out; a damaged packet brings none."""
    try:
        return context.decode(packet)
    except av.FFmpegError:
        return []


def _unturned(box: Box, seen: tuple[int, int], turns: int) -> Box:
    """The box of a picture seen after `turns` quarter turns counter-clockwise, on the picture as it is stored."""
    height, width = seen
    for _ in range(turns):
        # seen[i, j] of one turn is stored[j, seen height - 1 - i].
        box = Box(box.left, height - box.bottom, box.right, height - box.top)
        height, width = width, height
    return box
