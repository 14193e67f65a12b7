"""What the GPU decoders make of a file against what the CPU decoders make of it. Never run where written."""

import pytest
import torch
from media_samples import IMAGE_KINDS, VIDEO_KINDS, image, item, video

from m5ds.data.decode.decoder import Decoder
from m5ds.inputs import ImagePatches, VideoTubes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

MEAN_DIFFERENCE = 0.1
"""In standardised pixels (a standard deviation is 64 of 255 levels): two JPEG or H.264 decoders differ by rounding."""


@pytest.fixture(scope="module")
def decoders():
    return Decoder("cpu"), Decoder("cuda")


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_pictures_agree(decoders, kind):
    spec, items = ImagePatches(size=64, patch=16), [item(image(kind))]
    on_cpu, on_gpu = (decoder.images(items, spec, [None]) for decoder in decoders)
    assert on_gpu.kept == on_cpu.kept
    assert on_gpu.values.device.type == "cuda"
    assert (on_gpu.values.cpu() - on_cpu.values).abs().mean() < MEAN_DIFFERENCE


@pytest.mark.parametrize("kind", VIDEO_KINDS, ids=lambda kind: kind[0])
def test_clips_agree(decoders, kind):
    spec, items = VideoTubes(frames=4, size=32, patch=16), [item(video(*kind))]
    times = [[0.1, 0.3, 0.6, 0.9]]
    on_cpu, on_gpu = (decoder.videos(items, spec, [None], times) for decoder in decoders)
    assert on_gpu.kept == on_cpu.kept == [0]
    assert (on_gpu.values.cpu() - on_cpu.values).abs().mean() < MEAN_DIFFERENCE
