"""A clip's packets and timestamps, and which of its frames show given moments.

Frames are chosen here, by timestamp, before any decoder is: the frame at a moment is the last one whose timestamp is
not past it. Nothing is taken from the header but the codec and the picture's size; the duration is that of the packets.
"""

import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import median

import av

from m5ds.data.media import MAX_DECODED_PIXELS, MAX_PACKETS, MAX_VIDEO_PIXELS, MediaError
from m5ds.data.media_probe import check_pixels, is_turned, stream_format
from m5ds.data.video_bitstream import packet_agrees

CODEC_OPTIONS = {"max_pixels": str(MAX_VIDEO_PIXELS)}
"""FFmpeg refuses larger frames, whatever size the packets turn out to have."""
_OPEN_SECONDS = 30.0
"""FFmpeg's own limit for a demuxer that makes no progress."""

DALI_CPU_CODECS = ("vp8", "vp9", "mjpeg")
DALI_GPU_CODECS = ("h264", "hevc", "av1", *DALI_CPU_CODECS)


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
    """The packets of a clip's video stream, in memory, and their times."""

    container: av.container.InputContainer
    stream: av.VideoStream
    packets: list[av.Packet]
    """In decoding order, without empty ones."""
    time: list[int]
    """Presentation time of each packet in stream ticks; the packet's number where the stream has no timestamps."""
    timed: bool
    """Whether `time` holds timestamps."""
    shown: list[int]
    """Numbers of packets in presentation order."""
    end: int
    """When the last frame ends, in the unit of `time`."""
    height: int
    width: int
    codec: str
    dali: bool
    """Whether DALI decodes it safely and counts its frames as `shown` does."""

    def frames_at(self, times: Sequence[float]) -> list[int]:
        """Places in `shown` of the frames at these fractions in [0, 1) of the duration.

        Where reaching them would decode more than MAX_DECODED_PIXELS, the key frame before each is taken instead.
        """
        start = self.time[self.shown[0]]
        length = self.end - start
        starts = [self.time[packet] for packet in self.shown]
        chosen = [max(bisect_right(starts, start + int(fraction * length)) - 1, 0) for fraction in times]
        packets = sorted({self.shown[place] for place in chosen})
        cost, reached = 0, -1
        for packet in packets:
            cost += packet - max(self.key_before(packet) - 1, reached)
            reached = packet
        if cost * self.height * self.width <= MAX_DECODED_PIXELS:
            return chosen
        place_of = {packet: place for place, packet in enumerate(self.shown)}
        return [place_of[self.key_before(self.shown[place])] for place in chosen]

    def key_before(self, packet: int) -> int:
        """The packet from which decoding must start for the frame of this one: a key frame shown no later than it."""
        for number in range(packet, -1, -1):
            if self.packets[number].is_keyframe and self.time[number] <= self.time[packet]:
                return number
        return 0


def video_index(data: bytes, on_gpu: bool) -> VideoIndex:
    """Demux a clip without decoding it. Raises MediaError, or what PyAV raises on damaged containers."""
    container = open_container(data)
    if not container.streams.video:
        raise MediaError("there is no video stream")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None:
        raise MediaError("no decoder for the video stream")
    context.options = CODEC_OPTIONS
    check_pixels(stream.height, stream.width, MAX_VIDEO_PIXELS)
    packets = []
    try:
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                packets.append(packet)
            if len(packets) > MAX_PACKETS:
                raise MediaError(f"the video stream has more than {MAX_PACKETS} packets")
    except av.FFmpegError:
        if not packets:
            raise
    if not packets:
        raise MediaError("the video stream holds no frames")
    stamps = [packet.pts for packet in packets if packet.pts is not None]
    timed = len(set(stamps)) == len(packets)
    time = stamps if timed else list(range(len(packets)))
    shown = sorted(range(len(packets)), key=lambda packet: time[packet])
    codec = context.name
    dali = timed and codec in (DALI_GPU_CODECS if on_gpu else DALI_CPU_CODECS)
    dali = dali and not is_turned(data, stream_format(data))
    if dali and not on_gpu:
        dali = all(packet_agrees(codec, bytes(packet), stream.height, stream.width) for packet in packets)
    return VideoIndex(
        container=container,
        stream=stream,
        packets=packets,
        time=time,
        timed=timed,
        shown=shown,
        end=time[shown[-1]] + _last_length(packets[shown[-1]], [time[packet] for packet in shown]),
        height=stream.height,
        width=stream.width,
        codec=codec,
        dali=dali,
    )


def _last_length(packet: av.Packet, times: list[int]) -> int:
    """How long the last frame is shown: as its packet says, else as the others are."""
    if packet.duration:
        return int(packet.duration)
    if len(times) < 2:
        return 1
    return int(Fraction(median(after - before for before, after in zip(times, times[1:], strict=False)))) or 1
