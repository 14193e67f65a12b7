"""A stream's packets, read before anything is decoded."""

import av

from m5ds.data.decode.media import MAX_PACKETS
from m5ds.inputs.media import MediaError


def read_packets(
    container: av.container.InputContainer, stream: av.AudioStream | av.VideoStream, name: str, content: str
) -> list[av.Packet]:
    """The stream's packets, in memory, without empty ones; those before a break where the file breaks off.

    MediaError where there is none, or more than MAX_PACKETS: the `name` stream holds no `content`.
    """
    packets: list[av.Packet] = []
    try:
        for packet in container.demux(stream):
            if packet.size:
                packets.append(packet)
            if len(packets) > MAX_PACKETS:
                raise MediaError(f"the {name} stream has more than {MAX_PACKETS} packets")
    except av.FFmpegError:
        if not packets:
            raise
    if not packets:
        raise MediaError(f"the {name} stream holds no {content}")
    return packets
