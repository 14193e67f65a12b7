"""Blocks: visibility, updates, sharing, norms; and how a run's block list becomes layers."""

import dataclasses

import pytest
import torch
from model_cases import all_patterns, backward, batch_of, build, run, tiny_spec

from m5ds.config import BlockConfig, ModelConfig
from m5ds.model import fusion
from m5ds.model.blocks import plan_parts

NAMES = ("image", "text", "table")


@pytest.mark.parametrize(
    ("given", "matrix"),
    [
        ("identity", [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ("all", [[1, 1, 1]] * 3),
        ("off_diagonal", [[0, 1, 1], [1, 0, 1], [1, 1, 0]]),
        ([[True, False, True]] * 3, [[1, 0, 1]] * 3),
        ({"text": ["image"], "image": [], "table": ["table", "text"]}, [[0, 0, 0], [1, 0, 0], [0, 1, 1]]),
    ],
)
def test_presets_matrices_and_mappings_become_matrices(given, matrix):
    assert [list(map(int, row)) for row in fusion.visibility_matrix(given, NAMES)] == matrix


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("everything", "is unknown; use identity, all, off_diagonal"),
        ([[True]], "must be 3 x 3"),
        ({"text": ["image"]}, "leaves out image, table"),
        ({"text": ["smell"], "image": [], "table": []}, "names 'smell'"),
    ],
)
def test_bad_visibility_says_what_is_wrong(given, message):
    with pytest.raises(ValueError, match=message):
        fusion.visibility_matrix(given, NAMES)


def test_leading_identity_blocks_are_the_unimodal_encoders(tmp_path):
    spec = tiny_spec(tmp_path)
    blocks = {
        "towers": BlockConfig(repeat=2),
        "cross": BlockConfig(visibility="off_diagonal"),
        "again": BlockConfig(),
    }
    layers = fusion.layers(ModelConfig(modalities=spec.modalities, blocks=blocks))
    assert [layer.name for layer in layers] == ["towers_0", "towers_1", "cross_0", "again_0"]
    assert [layer.index for layer in layers] == [0, 1, 2, 3]
    assert fusion.num_unimodal(layers) == 2
    assert fusion.num_unimodal(layers[:2]) == 2


def test_modalities_that_are_not_updated_pass_unchanged_and_own_no_weights(tmp_path):
    spec = tiny_spec(
        tmp_path,
        "blocks.cross={visibility: {image: [text], text: [], table: [], video: [], audio: []}, updates: [image]}",
    )
    model = build(spec)
    block = model.blocks["cross_0"]
    assert set(block.attention) == {"image", "text"} and set(block.ffn) == {"image"}
    seen = []
    block.register_forward_hook(lambda module, args, output: seen.append((args[0], output, args[1])))
    found = backward(model, batch_of(spec, all_patterns()))
    before, after, layout = seen[0]
    start = layout.slab[1]
    assert torch.equal(before[start:], after[start:]) and not torch.equal(before[:start], after[:start])
    assert all(torch.isfinite(value).all() for value in found.values())


def test_rows_see_only_visible_modalities(tmp_path):
    spec = tiny_spec(
        tmp_path,
        "blocks.cross.visibility={image: [image, text], text: [text], table: [table], video: [all], audio: []}".replace(
            "[all]", "[video, audio]"
        ),
    )
    model = build(spec)
    batch = batch_of(spec, [[True] * 5] * 2)
    output = run(model, batch)
    output.fused_BMD[:, 0].square().sum().backward()
    assert model.embeddings.text_token.grad.any()
    assert not model.embeddings.table_token.grad.any()
    assert not model.embeddings.audio_position.grad.any()


