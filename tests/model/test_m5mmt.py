"""The model class: systems from YAML, saving and loading, checkpointing, a new modality, ranks."""

import dataclasses

import pytest
import torch
from model_cases import (
    VOCAB_SIZE,
    all_patterns,
    backward,
    batch_of,
    build,
    concatenated_gather,
    gradients,
    pools_of,
    run,
    select,
    tiny_spec,
)

from m5ds import modality
from m5ds.model import embeddings
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.model.masking import draw_masks
from m5ds.model.objectives import heads

FULL = [[True] * 5] * 6


@pytest.mark.parametrize("base", ["m5mmt", "scale"])
def test_systems_build_from_their_yaml_and_train(tmp_path, base):
    spec = tiny_spec(tmp_path, base=base)
    model = build(spec)
    num_pairs = {"m5mmt": 4, "scale": 10}[base]
    output = run(model, batch_of(spec, FULL))
    assert set(output.losses) == {
        "mrp",
        "mlm",
        "mem",
        "mfp",
        "mam",
        *(n for n in output.losses if n.startswith("itc/")),
    }
    assert len(output.losses) == 5 + num_pairs
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = batch_of(spec, FULL)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        output = run(model, batch)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_m5mmt_has_a_cross_transformer_per_modality_and_scale_one_for_all(tmp_path):
    names = {
        base: [n for n, _ in build(tiny_spec(tmp_path, base=base)).named_parameters()] for base in ("m5mmt", "scale")
    }
    assert "blocks.cross_0.attention.video.qkv.weight" in names["m5mmt"]
    assert "blocks.cross_5.attention.shared.qkv.weight" in names["scale"]
    assert not any("cross" in name and "video" in name for name in names["scale"])


def test_text_and_table_have_token_tables_of_their_own(tmp_path):
    model = build(tiny_spec(tmp_path))
    assert model.embeddings.text_token is not model.embeddings.table_token
    assert model.objectives.masked.heads["text"].decoder_weight is model.embeddings.text_token


def test_save_and_load_keep_outputs_and_ties(tmp_path):
    spec = tiny_spec(tmp_path)
    model = build(spec).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save_pretrained(tmp_path / "saved")
    loaded = M5ForPretraining.from_pretrained(tmp_path / "saved").eval()
    assert loaded.objectives.masked.heads["table"].decoder_weight is loaded.embeddings.table_token
    batch = batch_of(spec, FULL)
    assert torch.equal(run(model, batch).loss, run(loaded, batch).loss)
    assert loaded.config.spec == spec


def test_loading_refuses_missing_keys(tmp_path):
    model = build(tiny_spec(tmp_path))
    state = {name: value for name, value in model.state_dict().items() if "fc1" not in name}
    model.save_pretrained(tmp_path / "saved", state_dict=state)
    with pytest.raises(ValueError, match=r"missing keys: blocks.cross_0.ffn.audio.fc1.bias"):
        M5ForPretraining.from_pretrained(tmp_path / "saved")


def test_loading_refuses_what_the_model_has_no_place_for(tmp_path):
    model = build(tiny_spec(tmp_path))
    state = {**model.state_dict(), "blocks.cross_9.extra": torch.zeros(2)}
    model.save_pretrained(tmp_path / "saved", state_dict=state)
    with pytest.raises(ValueError, match=r"saved: unexpected keys: blocks.cross_9.extra; the files belong to another"):
        M5ForPretraining.from_pretrained(tmp_path / "saved")


def test_loading_refuses_other_shapes_even_where_the_caller_would_not(tmp_path):
    model = build(tiny_spec(tmp_path))
    state = {**model.state_dict(), "embeddings.image_cls": torch.zeros(3)}
    model.save_pretrained(tmp_path / "saved", state_dict=state)
    with pytest.raises(ValueError, match=r"mismatched keys: .*embeddings.image_cls"):
        M5ForPretraining.from_pretrained(tmp_path / "saved", ignore_mismatched_sizes=True)


def test_loading_tells_what_was_loaded_where_asked(tmp_path):
    build(tiny_spec(tmp_path)).save_pretrained(tmp_path / "saved")
    model, info = M5ForPretraining.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert isinstance(model, M5ForPretraining) and not info["missing_keys"]
    assert isinstance(M5ForPretraining.from_pretrained(tmp_path / "saved"), M5ForPretraining)


