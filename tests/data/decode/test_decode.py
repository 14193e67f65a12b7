import threading

import numpy as np
import pytest
import torch
from media_samples import AUDIO_KINDS, IMAGE_KINDS, VIDEO_KINDS, audio, image, item, picture_HWC, video
from PIL import Image

from m5ds.data.decode.audio import log_mel
from m5ds.data.decode.decoder import PIXEL_MEAN, PIXEL_STD, Decoder
from m5ds.data.decode.media import MAX_IMAGE_PIXELS, crop_box
from m5ds.inputs import AudioPatches, ImagePatches, VideoTubes
from m5ds.inputs.media import Crop

IMAGE = ImagePatches(size=32, patch=8)
VIDEO = VideoTubes(frames=4, size=24, patch=8)
AUDIO = AudioPatches(seconds=1.0, num_mels=32)
TIMES = [0.0, 0.3, 0.6, 0.99]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder("cpu", 2)


def levels(values: torch.Tensor) -> torch.Tensor:
    """Standardised pixels back to 0..255."""
    return (values * PIXEL_STD + PIXEL_MEAN) * 255


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_every_picture_format_decodes_to_its_pixels(decoder: Decoder, kind: str) -> None:
    pixels_HWC = picture_HWC(32, 32)
    decoded = decoder.images([item(image(kind, pixels_HWC))], IMAGE, [None])
    assert decoded.kept == [0] and not decoded.failures
    assert decoded.values.shape == (1, 3, 32, 32) and decoded.values.dtype == torch.float32
    expected_3HW = torch.from_numpy(pixels_HWC).permute(2, 0, 1).float()
    if kind == "PNG alpha":
        expected_3HW = expected_3HW * (128 / 255) + 127
    assert (levels(decoded.values[0]) - expected_3HW).abs().mean() < 12


def test_lossless_pictures_of_the_right_size_keep_every_pixel(decoder: Decoder) -> None:
    pixels_HWC = picture_HWC(32, 32)
    decoded = decoder.images([item(image("PNG", pixels_HWC))], IMAGE, [None])
    torch.testing.assert_close(levels(decoded.values[0]), torch.from_numpy(pixels_HWC).permute(2, 0, 1).float())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_applied_before_the_crop(decoder: Decoder, kind: str) -> None:
    exif = Image.Exif()
    exif[274] = 6
    turned = decoder.images([item(image(kind, picture_HWC(32, 48), exif=exif))], IMAGE, [None])
    upright = decoder.images([item(image("PNG", np.rot90(picture_HWC(32, 48), -1)))], IMAGE, [None])
    assert (levels(turned.values) - levels(upright.values)).abs().mean() < 12


def test_a_wide_grey_picture_keeps_its_range(decoder: Decoder) -> None:
    """Converting 16 bits to 8 by clipping turns such pictures white."""
    ramp_HW = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    decoded = decoder.images([item(image("PNG", ramp_HW))], IMAGE, [None])
    torch.testing.assert_close(
        levels(decoded.values[0, 0]), torch.from_numpy(ramp_HW / 257).float(), atol=1.0, rtol=0.0
    )


def test_results_do_not_depend_on_the_batch(decoder: Decoder) -> None:
    """Alone, in a batch with a damaged file, and in reverse order: the same bits, for every medium."""
    pictures = [item(image(kind, picture_HWC(40 + 8 * n, 64, n))) for n, kind in enumerate(IMAGE_KINDS)]
    pictures.insert(3, item(image("JPEG")[:300]))
    crops = [Crop(0.1 * n % 1, 0.3, 0.7, 0.2, flip=bool(n % 2)) for n in range(len(pictures))]
    together = decoder.images(pictures, IMAGE, crops)
    assert together.kept == [n for n in range(len(pictures)) if n != 3]
    backwards = decoder.images(pictures[::-1], IMAGE, crops[::-1])
    assert torch.equal(backwards.values.flip(0), together.values)
    for place, index in enumerate(together.kept):
        alone = decoder.images([pictures[index]], IMAGE, [crops[index]])
        assert torch.equal(alone.values[0], together.values[place])

    clips = [item(video(*kind)) for kind in VIDEO_KINDS]
    together = decoder.videos(clips, VIDEO, crops[: len(clips)], [TIMES] * len(clips))
    for index, clip in enumerate(clips):
        alone = decoder.videos([clip], VIDEO, [crops[index]], [TIMES])
        assert torch.equal(alone.values[0], together.values[index])

    sounds = [item(audio(*kind, seconds=0.3 + 0.2 * n)) for n, kind in enumerate(AUDIO_KINDS)]
    together = decoder.audios(sounds, AUDIO, [0.3] * len(sounds))
    for index, sound in enumerate(sounds):
        assert torch.equal(decoder.audios([sound], AUDIO, [0.3]).values[0], together.values[index])


