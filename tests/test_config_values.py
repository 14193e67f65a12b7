"""What a run means where its YAML says nothing, and which values each key takes."""

import pytest

from m5ds import config
from m5ds.config import ConfigError

MINIMAL = """
name: x
model:
  modalities:
    text: {embedder: tokens, head: vocabulary, input: {kind: text_tokens}}
    audio: {embedder: patches, head: regression, input: {kind: audio_patches}}
  blocks: {fusion: {}}
train: {total_steps: 1}
"""


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return lambda *overrides: config.load(path, list(overrides))


def leaves(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_what_a_run_leaves_out_has_these_values(load):
    """Changing one changes runs whose YAML is silent: a CONFIG line in CHANGELOG.md."""
    assert dict(leaves(load().to_dict())) == {
        "name": "x",
        "output_dir": "runs",
        "seed": 0,
        "data.shards": "quickstart",
        "data.tokenizer.kind": "sentencepiece",
        "data.tokenizer.path": None,
        "data.tokenizer.vocab_size": 8000,
        "data.quickstart_products": 1600,
        "data.quickstart_seed": 0,
        "data.shuffle_pairs": False,
        "data.chunk_size": 64,
        "data.window_chunks": 16,
        "data.num_threads": 1,
        "data.prefetch_steps": 2,
        "data.max_bad_fraction": 0.05,
        "data.modality_dropout": 0.0,
        "data.random_crop": True,
        "model.hidden_size": 768,
        "model.num_heads": 12,
        "model.ffn_dim": 3072,
        "model.dropout": 0.0,
        "model.attention_dropout": 0.0,
        "model.layer_norm_eps": 1e-5,
        "model.initializer_range": 0.02,
        "model.absent": "drop",
        "model.modalities.text.input.kind": "text_tokens",
        "model.modalities.text.input.max_tokens": 36,
        "model.modalities.text.input.use_description": True,
        "model.modalities.text.embedder": "tokens",
        "model.modalities.text.head": "vocabulary",
        "model.modalities.text.cls": "learned",
        "model.modalities.text.mask_ratio": 0.15,
        "model.modalities.text.mask_unit": "row",
        "model.modalities.text.loss_weight": 1.0,
        "model.modalities.text.init_from": None,
        "model.modalities.audio.input.kind": "audio_patches",
        "model.modalities.audio.input.sample_rate": 16000,
        "model.modalities.audio.input.seconds": 12.0,
        "model.modalities.audio.input.n_fft": 1024,
        "model.modalities.audio.input.hop": 256,
        "model.modalities.audio.input.num_mels": 80,
        "model.modalities.audio.input.patch_mels": 16,
        "model.modalities.audio.input.patch_steps": 16,
        "model.modalities.audio.embedder": "patches",
        "model.modalities.audio.head": "regression",
        "model.modalities.audio.cls": "learned",
        "model.modalities.audio.mask_ratio": 0.15,
        "model.modalities.audio.mask_unit": "row",
        "model.modalities.audio.loss_weight": 1.0,
        "model.modalities.audio.init_from": None,
        "model.blocks.fusion.repeat": 1,
        "model.blocks.fusion.visibility": "identity",
        "model.blocks.fusion.updates": None,
        "model.blocks.fusion.attention_weights": "per_modality",
        "model.blocks.fusion.ffn_weights": "per_modality",
        "model.blocks.fusion.causal": [],
        "model.blocks.fusion.norm": "pre",
        "model.blocks.fusion.activation": "gelu",
        "model.blocks.fusion.num_heads": None,
        "model.blocks.fusion.ffn_dim": None,
        "model.projection_dim": 256,
        "model.objectives.masked": {},
        "model.objectives.contrastive": {},
        "model.harmony.kind": "none",
        "model.harmony.weighs": "losses",
        "model.harmony.objectives": None,
        "model.harmony.strength": 1.0,
        "train.total_steps": 1,
        "train.epochs": None,
        "train.global_batch_size": 64,
        "train.accumulation": 1,
        "train.learning_rate": 1e-4,
        "train.weight_decay": 0.01,
        "train.betas": [0.9, 0.98],
        "train.epsilon": 1e-8,
        "train.warmup_ratio": 0.1,
        "train.activation_checkpointing": False,
        "train.log_every": 10,
        "train.validate_every": 0,
        "train.validation_batch_size": 64,
        "train.save_every": 0,
        "train.keep_last": 3,
    }


@pytest.mark.parametrize(
    ("key", "smallest", "too_small"),
    [
        ("data.num_threads", 1, 0),
        ("data.prefetch_steps", 0, -1),
        ("data.max_bad_fraction", 0.0, -0.01),
        ("seed", 0, -1),
        ("train.validate_every", 0, -1),
        ("train.learning_rate", 0.001, 0.0),
        ("train.weight_decay", 0.0, -0.01),
        ("train.epsilon", 1e-12, 0.0),
        ("model.modalities.text.loss_weight", 0.0, -0.5),
        ("model.projection_dim", 1, 0),
        ("model.harmony.strength", 0.01, 0.0),
        ("model.layer_norm_eps", 1e-12, 0.0),
        ("model.initializer_range", 1e-4, 0.0),
    ],
)
def test_the_smallest_legal_value_is_taken_and_a_smaller_one_refused_by_name(load, key, smallest, too_small):
    assert dict(leaves(load(f"{key}={smallest}").to_dict()))[key] == smallest
    with pytest.raises(ConfigError, match=rf"{key}: Input should be greater than .*got {too_small}"):
        load(f"{key}={too_small}")


def test_a_share_is_at_most_one(load):
    assert load("model.dropout=1.0").model.dropout == 1.0
    with pytest.raises(ConfigError, match="model.dropout: Input should be less than or equal to 1, got 1.01"):
        load("model.dropout=1.01")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.total_steps=null"], "set exactly one of train.total_steps and train.epochs"),
        (["train.accumulation=3"], "global_batch_size 64 must be a multiple of train.accumulation 3"),
        (["model.blocks.fusion.causal=[video]"], "fusion.causal names 'video'; the model has text, audio"),
        (["model.num_heads=7"], "fusion.num_heads 7 must divide hidden_size 768"),
    ],
)
def test_what_no_single_key_can_say_is_checked(load, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load(*overrides)


def test_a_run_by_epochs_or_with_heads_of_its_own_in_a_block_is_legal(load):
    assert load("train.total_steps=null", "train.epochs=2").train.epochs == 2
    assert load("model.num_heads=7", "model.blocks.fusion.num_heads=8").model.blocks["fusion"].num_heads == 8
    assert load("train.accumulation=64").train.accumulation == 64


def test_a_model_without_modalities_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: x\nmodel: {}\ntrain: {total_steps: 1}\n")
    with pytest.raises(ConfigError, match="model.modalities must name at least one modality"):
        config.load(path)


def test_given_keys_are_those_of_file_base_and_overrides_and_no_defaults(tmp_path):
    (tmp_path / "base.yaml").write_text("hidden_size: 64\nblocks: {fusion: {norm: post}}\n")
    path = tmp_path / "run.yaml"
    path.write_text("name: x\nmodel: {base: base.yaml, num_heads: 2}\n")
    assert config.given_keys(path, ["train.epsilon=1e-4"]) == {
        "name",
        "model.hidden_size",
        "model.num_heads",
        "model.blocks.fusion.norm",
        "train.epsilon",
    }


def test_a_base_inside_a_base_lies_beside_it(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/low.yaml").write_text("hidden_size: 64\nnum_heads: 2\n")
    (tmp_path / "models/high.yaml").write_text("base: low.yaml\nnum_heads: 4\n")
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL.replace("model:\n", "model:\n  base: models/high.yaml\n"))
    model = config.load(path).model
    assert (model.hidden_size, model.num_heads, list(model.modalities)) == (64, 4, ["text", "audio"])


def test_keys_of_one_kind_do_not_reach_another_but_those_of_the_same_kind_do(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "modalities:\n"
        "  image: {embedder: patches, head: regression, mask_ratio: 0.5, input: {kind: image_patches, patch: 8}}\n"
        "  text: {embedder: tokens, head: vocabulary, input: {kind: text_tokens, max_tokens: 9}}\n"
    )
    path = tmp_path / "run.yaml"
    path.write_text(
        "name: x\ntrain: {total_steps: 1}\nmodel:\n  base: base.yaml\n  modalities:\n"
        "    image: {input: {kind: region_features, dim: 4}}\n"
        "    text: {input: {kind: text_tokens, use_description: false}}\n"
    )
    image, text = (config.load(path).model.modalities[name] for name in ("image", "text"))
    assert (image.input.kind, image.input.dim, image.mask_ratio) == ("region_features", 4, 0.5)
    assert (text.input.max_tokens, text.input.use_description) == (9, False)


def test_several_faults_are_named_at_once(load):
    with pytest.raises(ConfigError) as caught:
        load("data.chunk_size=0", "train.keep_last=a", "train.kept=1")
    message = str(caught.value)
    assert message.count("; ") >= 2
    for part in (
        "data.chunk_size: Input should be greater than 0, got 0",
        "train.keep_last: ",
        "unknown key train.kept",
    ):
        assert part in message


def test_a_missing_key_is_named(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL.replace("name: x\n", ""))
    with pytest.raises(ConfigError, match=r"run\.yaml: name is missing"):
        config.load(path)