def test_configuration_survives_json(tmp_path):
    spec = tiny_spec(tmp_path, base="scale")
    settings = M5Config.from_spec(spec, vocab_size=VOCAB_SIZE, mask_id=4, special_ids=[0, 4])
    settings.save_pretrained(tmp_path)
    loaded = M5Config.from_pretrained(tmp_path)
    assert (loaded.spec, loaded.vocab_size, loaded.special_ids) == (spec, VOCAB_SIZE, [0, 4])
    assert list(loaded.spec.blocks) == ["unimodal", "cross"], "config.json sorts its keys; blocks are a sequence"
    loaded.model["hiden_size"] = 3
    with pytest.raises(ValueError, match="hiden_size"):
        _ = loaded.spec


def test_initial_weights_depend_on_seed_and_name_only(tmp_path):
    large = build(tiny_spec(tmp_path), initializer_seed=3).state_dict()
    fewer = build(tiny_spec(tmp_path, "blocks.cross.attention_weights=shared"), initializer_seed=3).state_dict()
    other = build(tiny_spec(tmp_path), initializer_seed=4).state_dict()
    name = "blocks.unimodal_1.ffn.video.fc1.weight"
    assert torch.equal(large[name], fewer[name]) and not torch.equal(large[name], other[name])
    assert large[name].std() == pytest.approx(0.02, rel=0.15)
    assert large["embeddings.text_token"].std() == pytest.approx(0.02, rel=0.15)
    assert torch.equal(large["embeddings.text_norm_weight"], torch.ones(16))
    assert not large["objectives.masked.heads.text.decoder_bias"].any()


