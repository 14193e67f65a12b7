"""The tables that the embeddings own, and what an embedder makes of a row."""

import dataclasses

import pytest
import torch
from model_cases import VOCAB_SIZE, batch_of, build, tiny_spec

from m5ds.inputs import RegionFeatures
from m5ds.model import embeddings
from m5ds.model.configuration import M5Config
from m5ds.model.embeddings import Embedder, Embeddings, ProjectedRows, Regions


def shapes(module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.named_parameters() if "." not in name}


def of_each(spec, name: str) -> dict[str, tuple[int, ...]]:
    rows = spec.modalities[name].input.max_rows
    return {f"{name}_{what}": (16,) for what in ("modality", "norm_weight", "norm_bias")} | {
        f"{name}_position": (rows, 16)
    }


def test_every_modality_owns_the_tables_that_it_needs_and_no_others(tmp_path):
    spec = tiny_spec(tmp_path, "modalities.image.cls=learned", "modalities.video.cls=mean", "modalities.audio.cls=mean")
    expected = {}
    for name in spec.modality_names:
        expected |= of_each(spec, name)
        expected |= {f"{name}_cls": (16,)} if spec.modalities[name].cls == "learned" else {}
    expected |= {"text_token": (VOCAB_SIZE, 16), "table_token": (VOCAB_SIZE, 16), "table_part": (2, 16)}
    expected |= {"image_mask": (16,), "video_mask": (16,), "audio_mask": (16,)}
    found = build(spec).embeddings
    assert shapes(found) == expected
    assert "image_cls" in expected and "video_cls" not in expected


def test_what_is_never_masked_has_no_mask_vector(tmp_path):
    model = build(tiny_spec(tmp_path, "modalities.image.mask_ratio=0.0"))
    assert "image_mask" not in shapes(model.embeddings) and "video_mask" in shapes(model.embeddings)
    assert "image" not in model.objectives.masked.heads


def test_one_token_is_a_vocabulary_and_none_is_not(tmp_path):
    spec = tiny_spec(tmp_path, "modalities.text.mask_ratio=0.0")
    assert Embeddings(M5Config.from_spec(spec, vocab_size=1)).text_token.shape == (1, 16)
    with pytest.raises(ValueError, match="has tokens but vocab_size is 0"):
        Embeddings(M5Config.from_spec(spec, vocab_size=0))


def test_tokens_have_no_content_of_their_own_and_keep_their_positions(tmp_path):
    spec = tiny_spec(tmp_path)
    rows = batch_of(spec, [[True] * 5] * 2).modalities["text"]
    embedder = Embedder("text", spec.modalities["text"], 16)
    assert embedder(rows) == (None, None)
    assert embedder.positions(rows) is rows.position_N and embedder.num_positions == 6


def test_features_are_projected_in_the_weights_type(tmp_path):
    spec = tiny_spec(tmp_path)
    rows = batch_of(spec, [[True] * 5] * 2).modalities["image"]
    embedder = ProjectedRows("image", spec.modalities["image"], 16).double()
    projected, extra = embedder(rows)
    weight, bias = embedder.projection.weight, embedder.projection.bias
    assert extra is None and projected.dtype == torch.float64 != rows.values_NF.dtype
    torch.testing.assert_close(projected, rows.values_NF.double() @ weight.T + bias)


def test_regions_share_one_position_and_add_their_boxes(tmp_path):
    spec = tiny_spec(tmp_path)
    settings = dataclasses.replace(
        spec.modalities["image"], embedder="regions", input=RegionFeatures(max_regions=4, dim=6)
    )
    spec = dataclasses.replace(spec, modalities={**spec.modalities, "image": settings})
    rows = batch_of(spec, [[True] * 5] * 3).modalities["image"]
    embedder = Regions("image", settings, 16).double()
    projected, extra = embedder(rows)
    torch.testing.assert_close(projected, embedder.projection(rows.values_NF.double()))
    torch.testing.assert_close(extra, embedder.geometry(rows.geometry_N5.double()))
    assert embedder.geometry.in_features == 5 and embedder.num_positions == 1
    assert rows.position_N.any() and torch.equal(embedder.positions(rows), torch.zeros_like(rows.position_N))


def test_a_registered_embedder_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "_EMBEDDERS", dict(embeddings._EMBEDDERS))

    @embeddings.register("own")
    class Own(ProjectedRows):
        pass

    model = build(tiny_spec(tmp_path, "modalities.image.embedder=own"))
    assert type(model.embeddings.embedders["image"]) is Own
    assert type(model.embeddings.embedders["video"]) is ProjectedRows
