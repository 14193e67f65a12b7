"""A clip's packets and timestamps, and which of its frames show given moments.

Frames are chosen here, by timestamp, before any decoder is: the frame at a moment is the last one whose timestamp is
not past it. Nothing is taken from the header but the codec and the picture's size; the duration is that of the packets.
Where packets do not tell which pictures are shown, or in which order, the clip is `counted`: the decoder is asked.
"""

import io
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import av

from m5ds.data.decode.media import MAX_DECODED_PIXELS, MAX_VIDEO_PIXELS
from m5ds.data.decode.packets import read_packets
from m5ds.data.decode.probes.media import check_pixels, is_turned
from m5ds.data.decode.probes.streams import stream_format
from m5ds.data.decode.video_bitstream import MAY_HIDE, packet_agrees, shows_picture
from m5ds.inputs.media import MediaError

CODEC_OPTIONS = {"max_pixels": str(MAX_VIDEO_PIXELS)}
"""FFmpeg refuses larger frames, whatever size the packets turn out to have."""
_OPEN_SECONDS = 30.0
"""FFmpeg's own limit for a demuxer that makes no progress."""

_DALI_MATRICES = (2, 5, 6)
"""FFmpeg's numbers of the colours that DALI converts rightly: unspecified, and the two names of BT.601. Any other clip
would be taken for BT.601 too."""
DALI_CPU_CODECS = ("vp8", "vp9", "mjpeg")
DALI_GPU_CODECS = ("h264", "hevc", "av1", "libdav1d", *DALI_CPU_CODECS)
_WITHOUT_TIMESTAMPS = ("avi", "h264", "hevc", "m4v", "mpegvideo")
"""Containers that only know the order of decoding; what libavformat reports as timestamps is a guess."""
_LOOSE_KEYS = ("h263", "mpeg4", "flv", "msmpeg4", "wmv", "snow", "rv")
_PACKED = re.compile(rb"DivX\d+(?:b|Build)\d+p")
"""MPEG-4 in which a packet holds two pictures, and a later one none."""


def open_container(data: bytes) -> av.container.InputContainer:
    """FFmpeg's demuxer for a clip or sound, chosen by content; raises MediaError or av.FFmpegError."""
    return av.open(
        io.BytesIO(data),
        mode="r",
        format=stream_format(data),
        options=CODEC_OPTIONS,
        timeout=_OPEN_SECONDS,
        metadata_errors="replace",
    )


@dataclass(slots=True)
class VideoIndex:
    """The packets of a clip's video stream, in memory, and the pictures that are shown."""

    container: av.container.InputContainer
    stream: av.VideoStream
    packets: list[av.Packet]
    """In decoding order, without empty ones; and those that an edit list discards: others refer to them."""
    time: list[int]
    """Presentation time of each packet in stream ticks; the packet's number where the stream has no timestamps."""
    shown: list[int]
    """Numbers of the packets whose pictures are shown, in presentation order."""
    starts: list[int]
    """When each shown picture begins, ascending: in the unit of `time`, or their numbers in a counted clip."""
    end: int
    """When the last picture ends, in the unit of `starts`."""
    height: int
    width: int
    codec: str
    timed: bool
    """Whether `time` holds timestamps."""
    counted: bool
    """Whether only decoding from the first packet on tells the pictures and their order."""
    dali: bool
    """Whether DALI decodes it safely and counts its frames as `shown` does."""

    def frames_at(self, times: Sequence[float]) -> list[int]:
        """Places in `starts` of the pictures at these fractions in [0, 1) of the duration."""
        return places_at(self.starts, self.end, times)

    def out_of_reach(self, places: Sequence[int]) -> bool:
        """Whether decoding up to these places, each from its key frame, would take more than MAX_DECODED_PIXELS."""
        cost, reached = 0, -1
        for packet in sorted({self.shown[place] for place in places}):
            cost += packet - max(self.key_before(packet) - 1, reached)
            reached = packet
        return cost * self.height * self.width > MAX_DECODED_PIXELS

    def key_before(self, packet: int) -> int:
        """The packet from which decoding must start for the frame of this one: a key frame shown no later than it."""
        for number in range(packet, -1, -1):
            if self.packets[number].is_keyframe and self.time[number] <= self.time[packet]:
                return number
        return 0


