import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m5ds.batch import ModalityRows
from m5ds.inputs import AudioPatches, FeatureRows, ImagePatches, RegionFeatures, TablePairs, TextTokens, VideoTubes
from m5ds.inputs.base import InputKind
from m5ds.inputs.media import MediaError
from m5ds.inputs.rows import ProductRows, assemble

IMAGE = ImagePatches(size=8, patch=4)
VIDEO = VideoTubes(frames=4, size=8, patch=4, tube_frames=2)
AUDIO = AudioPatches(seconds=1.0, num_mels=8, patch_mels=4, patch_steps=2)
REGIONS = RegionFeatures(max_regions=3, dim=5)
FEATURES = FeatureRows(rows=4, dim=6)


def assembled(products: list[ProductRows | None], spec: InputKind) -> ModalityRows:
    return assemble(products, spec.dim, spec.has_geometry)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def test_image_rows_are_patches_in_row_major_order() -> None:
    values_K3HW = torch.arange(2 * 3 * 64.0).reshape(2, 3, 8, 8)
    made = IMAGE.cut(values_K3HW)
    assert len(made) == 2 and made[0].values_NF.shape == (IMAGE.max_rows, IMAGE.dim)
    assert torch.equal(made[1].values_NF[1], values_K3HW[1, :, 0:4, 4:8].flatten())
    assert torch.equal(made[1].values_NF[2], values_K3HW[1, :, 4:8, 0:4].flatten())
    assert made[0].position_N.tolist() == made[0].unit_N.tolist() == [0, 1, 2, 3]


def test_video_rows_are_tubes_in_time_then_row_major_order() -> None:
    values_KT3HW = torch.arange(4 * 3 * 64.0).reshape(1, 4, 3, 8, 8)
    made = VIDEO.cut(values_KT3HW)[0]
    assert made.values_NF.shape == (VIDEO.max_rows, VIDEO.dim)
    assert torch.equal(made.values_NF[6], values_KT3HW[0, 2:4, :, 4:8, 0:4].flatten())
    assert VIDEO.time_step(made.position_N).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_audio_rows_are_ragged_and_time_major() -> None:
    mels = [torch.arange(8 * 6.0).reshape(8, 6), torch.zeros(8, 2)]
    long, short = AUDIO.cut(mels)
    assert long.values_NF.shape == (6, AUDIO.dim) and short.values_NF.shape == (2, AUDIO.dim)
    assert torch.equal(long.values_NF[3], mels[0][4:8, 2:4].flatten())
    assert AUDIO.time_step(long.position_N).tolist() == [0, 0, 1, 1, 2, 2]


def test_rows_without_time_have_no_time_step() -> None:
    with pytest.raises(ValueError, match="image_patches has no time steps"):
        IMAGE.time_step(torch.arange(3))
    assert FEATURES.time_step(torch.arange(3)).tolist() == [0, 1, 2]


def test_text_is_cut_but_keeps_its_special_tokens() -> None:
    made = TextTokens(max_tokens=5).rows_of_tokens([7, 8, 9, 10], cls_id=1, sep_id=2)
    assert made.token_N.tolist() == [1, 7, 8, 9, 2] and made.unit_N.tolist() == [-1, 1, 2, 3, -1]
    assert TextTokens(max_tokens=5).rows_of_tokens([7], cls_id=1, sep_id=2).token_N.tolist() == [1, 7, 2]
    assert (
        len(TextTokens(max_tokens=36).rows_of_tokens(list(range(99)), cls_id=1, sep_id=2).token_N)
        == TextTokens().max_rows
    )


@pytest.mark.parametrize(
    ("max_tokens", "tokens", "units"), [(1, [1], [-1]), (2, [1, 2], [-1, -1]), (3, [1, 7, 2], [-1, 1, -1])]
)
def test_the_shortest_texts_are_legal(max_tokens: int, tokens: list[int], units: list[int]) -> None:
    made = TextTokens(max_tokens=max_tokens).rows_of_tokens([7, 8, 9], cls_id=1, sep_id=2)
    assert made.token_N.tolist() == tokens and made.unit_N.tolist() == units
    assert made.position_N.tolist() == list(range(len(tokens))) and not made.part_N.any()
    assert made.token_N.dtype == torch.int64


