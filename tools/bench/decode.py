"""Files decoded per CPU second on one core: `tools/bench/decode.py [--csv docs/measurements/decode.csv]`.

Synthetic pictures, clips and sounds with real codecs at the quickstart's sizes and at the paper's, through `Decoder` as
training calls it (batches of 48, random crops) and through the plain loop that a user would write with Pillow or PyAV.
CPU seconds (`time.process_time`, all threads) rather than wall time, so that a busy machine distorts little.
"""

import argparse
import csv
import io
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import av
import numpy as np
from PIL import Image

from m5ds.data.decode.decoder import Decoder
from m5ds.data.decode.media import crop_box
from m5ds.inputs import AudioPatches, ImagePatches, VideoTubes
from m5ds.inputs.media import Crop, MediaItem

BATCH = 48


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 [H, W, 3] with the spectrum of a photograph rather than of noise: blurred blocks and some grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height), 3)
    grain = rng.normal(0, 4, (height, width, 1))
    return np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)


def image(form: str, height: int, width: int, seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(height, width, seed)).save(file, form, quality=90)
    return file.getvalue()


def video(codec: str, container: str, height: int, width: int, num_frames: int, seed: int) -> bytes:
    file = io.BytesIO()
    wide = picture(height, width + num_frames, seed)
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25, options={"threads": "2"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(wide[:, number : number + width]), format="rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def audio(codec: str, container: str, seconds: float, seed: int) -> bytes:
    file = io.BytesIO()
    wave = np.random.default_rng(seed).normal(0, 0.1, (1, int(seconds * 44100))).astype(np.float32)
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(wave, "fltp", "mono")
        frame.sample_rate = 44100
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def plain_image(data: bytes, size: int, crop: Crop) -> np.ndarray:
    opened = Image.open(io.BytesIO(data)).convert("RGB")
    box = crop_box(opened.height, opened.width, crop)
    cut = opened.resize((size, size), Image.Resampling.BILINEAR, (box.left, box.top, box.right, box.bottom))
    return np.asarray(cut, np.float32)


def plain_video(data: bytes, spec: VideoTubes) -> list[np.ndarray]:
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))
    chosen = [frames[number * len(frames) // spec.frames] for number in range(spec.frames)]
    return [frame.to_ndarray(format="rgb24", width=spec.size, height=spec.size) for frame in chosen]


def per_cpu_second(run: Callable[[], object], num_files: int, repeats: int) -> tuple[float, float, float]:
    """20th percentile, median and 80th percentile over the repeats."""
    run()
    rates = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        rates.append(num_files / (time.process_time() - start))
    marks = statistics.quantiles(rates, n=5)
    return marks[0], statistics.median(rates), marks[3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    decoder = Decoder("cpu", 1)
    rng = np.random.default_rng(0)
    crops = [Crop(*rng.random(4), flip=bool(number % 2)) for number in range(BATCH)]
    rows: list[list[object]] = []
    place = [f"{platform.machine()} x {os.cpu_count()}", version("nvidia-dali-cuda120"), version("av"), date.today()]

    def measure(case: str, provider: str, run: Callable[[], object], num_files: int) -> None:
        low, middle, high = per_cpu_second(run, num_files, arguments.repeats)
        rows.append([case, provider, round(low, 1), round(middle, 1), round(high, 1), *place])
        print(f"{case:34} {provider:8} {middle:9.1f} files per CPU second (p20 {low:.1f}, p80 {high:.1f})", flush=True)

    def items(make: Callable[[int], bytes], num_distinct: int, num: int) -> list[MediaItem]:
        distinct = [make(seed) for seed in range(num_distinct)]
        return [MediaItem(str(number), "sample", distinct[number % num_distinct]) for number in range(num)]

    for form in ("JPEG", "PNG", "WEBP"):
        for height, width, size in ((64, 64, 48), (480, 640, 224)):
            files = items(lambda seed: image(form, height, width, seed), 8, BATCH)  # noqa: B023
            spec = ImagePatches(size=size, patch=16)
            assert decoder.images(files, spec, crops).kept == list(range(BATCH))
            case = f"image {form} {width}x{height} to {size}"
            measure(case, "m5ds", lambda: decoder.images(files, spec, crops), BATCH)  # noqa: B023
            plain = [(file.data, size, crop) for file, crop in zip(files, crops, strict=True)]
            measure(case, "Pillow", lambda: [plain_image(*each) for each in plain], BATCH)  # noqa: B023
    clips = (
        ("libvpx-vp9", "webm", 64, 16, VideoTubes(frames=4, size=32)),
        ("libx264", "mp4", 64, 16, VideoTubes(frames=4, size=32)),
        ("libvpx-vp9", "webm", 240, 100, VideoTubes(frames=12, size=224)),
        ("libx264", "mp4", 240, 100, VideoTubes(frames=12, size=224)),
    )
    for codec, container, side, num_frames, spec in clips:
        num = BATCH if side < 100 else 8
        files = items(lambda seed: video(codec, container, side, side, num_frames, seed), 2, num)  # noqa: B023
        times = [[(number + 0.5) / spec.frames for number in range(spec.frames)]] * num
        assert decoder.videos(files, spec, crops[:num], times).kept == list(range(num))
        case = f"video {codec} {side}px {num_frames}f, {spec.frames} to {spec.size}"
        measure(case, "m5ds", lambda: decoder.videos(files, spec, crops[: len(files)], times), num)  # noqa: B023
        measure(case, "PyAV", lambda: [plain_video(file.data, spec) for file in files], num)  # noqa: B023
    for codec, container in (("pcm_s16le", "wav"), ("flac", "flac"), ("libmp3lame", "mp3"), ("aac", "mp4")):
        for seconds, spec in ((1.0, AudioPatches(seconds=1.0, num_mels=64)), (12.0, AudioPatches())):
            files = items(lambda seed: audio(codec, container, seconds, seed), 2, 16)  # noqa: B023
            starts = [0.0] * len(files)
            assert decoder.audios(files, spec, starts).kept == list(range(len(files)))
            measure(f"audio {codec} {seconds:.0f} s", "m5ds", lambda: decoder.audios(files, spec, starts), 16)  # noqa: B023
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        with arguments.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["case", "provider", "p20", "p50", "p80", "cpu", "dali", "av", "date"])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
