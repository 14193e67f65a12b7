"""Every state, loss, total and gradient against the model written a second time (by_hand), all weights off 1.

The two share parameters and Philox's words, nothing else. Comparisons are in float64, so that a mistake cannot hide
behind rounding: a wrong row, factor or operator is 1e-3 or more.
"""

import dataclasses
import math

import pytest
import torch
from by_hand.forward import forward
from model_cases import SEED, VOCAB_SIZE, build, tiny_spec

from m5ds.data.batches.random_batch import random_batch
from m5ds.kernels.common.philox import EVALUATION_DRAW

# Values with few binary digits where the model keeps them in float32.
TEXT = """
  hidden_size: 8
  num_heads: 2
  ffn_dim: 12
  dropout: 0.25
  attention_dropout: 0.125
  layer_norm_eps: 1.0e-3
  modalities:
    image: {mask_ratio: 0.6, loss_weight: 0.75, input: {size: 8, patch: 4}}
    text: {mask_ratio: 0.6, loss_weight: 1.25, input: {max_tokens: 7}}
    table: {mask_ratio: 0.5, loss_weight: 0.5, cls: mean, input: {max_tokens: 9}}
    video: {mask_ratio: 0.6, loss_weight: 1.5, mask_unit: frame, input: {frames: 4, size: 8, patch: 4}}
    audio: {mask_ratio: 0.6, loss_weight: 0.625, input: {seconds: 0.6, num_mels: 16, patch_mels: 8}}
  blocks:
    unimodal: {repeat: 2, norm: post}
    cross: {repeat: 1}
  projection_dim: 6
  objectives: {contrastive: {weight: 1.75}}
"""
PRESENT = [
    [True, True, True, True, True],
    [True, True, False, False, True],
    [False, False, False, False, False],
    [True, False, True, True, False],
    [False, True, True, True, True],
]
LARGE, SMALL = math.log(1 / 0.001), 1.5
"""Logit scales above the temperature's bound, and below it."""


def model_of(tmp_path, *overrides, text=TEXT, log_scale=SMALL, **kwargs):
    """A float64 model whose every parameter is off its initial value."""
    model = build(tiny_spec(tmp_path, *overrides, text=text, **kwargs), pad_id=3).double()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2
            if name == "objectives.contrastive.logit_scale":
                parameter.fill_(log_scale)
    return model


def batch_for(model, present=PRESENT, draw=1):
    names = model.names
    rows = [row[: len(names)] for row in present]
    batch = random_batch(model.spec, rows, vocab_size=VOCAB_SIZE, draw=draw)
    # As large as real pixels may be: without standardising, the regression losses would be off.
    for name, content in batch.modalities.items():
        if content.values_NF is not None:
            values = content.values_NF.double() * 3 + 2
            geometry = None if content.geometry_N5 is None else content.geometry_N5.double()
            batch.modalities[name] = dataclasses.replace(content, values_NF=values, geometry_N5=geometry)
    return batch


def global_counts(model, batch, masked):
    """The step's counts are larger than this micro-batch's own."""
    own = model.count_targets(batch, SEED)
    return {name: 2 * count + number for number, (name, count) in enumerate(own.items())}


