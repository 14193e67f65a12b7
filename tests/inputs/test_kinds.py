"""What every kind promises, and how a configuration chooses one."""

import json
import pickle

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from m5ds.inputs import (
    AudioPatches,
    FeatureRows,
    ImagePatches,
    InputSpec,
    RegionFeatures,
    TablePairs,
    TextTokens,
    VideoTubes,
    kinds,
)
from m5ds.inputs.base import RandomTokens, read_each
from m5ds.inputs.media import MediaError, MediaItem
from m5ds.inputs.rows import assemble, numbered

ALL = [AudioPatches(), FeatureRows(), ImagePatches(), RegionFeatures(dim=4), TablePairs(), TextTokens(), VideoTubes()]
ADAPTER = TypeAdapter(dict[str, InputSpec])
TOKENS = RandomTokens(vocab_size=30, first=5, cls=2)


def test_every_kind_is_registered_under_the_name_that_it_has_in_yaml():
    assert kinds() == {spec.kind: type(spec) for spec in ALL}
    kinds().clear()
    assert len(kinds()) == 7, "a copy"


@pytest.mark.parametrize(
    ("flag", "having"),
    [
        ("reads_files", {"image_patches", "video_tubes", "audio_patches", "region_features", "feature_rows"}),
        ("standardized_targets", {"image_patches", "video_tubes", "audio_patches"}),
        ("random_replacements", {"text_tokens"}),
        ("has_parts", {"table_pairs"}),
        ("has_geometry", {"region_features"}),
    ],
)
def test_what_sets_a_kind_apart(flag, having):
    assert {spec.kind for spec in ALL if getattr(spec, flag)} == having


def test_raw_media_are_those_of_a_modality():
    media = {spec.kind: spec.medium for spec in ALL if spec.medium is not None}
    assert media == {"image_patches": "image", "video_tubes": "video", "audio_patches": "audio"}


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.kind)
def test_a_random_example_fits_its_kind(spec):
    products = [spec.random_rows(torch.Generator().manual_seed(seed), TOKENS, full=seed == 0) for seed in range(20)]
    assert len(products[0].position_N) == spec.max_rows
    rows = assemble([*products, None], spec.dim, spec.has_geometry)
    assert rows.length_B[:-1].min() >= 1 and rows.length_B.max() == spec.max_rows and rows.length_B[-1] == 0
    assert (rows.values_NF is None) == (spec.dim is None) != (rows.token_N is None)
    assert (rows.geometry_N5 is not None) == spec.has_geometry
    assert rows.position_N.max() < spec.max_rows and bool(rows.part_N.any()) == spec.has_parts
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize("spec", ALL, ids=lambda spec: spec.kind)
def test_every_mask_unit_of_a_kind_numbers_its_rows_and_leaves_special_ones(spec):
    rows = spec.random_rows(torch.Generator().manual_seed(0), TOKENS, full=True)
    unit_N = rows.unit_N.clone()
    unit_N[0] = -1
    for unit in spec.mask_units:
        number_N = spec.unit_numbers(unit, unit_N, rows.position_N)
        assert number_N[0] == -1 and number_N[1:].min() >= 0
        expected_N = {"token": rows.position_N, "frame": None}.get(unit, unit_N)
        if expected_N is not None:
            assert torch.equal(number_N[1:], expected_N[1:])
    if "frame" not in spec.mask_units:
        with pytest.raises(ValueError, match=f"input {spec.kind} has no time steps"):
            spec.unit_numbers("frame", unit_N, rows.position_N)


def test_frames_are_numbered_by_time():
    for spec, rows_a_step in ((VideoTubes(frames=4, size=32), 4), (AudioPatches(), 5), (FeatureRows(rows=6), 1)):
        position_N = torch.arange(spec.max_rows)
        number_N = spec.unit_numbers("frame", position_N, position_N)
        assert torch.equal(number_N, position_N // rows_a_step)


@pytest.mark.parametrize(
    ("spec", "chars", "rows"),
    [
        (TextTokens(max_tokens=9), (0, 99), 1),
        (TextTokens(max_tokens=9), (7, 99), 4),
        (TextTokens(max_tokens=9), (99, 0), 9),
        (TablePairs(max_tokens=9), (99, 5), 3),
        (TablePairs(max_tokens=9), (0, 99), 9),
        (ImagePatches(), (0, 0), 196),
        (FeatureRows(), (99, 99), 12),
    ],
)
def test_rows_are_estimated_from_characters_where_they_are_tokens(spec, chars, rows):
    assert spec.estimated_rows(*chars) == rows


def test_a_bad_file_is_recorded_and_the_others_are_read():
    def read(data):
        if data == b"bad":
            raise MediaError("damaged")
        return numbered(torch.full((1, 2), float(data)))

    items = [MediaItem(f"p{place}", f"m{place}", data) for place, data in enumerate([b"1", b"bad", b"3"])]
    made = read_each(items, read)
    assert {place: rows.values_NF.tolist() for place, rows in made.rows.items()} == {0: [[1.0, 1.0]], 2: [[3.0, 3.0]]}
    assert [(bad.product_id, bad.member, bad.reason) for bad in made.failures] == [("p1", "m1", "damaged")]
    with pytest.raises(ValueError, match="could not convert"):
        read_each([MediaItem("p", "m", b"x")], read)


def test_a_configuration_names_its_kind_and_is_read_strictly():
    tree = {spec.kind: ADAPTER.dump_python({"x": spec})["x"] for spec in ALL}
    assert list(tree["image_patches"].items()) == [("kind", "image_patches"), ("size", 224), ("patch", 16)]
    assert list(ADAPTER.validate_json(json.dumps(tree)).values()) == ALL
    assert ADAPTER.validate_python({"x": ALL[0]})["x"] is ALL[0], "an instance is taken as it is"
    assert json.loads(ADAPTER.dump_json({"x": TextTokens()})) == {
        "x": {"kind": "text_tokens", "max_tokens": 36, "use_description": True}
    }


@pytest.mark.parametrize(
    ("value", "place", "message"),
    [
        ({"kind": "image_patches", "size": "3"}, ("x", "image_patches", "size"), "valid integer"),
        ({"kind": "image_patches", "sise": 3}, ("x", "image_patches", "sise"), "Unexpected keyword"),
        ({"kind": "image_patches", "size": 3}, ("x", "image_patches"), "size, patch: 3 must be a positive multiple"),
        ({"kind": "patches"}, ("x",), "input kind 'patches' is unknown; known: audio_patches, feature_rows, image_pat"),
        ({"size": 3}, ("x",), "Unable to extract tag using discriminator 'kind'"),
        ({"kind": 3}, ("x",), "Input tag '3' found using 'kind'"),
        ("image_patches", ("x",), "should be an object|valid dictionary"),
    ],
)
def test_what_is_no_kind_is_refused_where_it_stands(value, place, message):
    with pytest.raises(ValidationError, match=message) as caught:
        ADAPTER.validate_json(json.dumps({"x": value}))
    assert [error["loc"] for error in caught.value.errors()] == [place]