def test_causal_rows_do_not_see_what_follows(tmp_path):
    spec = tiny_spec(
        tmp_path,
        "blocks.unimodal.causal=[text]",
        "blocks.cross.visibility=identity",
        "blocks.cross.causal=[text]",
        "modalities.text.cls=last",
    )
    model = build(spec)
    batch = batch_of(spec, [[True] * 5])
    before = run(model, batch, masked=False).fused_TD
    text = batch.modalities["text"]
    text.token_N[-1] = (text.token_N[-1] - 4) % 30 + 5
    layout = run(model, batch, masked=False).layout
    after = run(model, batch, masked=False).fused_TD
    last = layout.slab[2] - 1
    assert torch.equal(before[layout.slab[1] : last], after[layout.slab[1] : last])
    assert not torch.equal(before[last], after[last])


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize(("attention", "ffn"), [("shared", "per_modality"), ("per_modality", "shared")])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "relu"])
def test_every_combination_of_sharing_norm_and_activation_trains(tmp_path, norm, attention, ffn, activation):
    spec = tiny_spec(
        tmp_path,
        "blocks.unimodal.repeat=1",
        f"blocks.cross={{visibility: off_diagonal, attention_weights: {attention}, ffn_weights: {ffn}, norm: {norm},"
        f" activation: {activation}, num_heads: 4, ffn_dim: 20}}",
    )
    found = backward(build(spec), batch_of(spec, all_patterns()))
    assert all(torch.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize("kind", ["learned", "token", "last", "mean"])
def test_summaries_are_what_the_config_says(tmp_path, kind):
    spec = tiny_spec(tmp_path, f"modalities.audio.cls={kind}", "blocks.cross.norm=post")
    output = run(build(spec), batch_of(spec, [[False] * 5, [True] * 5]))
    rows = output.fused_TD[output.layout.slab[4] : output.layout.slab[5]]
    expected = {"mean": rows.mean(0), "last": rows[-1]}.get(kind, rows[0])
    torch.testing.assert_close(output.fused_BMD[1, 4], expected)


def test_a_modality_without_summary_is_contrasted_with_nothing(tmp_path):
    spec = tiny_spec(tmp_path, "modalities.table.cls=none", base="scale")
    output = run(build(spec), batch_of(spec, [[True] * 5] * 3))
    assert sum("table" in name for name in output.losses) == 0 and len(output.losses) == 5 + 6
    assert not output.fused_BMD[:, 2].any() and not output.unimodal_BMD[:, 2].any()


def test_a_product_with_one_row_has_it_as_its_mean(tmp_path):
    """Its neighbours in the buffer have more rows, and products without the modality none."""
    spec = tiny_spec(tmp_path, "modalities.table.cls=mean", "blocks.cross.norm=post")
    batch = batch_of(spec, [[True] * 5, [True] * 5, [True, True, False, True, True]])
    table = batch.modalities["table"]
    kept = [0, *range(int(table.length_B[0]), table.num_rows)]
    fields = {name: value[kept] for name, value in vars(table).items() if name != "length_B" and value is not None}
    fields["length_B"] = torch.tensor([1, int(table.length_B[1]), 0])
    batch.modalities["table"] = dataclasses.replace(table, **fields)
    output = run(build(spec).eval(), batch, masked=False)
    rows = output.fused_TD[output.layout.slab[2] : output.layout.slab[3]]
    torch.testing.assert_close(output.fused_BMD[0, 2], rows[0])
    torch.testing.assert_close(output.fused_BMD[1, 2], rows[1:].mean(0))
    assert not output.fused_BMD[2, 2].any()


@pytest.mark.parametrize(
    ("chosen", "shared", "parts"),
    [
        ((True, True, True), True, (("shared", 0, 3),)),
        ((True, True, True), False, (("image", 0, 1), ("text", 1, 2), ("table", 2, 3))),
        ((False, False, True), True, (("", 0, 2), ("shared", 2, 3))),
        ((True, False, True), True, (("shared", 0, 1), ("", 1, 2), ("shared", 2, 3))),
        ((False, True, False), False, (("", 0, 1), ("text", 1, 2), ("", 2, 3))),
        ((False, False, False), False, (("", 0, 3),)),
    ],
)
def test_parts_are_runs_of_modalities_with_the_same_weights(chosen, shared, parts):
    assert plan_parts(NAMES, chosen, shared) == parts


def test_a_layer_is_its_block_with_every_default_filled_in(tmp_path):
    spec = tiny_spec(tmp_path)
    blocks = {
        "own": BlockConfig(num_heads=4, ffn_dim=20, norm="post", activation="relu", updates=["text"], causal=["table"]),
        "plain": BlockConfig(repeat=2, visibility="all", attention_weights="shared", ffn_weights="per_modality"),
    }
    own, *plain = fusion.layers(dataclasses.replace(spec, blocks=blocks))
    assert (own.name, own.index, own.num_heads, own.ffn_dim, own.pre_norm) == ("own_0", 0, 4, 20, False)
    assert own.activation == "relu" and own.updates == (False, True, False, False, False)
    assert own.causal == (False, False, True, False, False) and own.attends == own.updates and own.is_unimodal
    for number, layer in enumerate(plain):
        assert (layer.name, layer.index, layer.num_heads, layer.ffn_dim) == (f"plain_{number}", 1 + number, 2, 24)
        assert layer.shared_attention and not layer.shared_ffn and not layer.is_unimodal
        assert layer.updates == layer.attends == (True,) * 5 and layer.causal == (False,) * 5


def test_heads_must_divide_the_width_by_name(tmp_path):
    spec = tiny_spec(tmp_path)
    with pytest.raises(ValueError, match=r"model.blocks.odd: num_heads 3 must divide hidden_size 16"):
        fusion.layers(dataclasses.replace(spec, blocks={"odd": BlockConfig(num_heads=3)}))