def assert_same(model, batch, *, masked=True, training=True, counts=None, tolerance=1e-8):
    counts = counts or global_counts(model, batch, masked)
    model.train(training)
    model.zero_grad()
    output = model(batch, counts=counts, seed=SEED, masked=masked)
    expected = forward(model, batch, counts=counts, seed=SEED, masked=masked, training=training)
    counted = model.count_targets(batch, SEED, [name for name in model.objectives if masked or name != "masked"])
    assert counted == expected.targets
    close = {"rtol": tolerance, "atol": tolerance}
    for m, name in enumerate(model.names):
        for b in range(batch.num_products):
            none = torch.zeros(())
            for found, wanted in ((output.unimodal_BMD, expected.unimodal), (output.fused_BMD, expected.fused)):
                vector = found[b, m]
                torch.testing.assert_close(vector, wanted.get((b, name), none).expand_as(vector).to(vector), **close)
    order = [(b, m) for m in model.names for b in range(batch.num_products) if (b, m) in expected.states]
    packed = torch.cat([expected.states[key] for key in order])
    torch.testing.assert_close(output.fused_TD, packed, **close)
    assert set(output.losses) == set(expected.losses)
    for name, loss in output.losses.items():
        torch.testing.assert_close(
            loss.double(), expected.losses[name], msg=lambda m, name=name: f"{name}: {m}", **close
        )
    torch.testing.assert_close(output.loss.double(), expected.total.double(), **close)
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(output.loss, list(parameters.values()), allow_unused=True)
    wanted = torch.autograd.grad(expected.total, list(parameters.values()), allow_unused=True)
    scale = max(float(value.abs().max()) for value in wanted if value is not None)
    for name, gradient, by_hand in zip(parameters, found, wanted, strict=True):
        assert gradient is not None or not masked, f"{name} has no gradient tensor"
        gradient, by_hand = (torch.zeros(()) if value is None else value for value in (gradient, by_hand))
        assert (gradient - by_hand).abs().max() <= 10 * tolerance * scale, f"gradient of {name}"
    return expected


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "clean"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("absent", ["drop", "token", "zeros"])
def test_losses_total_and_gradients_under_every_policy(tmp_path, absent, training, masked):
    model = model_of(tmp_path, f"absent={absent}")
    expected = assert_same(model, batch_for(model), training=training, masked=masked)
    assert not masked or all(number > 1 for number in expected.targets.values())


WEIGHED = [
    ("cosine", "losses"),
    ("cosine", "logits"),
    ("cosine", "both"),
    ("learned", "losses"),
    ("learned", "logits"),
    ("learned", "both"),
    ("paper_literal", "losses"),
]


@pytest.mark.parametrize(("kind", "weighs"), WEIGHED)
def test_losses_total_and_gradients_under_every_harmony(tmp_path, kind, weighs):
    model = model_of(tmp_path, f"harmony={{kind: {kind}, weighs: {weighs}, strength: 0.75}}")
    assert_same(model, batch_for(model))


@pytest.mark.parametrize("weighed", ["contrastive", "masked"])
@pytest.mark.parametrize("kind", ["cosine", "learned"])
def test_harmony_weighs_only_the_objectives_that_it_names(tmp_path, kind, weighed):
    model = model_of(tmp_path, f"harmony={{kind: {kind}, weighs: both, objectives: [{weighed}]}}")
    assert_same(model, batch_for(model))


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "clean"])
def test_learned_harmony_leaves_out_terms_without_targets_on_any_rank(tmp_path, masked):
    model = model_of(tmp_path, "harmony={kind: learned, strength: 1.5}")
    present = [[row[0], row[1], False, row[3], row[4]] for row in PRESENT]
    batch = batch_for(model, present)
    counts = model.count_targets(batch, SEED)
    assert counts["itc/text-table"] == counts["itc/table-video"] == 0
    assert_same(model, batch, counts=counts, masked=masked)


@pytest.mark.parametrize("absent", ["drop", "token", "zeros"])
def test_cosine_harmony_knows_only_present_modalities(tmp_path, absent):
    model = model_of(tmp_path, f"absent={absent}", "harmony={kind: cosine, weighs: both}")
    assert_same(model, batch_for(model))


@pytest.mark.parametrize("draw", [0, 1, EVALUATION_DRAW])
def test_masks_replacements_and_dropout_of_every_draw(tmp_path, draw):
    model = model_of(tmp_path)
    assert_same(model, batch_for(model, draw=draw))


@pytest.mark.parametrize("unit", ["pair", "token", "key_or_value"])
def test_table_masks_of_every_unit(tmp_path, unit):
    model = model_of(tmp_path, f"modalities.table.mask_unit={unit}", "modalities.audio.mask_unit=frame")
    assert_same(model, batch_for(model))


@pytest.mark.parametrize(
    "overrides", [(), ("objectives.contrastive.learn_temperature=false", "objectives.contrastive.temperature=0.001")]
)
def test_the_temperature_has_a_bound(tmp_path, overrides):
    model = model_of(tmp_path, *overrides, log_scale=LARGE)
    # The bound is kept in float32 where the temperature is not learned.
    assert_same(model, batch_for(model), tolerance=1e-6 if overrides else 1e-8)


def test_a_temperature_that_is_not_learned(tmp_path):
    """0.125 is a power of two, but its logarithm is kept in float32."""
    model = model_of(
        tmp_path,
        "objectives.contrastive.learn_temperature=false",
        f"objectives.contrastive.temperature={math.exp(-1.5)}",
    )
    assert_same(model, batch_for(model))


