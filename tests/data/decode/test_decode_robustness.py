"""Damaged, hostile and lying files: every one decodes or becomes a recorded absence, and the process lives.

DALI ended the process in three ways while this was written: two unparsable pictures in one batch (std::terminate), two
damaged WebPs in one batch and damaged JPEG 2000 (segmentation fault), video packets larger than their container says
(heap overflow). docs/decoding.md has the table.
"""

import multiprocessing
import resource
import struct
import zlib

import numpy as np
import pytest
import torch
from media_samples import AUDIO_KINDS, IMAGE_KINDS, VIDEO_KINDS, audio, damaged, image, item, video

from m5ds.data.decode.decoder import Decoder
from m5ds.data.decode.probes.audio import whole_samples
from m5ds.data.decode.probes.media import image_header
from m5ds.data.decode.probes.streams import stream_format
from m5ds.data.decode.video_bitstream import packet_agrees
from m5ds.data.decode.video_index import video_index
from m5ds.data.decode.video_pictures import pictures_at
from m5ds.inputs import AudioPatches, ImagePatches, VideoTubes
from m5ds.inputs.media import MediaError

IMAGE = ImagePatches(size=16, patch=8)
VIDEO = VideoTubes(frames=4, size=16, patch=8)
AUDIO = AudioPatches(seconds=0.6, num_mels=32)
TIMES = [0.0, 0.3, 0.6, 0.99]


def decode_damaged(seed: int, cases: int, batch: int) -> None:
    """Runs in a process of its own: batches of damaged and sound files of every kind."""
    rng = np.random.default_rng(seed)
    decoder = Decoder("cpu", 2)
    sources = {
        "image": [image(kind) for kind in IMAGE_KINDS],
        "video": [video(*kind) for kind in VIDEO_KINDS],
        "audio": [audio(*kind) for kind in AUDIO_KINDS],
    }
    for case in range(cases):
        kind = ("image", "video", "audio")[case % 3]
        files = [sources[kind][rng.integers(len(sources[kind]))] for _ in range(batch)]
        items = [item(damaged(data, rng) if rng.random() < 0.5 else data) for data in files]
        if kind == "image":
            decoded = decoder.images(items, IMAGE, [None] * batch)
        elif kind == "video":
            decoded = decoder.videos(items, VIDEO, [None] * batch, [TIMES] * batch)
        else:
            decoded = decoder.audios(items, AUDIO, [0.5] * batch)
        assert len(decoded.kept) + len(decoded.failures) == batch == len(items)
        assert all(torch.isfinite(value).all() for value in decoded.values)
        assert all(bad.reason for bad in decoded.failures)
        untouched = [n for n, (one, data) in enumerate(zip(items, files, strict=True)) if one.data is data]
        assert set(untouched) <= set(decoded.kept), "a damaged file took a sound one with it"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 * 2**20, "peak memory over 2 GiB"


def outcome(*arguments: int) -> int | None:
    process = multiprocessing.get_context("spawn").Process(target=decode_damaged, args=arguments)
    process.start()
    process.join(150)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


@pytest.mark.slow
def test_no_damaged_file_ends_or_hangs_the_process() -> None:
    assert outcome(1, 60, 8) == 0


def png(width: int, height: int, body: bytes, colour: int = 2, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\xff\xd8\xff",
        png(100, 100, zlib.compress(b"\0" * 10)),
        png(4, 4, zlib.compress((b"\x09" + b"\0" * 12) * 4)),
        png(0, 5, zlib.compress(b"")),
        png(2**31 - 1, 2**31 - 1, zlib.compress(b"\0")),
        b"RIFF\x20\0\0\0WEBPVP8L\x10\0\0\0/\xff\xff\xff\xff",
        b"BM" + b"\xff" * 60,
        b"GIF89a" + b"\xff" * 40,
        b"II*\0\x08\0\0\0\xff\xff" + b"\xff" * 64,
        b"%!PS-Adobe\n(file) run",
        b"#EXTM3U\nfile:///etc/passwd\n",
    ],
    ids=range(13),
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_hostile_pictures_are_absences(data: bytes) -> None:
    decoded = Decoder("cpu", 1).images([item(data), item(image()), item(data)], IMAGE, [None] * 3)
    assert decoded.kept == [1] and len(decoded.failures) == 2


def test_playlists_are_no_clips() -> None:
    """FFmpeg's own guess would open the files that a playlist names."""
    for data in (b"#EXTM3U\nfile:///etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n"):
        with pytest.raises(MediaError, match="known format"):
            stream_format(data)


def test_a_png_that_does_not_inflate_to_its_size_is_decoded_alone() -> None:
    whole = image_header(image("PNG"))
    assert whole is not None and whole.dali and whole.batch
    short = image_header(png(4, 4, zlib.compress(b"\0" * 13 * 3)))
    assert short is not None and short.dali and not short.batch


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP lossless"])
def test_pictures_cut_short_do_not_reach_dali(kind: str) -> None:
    data = image(kind)
    for end in range(40, len(data) - 4, 37):
        header = image_header(data[:end])
        assert header is None or not header.dali


def test_clips_whose_packets_claim_another_size_do_not_reach_dali() -> None:
    """DALI writes such a frame past the end of its buffer."""
    for codec, container in (("libvpx-vp9", "webm"), ("libvpx", "webm"), ("mjpeg", "avi")):
        data = video(codec, container, "yuvj420p" if codec == "mjpeg" else "yuv420p")
        index = video_index(data, on_gpu=False)
        assert index.dali
        packet = bytes(index.packets[0])
        assert packet_agrees(index.codec, packet, 48, 64)
        assert not packet_agrees(index.codec, packet, 48, 32)
        assert not packet_agrees(index.codec, packet[:4], 48, 64)


def test_a_header_that_claims_hours_of_sound_does_not_reach_dali() -> None:
    data = bytearray(audio("flac", "flac"))
    assert whole_samples(bytes(data)) == 12000
    data[21:26] = b"\x0f" + b"\xff" * 4
    assert whole_samples(bytes(data)) is None
    wav = bytearray(audio())
    assert whole_samples(bytes(wav)) == 12000
    wav[22:24] = b"\xff\xff"
    assert whole_samples(bytes(wav)) is None
    decoded = Decoder("cpu", 1).audios([item(bytes(data)), item(bytes(wav))], AUDIO, [0.0, 0.0])
    assert len(decoded.kept) + len(decoded.failures) == 2


def test_frames_out_of_reach_are_taken_at_key_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip of one long group of pictures would otherwise be decoded from its start for every frame."""
    data = video(times_ms=list(range(0, 1600, 40)), group=10)
    index = video_index(data, on_gpu=False)
    places = index.frames_at([0.0, 0.2, 0.55])
    assert places == [0, 8, 22] and not index.out_of_reach(places)
    # Frame 8 is reached through 9 packets with frame 0, frame 22 from its own key frame, 20: 9 + 3.
    monkeypatch.setattr("m5ds.data.decode.video_index.MAX_DECODED_PIXELS", 48 * 64 * 12)
    assert not index.out_of_reach(places)
    monkeypatch.setattr("m5ds.data.decode.video_index.MAX_DECODED_PIXELS", 48 * 64 * 12 - 1)
    assert index.out_of_reach(places)
    assert pictures_at(index, [0.0, 0.2, 0.55], lambda frame: frame.pts) == [0, 0, 800]