PAIRS = [([1, 2], [3]), ([4], [5, 6, 7, 8]), ([9], [10]), ([11], [])]


def test_table_pairs_are_whole_or_left_out() -> None:
    made = TablePairs(max_tokens=6, max_tokens_per_pair=4).rows_of_pairs(PAIRS)
    assert made.token_N.tolist() == [1, 2, 3, 9, 10, 11]
    assert made.unit_N.tolist() == [0, 0, 0, 2, 2, 3] and made.part_N.tolist() == [0, 0, 1, 0, 1, 0]
    assert TablePairs(max_tokens=6, max_tokens_per_pair=4).rows_of_pairs(PAIRS[1:2]) is None
    assert TablePairs(max_tokens=6, max_tokens_per_pair=4).rows_of_pairs([]) is None


def test_a_pair_may_be_as_long_as_both_limits() -> None:
    made = TablePairs(max_tokens=5, max_tokens_per_pair=5).rows_of_pairs(PAIRS[1:2])
    assert made.token_N.tolist() == [4, 5, 6, 7, 8] and made.token_N.dtype == torch.int64
    assert TablePairs(max_tokens=4, max_tokens_per_pair=5).rows_of_pairs(PAIRS[1:2]) is None
    assert TablePairs(max_tokens=5, max_tokens_per_pair=4).rows_of_pairs(PAIRS[1:2]) is None


def test_a_pair_keeps_its_unit_in_any_order() -> None:
    made = TablePairs(max_tokens=64, max_tokens_per_pair=24).rows_of_pairs(PAIRS, order=[2, 0, 3, 1])
    assert made.unit_N.tolist() == [2, 2, 0, 0, 0, 3, 1, 1, 1, 1, 1] and made.position_N.tolist() == list(range(11))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 99), max_size=5), st.lists(st.integers(0, 99), max_size=9))))
def test_tables_never_exceed_their_tokens(pairs: list[tuple[list[int], list[int]]]) -> None:
    made = TablePairs(max_tokens=16, max_tokens_per_pair=8).rows_of_pairs(pairs)
    if made is None:
        assert all(not 0 < len(key) + len(value) <= 8 for key, value in pairs)
        return
    assert len(made.token_N) <= TablePairs(max_tokens=16).max_rows
    for unit in made.unit_N.unique().tolist():
        assert made.token_N[made.unit_N == unit].tolist() == pairs[unit][0] + pairs[unit][1]


def test_feature_rows_are_cut_to_the_spec() -> None:
    made = FEATURES.parse(npy(np.arange(36, dtype=np.float16).reshape(6, 6)))
    assert made.values_NF.dtype == torch.float32 and made.values_NF.shape == (4, 6)
    fortran = FEATURES.parse(npy(np.asfortranarray(np.arange(12.0).reshape(2, 6))))
    assert fortran.values_NF.tolist() == np.arange(12.0).reshape(2, 6).tolist()


