"""Sizes of the input kinds: what one product's rows are, at the paper's defaults and at their limits."""

import pytest

from m5ds.inputs import (
    AudioPatches,
    FeatureRows,
    ImagePatches,
    RegionFeatures,
    TablePairs,
    TextTokens,
    VideoTubes,
)


@pytest.mark.parametrize(
    ("spec", "dim", "max_rows"),
    [
        # 16 x 16 RGB pixels; a grid of 14 x 14.
        (ImagePatches(), 768, 196),
        (ImagePatches(size=48, patch=8), 192, 36),
        # Two frames of 16 x 16 RGB pixels; 6 pairs of frames, a grid of 7 x 7.
        (VideoTubes(), 1536, 294),
        (VideoTubes(frames=9, size=32, patch=8, tube_frames=3), 576, 48),
        # 12 s of 16 kHz in hops of 256: 750 steps, 46 whole patches of 16; 5 patches over 80 mels.
        (AudioPatches(), 256, 230),
        # 0.5 s: 31 steps, three whole patches of 8; 4 patches over 24 mels.
        (AudioPatches(seconds=0.5, num_mels=24, patch_mels=6, patch_steps=8), 48, 12),
        (TextTokens(), None, 36),
        (TablePairs(), None, 64),
        (RegionFeatures(), 2048, 36),
        (FeatureRows(), 1024, 12),
        (TextTokens(max_tokens=5), None, 5),
        (TablePairs(max_tokens=7), None, 7),
        (RegionFeatures(max_regions=3, dim=8), 8, 3),
        (FeatureRows(rows=2, dim=6), 6, 2),
    ],
)
def test_a_row_has_dim_features_and_a_product_at_most_max_rows(spec, dim, max_rows):
    assert (spec.dim, spec.max_rows) == (dim, max_rows)


def test_sound_is_measured_in_whole_patches_of_steps():
    assert AudioPatches().max_steps == 736
    assert AudioPatches(seconds=0.256).max_steps == 16, "one patch of 16 steps of 256 samples at 16 kHz"


def test_defaults_are_those_of_the_paper():
    """PAPER.md: 36 tokens of title, 36 regions, 12 frames, 80 mels; the sizes of raw media are ours."""
    assert (VideoTubes().frames, VideoTubes().tube_frames, VideoTubes().size, VideoTubes().patch) == (12, 2, 112, 16)
    sound = AudioPatches()
    assert (sound.sample_rate, sound.n_fft, sound.hop, sound.num_mels) == (16000, 1024, 256, 80)
    assert (sound.seconds, sound.patch_mels, sound.patch_steps) == (12.0, 16, 16)
    assert TextTokens().use_description is True
    assert TablePairs().max_tokens_per_pair == 24


@pytest.mark.parametrize(
    "make",
    [
        lambda: ImagePatches(size=0),
        lambda: ImagePatches(patch=0),
        lambda: ImagePatches(size=24, patch=16),
        lambda: ImagePatches(size=-16),
        lambda: VideoTubes(size=24),
        lambda: VideoTubes(frames=3),
        lambda: VideoTubes(tube_frames=0),
        lambda: AudioPatches(num_mels=81),
        lambda: AudioPatches(seconds=0.0),
        lambda: AudioPatches(seconds=-1.0),
        lambda: AudioPatches(seconds=0.25),
        lambda: AudioPatches(patch_mels=0),
        lambda: AudioPatches(num_mels=0),
        lambda: VideoTubes(patch=0),
        lambda: VideoTubes(frames=0),
        lambda: VideoTubes(size=-112),
    ],
)
def test_sizes_that_hold_no_whole_row_are_refused(make):
    with pytest.raises(ValueError, match=r"must be a positive multiple of|is shorter than one patch"):
        make()


@pytest.mark.parametrize("make", [lambda: ImagePatches(size=1, patch=1), lambda: VideoTubes(frames=2, size=16)])
def test_one_row_is_legal(make):
    assert make().max_rows == 1


@pytest.mark.parametrize(
    ("seconds", "max_steps", "max_rows"),
    # Steps begun after 256 samples each; a patch has 16 of them, and there are 5 patches of mels.
    [(0.256, 16, 5), (0.2561, 16, 5), (0.511, 16, 5), (0.512, 32, 10), (1.0, 48, 15), (12.0, 736, 230)],
)
def test_a_sound_of_any_length_is_whole_patches(seconds, max_steps, max_rows):
    spec = AudioPatches(seconds=seconds)
    assert (spec.max_steps, spec.max_rows) == (max_steps, max_rows)


def test_a_window_of_no_time_is_refused_however_short_a_patch():
    for seconds in (0.0, -1.0):
        with pytest.raises(ValueError, match=r"audio seconds=.* is shorter than one patch of 1 steps"):
            AudioPatches(seconds=seconds, patch_steps=1)
    assert AudioPatches(seconds=0.016, patch_steps=1).max_steps == 1
    with pytest.raises(ValueError, match="image size, patch: 24 must be a positive multiple of 16"):
        ImagePatches(size=24)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda size: AudioPatches(hop=size), "audio hop"),
        (lambda size: AudioPatches(patch_steps=size), "audio patch_steps"),
        (lambda size: TextTokens(max_tokens=size), "text max_tokens"),
        (lambda size: TablePairs(max_tokens=size), "table max_tokens"),
        (lambda size: TablePairs(max_tokens_per_pair=size), "table max_tokens_per_pair"),
        (lambda size: RegionFeatures(max_regions=size), "region max_regions"),
        (lambda size: RegionFeatures(dim=size), "region dim"),
        (lambda size: FeatureRows(rows=size), "feature rows"),
        (lambda size: FeatureRows(dim=size), "feature dim"),
    ],
)
def test_a_size_below_one_is_refused_by_name(make, name):
    """A text of no tokens was an IndexError in a loader's thread, a hop of 0 a ZeroDivisionError."""
    make(1)
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got {size}"):
            make(size)
