"""Files made on the spot by a real ffmpeg program, and what that program itself decodes of a file."""

import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
HEIGHT, WIDTH, RATE = 48, 48, 25


def ffmpeg(*arguments: object) -> bytes:
    """Runs ffmpeg; what it wrote to its standard output."""
    command = [FFMPEG, "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


def clip(path: Path, *options: object, frames: int = 40) -> Path:
    """Grey frames: frame i is of level 20 + 5 i, with stripes that move, so that every frame differs from the next."""
    source = f"color=black:size={WIDTH}x{HEIGHT}:rate={RATE},format=gray,geq=lum='20+5*N+3*mod(X/8+N,2)'"
    ffmpeg("-f", "lavfi", "-i", source, "-frames:v", frames, *options, path)
    return path


def copied(path: Path, source: Path, *options: object, late: tuple[object, ...] = ()) -> Path:
    """A stream-copied cut: `options` ahead of the input, `late` behind it."""
    ffmpeg(*options, "-i", source, *late, "-c", "copy", path)
    return path


def frames_of(path: Path) -> tuple[np.ndarray, list[float]]:
    """uint8 [N, H, W, 3] of every frame that ffmpeg shows, and the middle of each as a share of the clip's duration."""
    decode = ("-i", path, "-map", "0:v:0", "-fps_mode", "passthrough")
    pixels = np.frombuffer(ffmpeg(*decode, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"), np.uint8)
    table = ffmpeg(*decode, "-f", "framecrc", "-").decode()
    starts = [int(line.split(",")[2]) for line in table.splitlines() if not line.startswith("#")]
    usual = int(np.median(np.diff(starts))) if len(starts) > 1 else 1
    length = starts[-1] + usual - starts[0]
    middles = [(start + usual / 2 - starts[0]) / length for start in starts]
    return pixels.reshape(-1, HEIGHT, WIDTH, 3), middles


def sound(path: Path, *options: object, seconds: float = 1.234, rate: int = 44100, channels: int = 2) -> Path:
    """A sweep on the left and a tone on the right, with a little noise."""
    both = ("0.3*sin(2*PI*t*(300+50*t))+0.05*random(0)", "0.2*sin(2*PI*t*700)+0.05*random(1)")
    source = f"aevalsrc={'|'.join(both[:channels])}:s={rate}:d={seconds}"
    ffmpeg("-f", "lavfi", "-i", source, *options, path)
    return path


def samples_of(path: Path) -> tuple[np.ndarray, int]:
    """float32 [N]: the mean of the channels of what ffmpeg decodes, and its rate."""
    said = subprocess.run([FFMPEG, "-nostdin", "-i", path], capture_output=True, text=True, timeout=60).stderr
    found = re.search(r"Audio: .*?, (\d+) Hz, (mono|stereo)", said)
    assert found, said
    raw = ffmpeg("-i", path, "-map", "0:a:0", "-f", "f32le", "-")
    return np.frombuffer(raw, np.float32).reshape(-1, {"mono": 1, "stereo": 2}[found[2]]).mean(axis=1), int(found[1])