def test_activation_checkpointing_changes_no_bit(tmp_path):
    spec = tiny_spec(tmp_path, "dropout=0.2", "attention_dropout=0.1")
    batch = batch_of(spec, all_patterns())
    plain, recomputed = (backward(build(spec, activation_checkpointing=flag), batch) for flag in (False, True))
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_dropout_does_not_depend_on_packing(tmp_path):
    spec = tiny_spec(tmp_path, "dropout=0.3", "attention_dropout=0.2")
    model = build(spec)
    batch = batch_of(spec, all_patterns())
    together = run(model, batch)
    alone = run(model, select(batch, spec, [29]))
    torch.testing.assert_close(alone.fused_BMD[0], together.fused_BMD[29], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(run(model, batch, seed=8).fused_BMD[29], together.fused_BMD[29], atol=1e-3)


def test_ranks_with_a_gather_sum_to_the_gradients_of_one_process(tmp_path):
    """DESIGN section 0 without processes: each rank's rows against all keys, gradients to remote keys included."""
    spec = tiny_spec(tmp_path)
    model = build(spec).double()
    batch = batch_of(spec, all_patterns())
    counts = model.count_targets(batch, 7)
    whole = backward(model, batch)
    parts = [select(batch, spec, list(part)) for part in (range(0, 20), range(20, 32))]
    model.zero_grad()
    kept = {}

    def keeping_gather(rank):
        def gather(features_BMR, present_BM):
            kept[rank] = (features_BMR, present_BM)
            return features_BMR, present_BM, 0

        return gather

    for rank, part in enumerate(parts):
        run(model, part, counts=counts, pools=pools_of(model, keeping_gather(rank)))
    features, present = zip(*(kept[rank] for rank in range(2)), strict=True)
    losses = [
        run(model, part, counts=counts, pools=pools_of(model, concatenated_gather([*features], [*present], rank))).loss
        for rank, part in enumerate(parts)
    ]
    sum(losses).backward()
    for name, value in gradients(model).items():
        torch.testing.assert_close(value, whole[name], atol=1e-9, rtol=1e-7, msg=name)


def test_every_module_is_called_in_the_same_order_whatever_is_present(tmp_path):
    """Under ZeRO-3 a rank that skips a module hangs the job or mixes weights (FINDINGS.md)."""
    spec = tiny_spec(tmp_path, "absent=token", base="scale")
    model = build(spec)
    called = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda module, args, name=name: called.append(name))
    sequences = set()
    for pattern in all_patterns():
        called.clear()
        run(model, batch_of(spec, [pattern]))
        sequences.add(tuple(called))
    assert len(sequences) == 1
    owners = {name for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    assert owners <= set(called)


def test_bf16_weights_give_finite_bf16_gradients_and_fp32_losses(tmp_path):
    spec = tiny_spec(tmp_path, "dropout=0.1", base="scale")
    model = build(spec).bfloat16()
    batch = batch_of(spec, all_patterns())
    output = run(model, batch)
    assert {loss.dtype for loss in output.losses.values()} == {torch.float32}
    assert output.unimodal_BMD.dtype == torch.float32
    found = backward(model, batch)
    assert all(torch.isfinite(value).all() and value.dtype == torch.bfloat16 for value in found.values())
    exact = run(build(spec), batch)
    for name, loss in output.losses.items():
        torch.testing.assert_close(loss, exact.losses[name], atol=0.05, rtol=0.02)


def test_precomputed_features_of_the_papers_sizes_train(tmp_path):
    """36 x 2048 regions with boxes, 12 x 1024 clips, 80 x 751 mel bins; masked regions keep their boxes."""
    text = """
  hidden_size: 16
  num_heads: 2
  ffn_dim: 24
  modalities:
    image: {embedder: regions, input: {kind: region_features}}
    text: {input: {max_tokens: 6}}
    table: {input: {max_tokens: 9}}
    video: {embedder: feature_rows, input: {kind: feature_rows, rows: 12, dim: 1024}}
    audio: {embedder: feature_rows, input: {kind: feature_rows, rows: 80, dim: 751}}
  blocks: {unimodal: {repeat: 1}}
"""
    spec = tiny_spec(tmp_path, text=text)
    model = build(spec)
    found = backward(model, batch_of(spec, all_patterns()))
    assert found["embeddings.embedders.image.geometry.weight"].any()
    assert model.embeddings.image_position.shape == (1, 16), "regions have no order"
    assert not model.objectives.masked.heads["audio"].standardize


def test_counts_are_what_the_model_masks(tmp_path):
    spec = tiny_spec(tmp_path, "modalities.table.mask_unit=key_or_value")
    model = build(spec)
    batch = batch_of(spec, all_patterns())
    counts = model.count_targets(batch, 7)
    seen = {}
    model.embeddings.register_forward_hook(
        lambda module, args, output: seen.update(zip(model.names, output[1], strict=True))
    )
    run(model, batch)
    masks = draw_masks(batch, model.config, 7)
    for name in model.names:
        assert torch.equal(seen[name], masks[name])
        assert counts[modality.get(name).task] == int(masks[name].sum()) > 0


def test_frames_are_masked_whole_and_single_table_tokens_alone(tmp_path):
    def masked(name, unit):
        spec = tiny_spec(tmp_path, f"modalities.{name}.mask_unit={unit}")
        batch = batch_of(spec, FULL, full=True)
        masked_N = draw_masks(batch, build(spec).config, 7)[name]
        return masked_N.view(len(FULL), -1), batch.modalities[name]

    # Two layers of 2 x 2 tubes; audio in columns of two patches; table pairs of a key and two value tokens.
    for name, width in (("video", 4), ("audio", 2)):
        frames, _ = masked(name, "frame")
        steps = frames.view(len(FULL), -1, width)
        assert steps.any() and not steps.all() and torch.equal(steps.any(2), steps.all(2))
        rows, _ = masked(name, "row")
        assert not torch.equal(rows.view_as(steps).any(2), rows.view_as(steps).all(2))
    pairs = masked("table", "pair")[0].view(len(FULL), -1, 3)
    assert pairs.any() and torch.equal(pairs.any(2), pairs.all(2))
    tokens = masked("table", "token")[0].view(len(FULL), -1, 3)
    assert not torch.equal(tokens.any(2), tokens.all(2))
    halves = masked("table", "key_or_value")[0].view(len(FULL), -1, 3)
    assert not halves.all(2).any() and torch.equal(halves[:, :, 1], halves[:, :, 2])
    assert halves[:, :, 0].any() and halves[:, :, 1].any()


def test_special_tokens_are_never_masked_whatever_the_units_say(tmp_path):
    spec = tiny_spec(tmp_path, "modalities.text.mask_ratio=1.0")
    model = build(spec)
    batch = batch_of(spec, FULL)
    text = batch.modalities["text"]
    batch.modalities["text"] = dataclasses.replace(text, unit_N=text.position_N)
    masked_N = draw_masks(batch, model.config, 7)["text"]
    assert torch.equal(masked_N, text.token_N > 4)


def test_unmasked_forward_gives_contrastive_losses_only(tmp_path):
    spec = tiny_spec(tmp_path)
    output = run(build(spec).eval(), batch_of(spec, FULL), masked=False)
    assert set(output.losses) == {"itc/image-text", "itc/text-table", "itc/table-video", "itc/video-audio"}
    features = build(spec).eval()(batch_of(spec, FULL), masked=False)
    assert features.loss is None and torch.equal(features.fused_BMD, output.fused_BMD)


def test_no_weight_decay_names_hold_vectors_and_harmony(tmp_path):
    model = build(tiny_spec(tmp_path, "absent=token", base="scale"))
    names = model.no_weight_decay_names()
    assert {"harmony.scores", "objectives.contrastive.logit_scale", "embeddings.image_cls", "absent.tokens_MD"} <= names
    assert "objectives.masked.heads.text.decoder_bias" in names and "embeddings.text_token" not in names
    assert not any(name.endswith(("fc1.weight", "qkv.weight")) for name in names)


def test_partitioned_parameters_are_judged_by_their_whole_shape(tmp_path):
    """Under ZeRO-3 every parameter is a flat shard; DeepSpeed keeps its shape beside it."""
    model = build(tiny_spec(tmp_path))
    expected = model.no_weight_decay_names()
    for parameter in model.parameters():
        parameter.ds_shape, parameter.data = parameter.shape, parameter.data.flatten()
    assert model.no_weight_decay_names() == expected and "embeddings.text_token" not in expected


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_the_logit_scale_starts_at_the_inverse_temperature(tmp_path, temperature):
    model = build(tiny_spec(tmp_path, f"objectives.contrastive.temperature={temperature}"))
    assert model.objectives.contrastive.logit_scale.exp().item() == pytest.approx(1 / temperature)
    fixed = build(tiny_spec(tmp_path, "objectives.contrastive.learn_temperature=false"))
    assert "objectives.contrastive.logit_scale" not in dict(fixed.named_parameters())


def test_a_model_without_pairs_has_no_contrastive_part(tmp_path):
    model = build(tiny_spec(tmp_path, "objectives.contrastive=null"))
    assert not hasattr(model, "contrastive") and len(model.projections) == 0
    assert set(run(model, batch_of(model.spec, FULL)).losses) == {"mrp", "mlm", "mem", "mfp", "mam"}


def test_a_sixth_modality_takes_a_table_row_an_embedder_a_head_and_a_yaml(tmp_path, monkeypatch):
    for module, registry in ((embeddings, "_EMBEDDERS"), (heads, "_HEADS")):
        monkeypatch.setattr(module, registry, dict(getattr(module, registry)))

    @embeddings.register("toy_embedder")
    class ToyEmbedder(embeddings.ProjectedRows):
        pass

    @heads.register("toy_head")
    class ToyHead(heads.RegressionHead):
        pass

    with modality.extended(modality.Modality(name="scent", number=5, catalogue_field="scents", task="msp")):
        spec = tiny_spec(
            tmp_path,
            "modalities.scent={embedder: toy_embedder, head: toy_head, input: {kind: feature_rows, rows: 4, dim: 3}}",
        )
        assert spec.modality_names[-1] == "scent"
        model = build(spec)
        batch = batch_of(spec, all_patterns(6))
        output = run(model, batch)
        assert {"msp", "itc/audio-scent"} <= set(output.losses)
        assert all(value.isfinite().all() for value in backward(model, batch).values())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modalities.image.embedder=patch", "registered: feature_rows, patches, regions, tokens"),
        ("modalities.image.embedder=tokens", "takes tokens, input kind is image_patches"),
        ("modalities.image.head=vocabulary", "use head: regression"),
        ("modalities.text.head=regression", "use head: vocabulary"),
        ("modalities.image.mask_unit=frame", "does not go with image_patches; use row"),
        ("blocks.cross.visibility=everything", "visibility 'everything' is unknown"),
        ("objectives.contrastive.pairs=[[image, smell]]", "pairs names 'smell'"),
    ],
)
def test_a_model_that_cannot_be_built_says_why_and_what_to_do(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        build(tiny_spec(tmp_path, override))


def test_counts_that_lack_a_loss_are_refused(tmp_path):
    spec = tiny_spec(tmp_path)
    with pytest.raises(ValueError, match="counts lacks mrp"):
        run(build(spec), batch_of(spec, FULL), counts={"mlm": 1})