def test_a_feature_files_rows_are_its_own_in_any_version_and_number_format() -> None:
    """NumPy writes version 2 where a header is long; integers and doubles are numbers too."""
    values = np.arange(12).reshape(2, 6)
    for version in ((1, 0), (2, 0)):
        file = io.BytesIO()
        np.lib.format.write_array(file, values.astype(np.float64), version)
        made = FEATURES.parse(file.getvalue())
        assert made.values_NF.tolist() == values.tolist() and made.position_N.tolist() == made.unit_N.tolist() == [0, 1]
    for dtype in (np.uint8, np.int16, np.float16, np.float64):
        assert FEATURES.parse(npy(values.astype(dtype))).values_NF.tolist() == values.tolist()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 5)), r"shape \(2, 5\), expected \(rows, 6\)"),
        (np.zeros(6), r"shape \(6,\)"),
        (np.zeros((1, 2, 6)), r"shape \(1, 2, 6\)"),
        (np.zeros((6, 6, 1)), r"shape \(6, 6, 1\)"),
        (np.zeros((0, 6)), r"shape \(0, 6\)"),
        (np.zeros((2, 6), bool), "holds bool, expected numbers"),
        (np.zeros((2, 6), complex), "expected numbers"),
        (np.full((2, 6), 1e39), "NaN or infinite"),
        (np.full((2, 6), -np.inf), "NaN or infinite"),
        (np.array([{}], dtype=object), "cut short"),
    ],
)
def test_wrong_feature_files_say_what_is_wrong(array: np.ndarray, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        FEATURES.parse(npy(array))


def test_a_feature_file_may_not_lie_about_its_size() -> None:
    whole = npy(np.zeros((2, 6)))
    assert len(FEATURES.parse(whole).position_N) == 2
    assert len(FEATURES.parse(whole + b"more").position_N) == 2
    negative = whole.replace(b"(2, 6)", b"(-2,6)")
    for lying in (whole[:-1], whole.replace(b"(2, 6)", b"(3, 6)"), negative, negative.replace(b"(-2,6)", b"(-2,-6)")):
        with pytest.raises(MediaError, match="is cut short|is no .npy file"):
            FEATURES.parse(lying)


def test_an_array_may_unpack_to_256_mib() -> None:
    """The archive's directory says to how many bytes a member unpacks, 24 bytes behind the start of its entry."""
    data = bytearray(npz(**GOOD))
    place = data.index(b"PK\x01\x02") + 24
    data[place : place + 4] = (256 * 2**20).to_bytes(4, "little")
    assert REGIONS.parse(bytes(data)).values_NF.tolist() == GOOD["features"].tolist()
    data[place : place + 4] = (256 * 2**20 + 1).to_bytes(4, "little")
    with pytest.raises(MediaError, match="region file: features unpacks to 268435457 bytes"):
        REGIONS.parse(bytes(data))


def test_regions_are_cut_to_the_most_confident_and_may_be_fewer() -> None:
    features = np.arange(20, dtype=np.float32).reshape(4, 5)
    boxes = np.array([[0, 0, 1, 2]] * 4)
    for count in (1, 3, 4):
        made = REGIONS.parse(npz(features=features[:count], boxes=boxes[:count], size=np.array([4, 2])))
        assert made.values_NF.tolist() == features[: min(count, 3)].tolist()
        assert made.geometry_N5.tolist() == [[0, 0, 0.5, 0.5, 0.25]] * min(count, 3)
        assert made.position_N.tolist() == made.unit_N.tolist() == list(range(min(count, 3)))


def test_region_geometry_is_a_fraction_of_the_picture() -> None:
    boxes = np.array([[10, 20, 60, 70], [0, 0, 100, 200], [1, 1, 2, 2], [0, 0, 1, 1]], np.float32)
    data = npz(features=np.ones((4, 5), np.float32), boxes=boxes, size=np.array([200, 100]))
    made = REGIONS.parse(data)
    assert made.values_NF.shape == (3, 5)
    expected = torch.tensor([[0.1, 0.1, 0.6, 0.35, 0.125], [0.0, 0.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(made.geometry_N5[:2], expected)


GOOD = {"features": np.ones((2, 5), np.float32), "boxes": np.ones((2, 4)), "size": np.array([4, 4])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.ones((2, 4), np.float32)}, r"shape \(2, 4\)"),
        ({"features": np.ones((0, 5), np.float32), "boxes": np.ones((0, 4))}, r"shape \(0, 5\)"),
        ({"boxes": np.ones((3, 4))}, "boxes"),
        ({"boxes": np.ones((2, 5))}, r"boxes \(2, 5\) and size \(2,\), expected \(2, 4\) and \(2,\)"),
        ({"boxes": np.full((2, 4), np.inf)}, "boxes holds NaN or infinite"),
        ({"features": np.ones(5, np.float32)}, r"shape \(5,\)"),
        ({"features": np.ones((2, 5, 1), np.float32)}, r"shape \(2, 5, 1\)"),
        ({"size": np.array([4, 4, 4])}, r"size \(3,\)"),
        ({"size": np.array([0, 4])}, "positive"),
        ({"size": np.array([4, 0])}, "positive"),
        ({"size": np.array([4, -1])}, "positive"),
        ({"size": np.array([np.inf, 4])}, "positive"),
        ({"size": np.array([4, np.inf])}, "positive"),
        ({"size": np.array([4, np.nan])}, "positive"),
        ({"features": np.full((2, 5), np.nan, np.float32)}, "NaN"),
        ({"features": np.array([["a"] * 5] * 2)}, "expected numbers"),
    ],
)
def test_wrong_region_files_say_what_is_wrong(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(MediaError, match=message):
        REGIONS.parse(npz(**{**GOOD, **change}))


def test_a_region_file_without_one_of_its_arrays_names_them_all() -> None:
    data = npz(**{name: array for name, array in GOOD.items() if name != "size"})
    with pytest.raises(MediaError, match="region file lacks one of features, boxes, size"):
        REGIONS.parse(data)


def test_damaged_feature_files_raise_only_feature_file_errors() -> None:
    lying = npy(np.zeros((2, 6))).replace(b"(2, 6)", b"(9999999999, 6)"[:6].ljust(6))
    for data in (b"", b"junk", npy(np.zeros((2, 6)))[:-8], lying, npy(np.zeros(6)), npy(np.array([{}], dtype=object))):
        with pytest.raises(MediaError):
            FEATURES.parse(data)
    whole = npz(**GOOD)
    rng = np.random.default_rng(0)
    for _ in range(60):
        changed = bytearray(whole)
        changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
        for data in (bytes(changed), whole[: rng.integers(len(whole))]):
            try:
                REGIONS.parse(data)
            except MediaError:
                continue


def test_assembled_rows_are_in_product_order_with_zero_for_the_absent() -> None:
    made = AUDIO.cut([torch.ones(8, 4), torch.zeros(8, 2)])
    packed = assembled([None, made[0], None, made[1]], AUDIO)
    assert packed.length_B.tolist() == [0, 4, 0, 2] and packed.num_rows == 6
    assert packed.values_NF.sum() == 4 * AUDIO.dim and packed.values_NF[4:].sum() == 0
    assert packed.token_N is None and packed.geometry_N5 is None
    assert packed.position_N.tolist() == packed.unit_N.tolist() == [0, 1, 2, 3, 0, 1]
    assert packed.part_N.tolist() == [0] * 6 and packed.length_B.dtype == torch.int64


def test_every_field_of_the_products_is_assembled() -> None:
    pairs = TablePairs(max_tokens=9, max_tokens_per_pair=9).rows_of_pairs(PAIRS[:1])
    packed = assembled([pairs, None, pairs], TablePairs())
    assert packed.token_N.tolist() == [1, 2, 3] * 2 and packed.part_N.tolist() == [0, 0, 1] * 2
    assert packed.unit_N.tolist() == [0] * 6 and packed.position_N.tolist() == [0, 1, 2] * 2
    assert packed.values_NF is None and packed.geometry_N5 is None
    regions = REGIONS.parse(npz(**GOOD))
    packed = assembled([None, regions], REGIONS)
    assert torch.equal(packed.geometry_N5, regions.geometry_N5) and packed.length_B.tolist() == [0, 2]


@pytest.mark.parametrize("spec", [IMAGE, AUDIO, REGIONS, TextTokens(), TablePairs()])
def test_a_modality_that_nobody_has_gives_empty_rows(spec: object) -> None:
    packed = assembled([None, None], spec)
    assert packed.length_B.tolist() == [0, 0] and packed.num_rows == 0
    assert (packed.token_N is None) is (spec.dim is not None)
    assert packed.values_NF is None or packed.values_NF.shape == (0, spec.dim)
    assert (packed.geometry_N5 is not None) is isinstance(spec, RegionFeatures)