def test_threads_share_a_decoder(decoder: Decoder) -> None:
    pictures = [item(image(kind)) for kind in IMAGE_KINDS] + [item(image("PNG")[:-30]), item(b"")]
    expected = decoder.images(pictures, IMAGE, [None] * len(pictures))
    failures = []

    def work() -> None:
        for _ in range(5):
            decoded = decoder.images(pictures, IMAGE, [None] * len(pictures))
            if decoded.kept != expected.kept or not torch.equal(decoded.values, expected.values):
                failures.append(decoded.failures)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures


def test_a_crop_is_the_box_resized_and_flipped(decoder: Decoder) -> None:
    pixels_HWC = picture_HWC(64, 96)
    crop = Crop(area=0.4, aspect=0.8, y=0.5, x=0.25)
    box = crop_box(64, 96, crop)
    cut_HWC = pixels_HWC[box.top : box.bottom, box.left : box.right]
    expected_HWC = np.asarray(Image.fromarray(cut_HWC).resize((32, 32), Image.Resampling.BILINEAR), np.float32)
    flipped = Crop(crop.area, crop.aspect, crop.y, crop.x, flip=True)
    decoded = decoder.images([item(image("PNG", pixels_HWC))] * 2, IMAGE, [crop, flipped])
    assert (levels(decoded.values[0]).permute(1, 2, 0).numpy() - expected_HWC).__abs__().mean() < 1.5
    assert torch.equal(decoded.values[1], decoded.values[0].flip(-1))


