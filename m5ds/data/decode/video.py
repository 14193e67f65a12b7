"""Clips to frames: DALI for the codecs that its build decodes, PyAV for the others, the same frames from both.

Shape letters: K clips, F frames of a clip, H x W pixels, S the square's side.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from m5ds.data.decode.dali_runtime import DaliRuntime
from m5ds.data.decode.media import Box, crop_box, reason_for
from m5ds.data.decode.resize import cut_and_resize
from m5ds.data.decode.video_index import VideoIndex, video_index
from m5ds.data.decode.video_pictures import pictures_at
from m5ds.inputs.media import Crop, MediaItem

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
    clips: dict[int, VideoIndex] = {}
    places: dict[int, list[int]] = {}
    for index, item in enumerate(items):
        try:
            clip = clips[index] = video_index(item.data, dali.on_gpu)
            if clip.dali and not clip.out_of_reach(chosen := clip.frames_at(times[index])):
                places[index] = chosen
        except Exception as error:  # av.FFmpegError, MediaError, ValueError and more from damaged containers
            reasons[index] = reason_for(error)

    def keep(index: int, frames: Sequence[Tensor]) -> None:
        if len(frames) == len(places[index]):
            boxes = [crop_box(clips[index].height, clips[index].width, crops[index])] * len(frames)
            values[index] = torch.stack(cut_and_resize(frames, boxes, size, dali.device))

    for indices in _bounded({index: clips[index] for index in places}, len(times[0])):
        _by_dali(dali, items, indices, [places[index] for index in indices], keep)
    for index, clip in clips.items():
        if index in values:
            continue
        try:
            values[index] = _by_pyav(dali, clip, times[index], size, crops[index])
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


def _by_pyav(dali: DaliRuntime, clip: VideoIndex, times: Sequence[float], size: int, crop: Crop | None) -> Tensor:
    """[F, S, S, 3]: the pictures at these times, each resized as it comes."""
    reformatter = VideoReformatter()

    def square(frame: Any) -> Tensor:
        # FFmpeg's rotation is counter-clockwise in degrees; the box is drawn on the picture as it is to be seen.
        turns = round((frame.rotation or 0) / 90) % 4
        seen = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
        box = _unturned(crop_box(*seen, crop), seen, turns)
        picture = torch.from_numpy(
            np.ascontiguousarray(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())
        )
        return torch.rot90(cut_and_resize([picture], [box], size, dali.device)[0], turns)

    return torch.stack(pictures_at(clip, times, square))


def _unturned(box: Box, seen: tuple[int, int], turns: int) -> Box:
    """The box of a picture seen after `turns` quarter turns counter-clockwise, on the picture as it is stored."""
    height, width = seen
    for _ in range(turns):
        # seen[i, j] of one turn is stored[j, seen height - 1 - i].
        box = Box(box.left, height - box.bottom, box.right, height - box.top)
        height, width = width, height
    return box