BLOCKS = {
    "scale": "blocks={unimodal: {repeat: 1, norm: pre}, cross: {repeat: 2, visibility: all, norm: post,"
    " attention_weights: shared, ffn_weights: shared, activation: quick_gelu}}",
    "capture": "blocks={unimodal: {repeat: 1}, co: {visibility: off_diagonal, norm: pre, activation: relu,"
    " num_heads: 4, ffn_dim: 20}, joint: {visibility: all, attention_weights: shared}}",
    "mapping": "blocks={unimodal: {repeat: 1}, cross: {visibility: {image: [image, text], text: [text, audio],"
    " table: [], video: [table, video], audio: [image]}, updates: [image, text, video], ffn_weights: shared}}",
    "causal": "blocks={unimodal: {repeat: 1, causal: [audio, table]}, cross: {visibility: all, causal: [audio, video],"
    " norm: post}}",
    "unimodal_only": "blocks={unimodal: {repeat: 2, norm: pre, ffn_weights: shared}}",
}


@pytest.mark.parametrize("blocks", BLOCKS)
def test_states_of_every_kind_of_block(tmp_path, blocks):
    text = (
        TEXT[: TEXT.index("  blocks:")]
        + "  projection_dim: 6\n  objectives: {contrastive: {pairs: all, weight: 0.375}}\n"
    )
    # A file without blocks of its own takes the base's, which an override cannot take away.
    text += "  " + BLOCKS[blocks].replace("blocks=", "blocks: ") + "\n"
    # A causal modality's first row sees itself alone, so that it cannot be the summary.
    summaries = [f"modalities.{name}.cls=last" for name in ("video", "audio") if blocks == "causal"]
    model = model_of(tmp_path, "absent=token", *summaries, text=text)
    assert_same(model, batch_for(model))


def test_a_model_of_two_modalities_keeps_their_numbers(tmp_path):
    """Random bits are keyed by the modality's number in the table, not by its place in the model."""
    text = """
  hidden_size: 8
  num_heads: 2
  ffn_dim: 12
  projection_dim: 6
  objectives: {contrastive: {pairs: all, weight: 0.75}}
"""
    spec = tiny_spec(tmp_path, text=text)
    kept = {name: spec.modalities[name] for name in ("table", "audio")}
    small = {
        "table": dataclasses.replace(kept["table"], input=dataclasses.replace(kept["table"].input, max_tokens=9)),
        "audio": dataclasses.replace(kept["audio"], input=dataclasses.replace(kept["audio"].input, seconds=0.6)),
    }
    model = build(dataclasses.replace(spec, modalities=small)).double()
    assert_same(model, batch_for(model, [[True, True], [True, False], [False, True], [True, True]]))


def test_precomputed_features_and_modalities_without_mask_or_summary(tmp_path):
    """Features are predicted as they are; a masked region keeps its box; no mask, no task; no summary, no pair."""
    text = """
  hidden_size: 8
  num_heads: 2
  ffn_dim: 12
  dropout: 0.25
  modalities:
    image: {embedder: regions, loss_weight: 0.75, mask_ratio: 0.5,
      input: {kind: region_features, max_regions: 4, dim: 6}}
    text: {mask_ratio: 0.0, input: {max_tokens: 6}}
    table: {cls: none, mask_ratio: 0.5, loss_weight: 0.25, input: {max_tokens: 9}}
    video: {embedder: feature_rows, mask_ratio: 0.5, mask_unit: frame, input: {kind: feature_rows, rows: 5, dim: 7}}
    audio: {embedder: feature_rows, mask_ratio: 0.0, cls: token, input: {kind: feature_rows, rows: 4, dim: 5}}
  blocks: {unimodal: {repeat: 1}}
  projection_dim: 6
  objectives: {contrastive: {pairs: [[video, image], [image, audio]], weight: 1.5}}
"""
    for absent in ("drop", "zeros"):
        model = model_of(tmp_path, f"absent={absent}", "harmony={kind: cosine, weighs: both}", text=text)
        expected = assert_same(model, batch_for(model))
        assert set(expected.losses) == {"mrp", "mem", "mfp", "itc/image-video", "itc/image-audio"}