@pytest.mark.parametrize("sides", [(1, 1), (1, 500), (37, 91), (4000, 3)])
def test_a_crop_box_lies_in_the_picture_and_keeps_its_share(sides: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for area, aspect, y, x in rng.random((200, 4)):
        box = crop_box(*sides, Crop(area, aspect, y, x))
        assert 0 <= box.top < box.bottom <= sides[0] and 0 <= box.left < box.right <= sides[1]
    assert crop_box(*sides, None).bottom - crop_box(*sides, None).top == min(sides)
    box = crop_box(300, 300, Crop(0.0, 0.5, 0.9, 0.1))
    assert (box.bottom - box.top) * (box.right - box.left) == pytest.approx(0.35 * 90000, rel=0.02)


def test_no_items_give_empty_tensors_of_the_right_shape(decoder: Decoder) -> None:
    assert decoder.images([], IMAGE, []).values.shape == (0, 3, 32, 32)
    assert decoder.videos([], VIDEO, [], []).values.shape == (0, 4, 3, 24, 24)
    assert decoder.audios([], AUDIO, []).values == []
    all_bad = decoder.videos([item(b"junk")], VIDEO, [None], [TIMES])
    assert all_bad.values.shape == (0, 4, 3, 24, 24) and all_bad.kept == []


def test_failures_name_product_member_and_reason(decoder: Decoder) -> None:
    decoded = decoder.images(
        [item(b"<html>not found</html>", "a.jpg"), item(image()), item(b"", "c.png")], IMAGE, [None] * 3
    )
    assert decoded.kept == [1]
    assert [(bad.product_id, bad.member) for bad in decoded.failures] == [("product", "a.jpg"), ("product", "c.png")]
    assert "known format" in decoded.failures[0].reason and decoded.failures[1].reason == "the file is empty"


def test_a_bomb_is_refused_by_its_header(decoder: Decoder) -> None:
    side = int(MAX_IMAGE_PIXELS**0.5) + 1
    bomb = image("PNG", np.zeros((side, side), np.uint8))
    assert len(bomb) < 200_000
    decoded = decoder.images([item(bomb)], IMAGE, [None])
    assert "more than" in decoded.failures[0].reason


UNEVEN_MS = [0, 20, 40, 340, 360, 380, 400, 900, 940, 980, 1020, 1060]


@pytest.mark.parametrize("kind", VIDEO_KINDS)
@pytest.mark.parametrize("uneven", [False, True])
def test_frames_are_those_shown_at_the_given_times(decoder: Decoder, kind: tuple[str, str, str], uneven: bool) -> None:
    """Whatever decoder takes the clip: constant and variable frame rate, B frames, ends of the clip."""
    if uneven and kind[1] == "avi":
        pytest.skip("AVI has no timestamps")
    times_ms = UNEVEN_MS if uneven else list(range(0, 480, 40))
    last = 1060 if uneven else 440
    moments_ms = [10, 345, 905, 1065] if uneven else [0, 130, 239, 479]
    decoded = decoder.videos(
        [item(video(*kind, times_ms=times_ms, level_step=20))], VIDEO, [None], [[ms / (last + 40) for ms in moments_ms]]
    )
    assert not decoded.failures
    shown = [max(n for n, time in enumerate(times_ms) if time <= ms) for ms in moments_ms]
    grey = levels(decoded.values[0, :, 0, 12, 16])
    torch.testing.assert_close(grey, torch.tensor([n * 20.0 for n in shown]), atol=4.0, rtol=0.0)


def test_a_turned_clip_is_shown_upright(decoder: Decoder) -> None:
    """FFmpeg's display rotation is counter-clockwise, so a bar on the left comes to the bottom after a quarter turn."""
    for turn, (row, column) in {0: (12, 0), 90: (23, 12), 180: (12, 23), -90: (0, 12)}.items():
        clip = video("libx264", "mp4", width=48, turn=turn)
        values = decoder.videos([item(clip)], VIDEO, [None], [TIMES]).values
        assert levels(values[0, 0, 0])[row, column] > 150, turn
        assert (levels(values[0, 0, 0]) > 150).sum() < 150, turn


def test_one_frame_fills_the_clip(decoder: Decoder) -> None:
    values = decoder.videos([item(video(times_ms=[0]))], VIDEO, [None], [TIMES]).values
    assert torch.equal(values[0, 0], values[0, 3])


@pytest.mark.parametrize("kind", AUDIO_KINDS)
def test_a_tone_rings_in_its_mel_band(decoder: Decoder, kind: tuple[str, str]) -> None:
    decoded = decoder.audios([item(audio(*kind, seconds=0.6, hertz=1000.0))], AUDIO, [0.0])
    mel = decoded.values[0]
    assert mel.shape[0] == 32 and mel.shape[1] == 48  # 37.5 steps begun, in whole patches of 16
    top = 2595 * np.log10(1 + 8000 / 700)
    band = round(2595 * np.log10(1 + 1000 / 700) / top * 33) - 1
    assert abs(int(mel[:, 5:30].mean(dim=1).argmax()) - band) <= 1


def test_decoders_agree_on_a_sound(decoder: Decoder) -> None:
    """FLAC goes to DALI; the same samples in Matroska go to PyAV."""
    one, other = (audio("flac", container, seconds=0.7) for container in ("flac", "matroska"))
    decoded = decoder.audios([item(one), item(other)], AUDIO, [0.0, 0.0])
    torch.testing.assert_close(decoded.values[0], decoded.values[1], atol=1e-3, rtol=0.0)


def test_a_window_starts_where_it_is_told(decoder: Decoder) -> None:
    """Two seconds, silent but for the end: a window of one second hears it only when it starts late enough."""
    rate = 16000
    silence = np.zeros(2 * rate)
    silence[-rate // 4 :] = np.sin(np.arange(rate // 4))
    for start, hears in ((0.0, False), (0.99, True)):
        most = AUDIO.max_steps * AUDIO.hop
        first = int(start * (2 * rate - most))
        direct = log_mel(torch.from_numpy(silence[first : first + most]).float(), AUDIO)
        assert bool(direct.std() > 0.5) is hears
    late = decoder.audios([item(audio(seconds=2.0))] * 2, AUDIO, [0.0, 0.5])
    assert late.values[0].shape == (32, AUDIO.max_steps)


def test_sounds_are_standardised_and_silence_is_finite(decoder: Decoder) -> None:
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, 16000)).float()
    mel = log_mel(noise, AUDIO)
    assert abs(float(mel.mean())) < 0.05 and abs(float(mel.std()) - 1) < 0.05
    silent = decoder.audios([item(audio(amplitude=0.0)), item(audio(seconds=0.01))], AUDIO, [0.0, 0.0])
    assert silent.kept == [0, 1] and all(torch.isfinite(mel).all() for mel in silent.values)
    assert silent.values[0].abs().max() < 1e-3
    assert silent.values[1].shape == (32, AUDIO.patch_steps)


def test_sound_of_a_clip_is_read_and_a_clip_without_one_is_an_absence(decoder: Decoder) -> None:
    decoded = decoder.audios([item(audio("aac", "mp4")), item(video())], AUDIO, [0.0, 0.0])
    assert decoded.kept == [0] and decoded.failures[0].reason == "there is no sound stream"
    decoded = decoder.videos([item(audio("aac", "mp4"))], VIDEO, [None], [TIMES])
    assert decoded.failures[0].reason == "there is no video stream"