def video_index(data: bytes, on_gpu: bool) -> VideoIndex:
    """Demux a clip without decoding it. Raises MediaError, or what PyAV raises on damaged containers."""
    container = open_container(data)
    stream = _video_stream(container)
    context = stream.codec_context
    if context is None:
        raise MediaError("no decoder for the video stream")
    context.options = CODEC_OPTIONS
    check_pixels(stream.height, stream.width, MAX_VIDEO_PIXELS)
    packets = read_packets(container, stream, "video", "frames")
    codec = context.name
    may_hide = codec in MAY_HIDE  # only their packets need a look, which copies them
    seen = [
        number
        for number, packet in enumerate(packets)
        if not packet.is_discard and (not may_hide or shows_picture(codec, bytes(packet)))
    ]
    if not seen:
        raise MediaError("the video stream shows no frames")
    stamps = [packets[number].pts for number in seen]
    timed = None not in stamps and len(set(stamps)) == len(stamps)
    time = [_presented(packet) if timed else number for number, packet in enumerate(packets)]
    shown = sorted(seen, key=lambda number: time[number])
    container_format = stream_format(data)
    counted = not timed or not packets[0].is_keyframe or time[shown[0]] < time[0]
    # H.263 and its kin: some muxers call every packet a key frame.
    counted |= codec.startswith(_LOOSE_KEYS) and len(packets) > 1 and all(packet.is_keyframe for packet in packets)
    if context.codec.reorder:
        # Timestamps that show every packet as it comes, of a stream that reorders, were made up on the way from AVI.
        counted |= container_format in _WITHOUT_TIMESTAMPS or (shown == seen and context.has_b_frames)
        counted |= _PACKED.search((context.extradata or b"") + bytes(packets[0])) is not None
    dali = len(seen) == len(packets) and not counted and codec in (DALI_GPU_CODECS if on_gpu else DALI_CPU_CODECS)
    dali = dali and context.colorspace in _DALI_MATRICES and not is_turned(data, container_format)
    if dali and not on_gpu:
        dali = all(packet_agrees(codec, bytes(packet), stream.height, stream.width) for packet in packets)
    starts = [time[number] for number in shown]
    return VideoIndex(
        container=container,
        stream=stream,
        packets=packets,
        time=time,
        shown=shown,
        starts=starts,
        end=starts[-1] + (packets[shown[-1]].duration or usual_length(starts)),
        height=stream.height,
        width=stream.width,
        codec=codec,
        timed=timed and container_format not in _WITHOUT_TIMESTAMPS,
        counted=counted,
        dali=dali,
    )


def _presented(packet: av.Packet) -> int:
    """A packet's own time; where one that is not shown has none, that of its decoding."""
    return packet.pts if packet.pts is not None else packet.dts or 0


def places_at(starts: Sequence[int], end: int, times: Sequence[float]) -> list[int]:
    """The last picture that has begun at each fraction of the time from the first start to the end."""
    return [bisect_right(starts, starts[0] + int(part * (end - starts[0]))) - 1 for part in times]


def usual_length(starts: Sequence[int]) -> int:
    """How long most pictures are shown; at least 1."""
    if len(starts) < 2:
        return 1
    return int(median(after - before for before, after in zip(starts, starts[1:], strict=False))) or 1


def _video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The first video stream that is not a sound's cover; a cover where there is nothing else."""
    streams = container.streams.video
    if not streams:
        raise MediaError("there is no video stream")
    return next((one for one in streams if not one.disposition & av.stream.Disposition.attached_pic), streams[0])
