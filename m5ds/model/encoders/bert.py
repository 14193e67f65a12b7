"""The encoders of the BERT family that `init_from` reads, and what each needs of the layers that it is to fill.

A family differs from BERT in the prefix of its keys and in where its positions begin. Whatever a directory's
config.json asks for that the layers do not do is refused: it would load, and give other states.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from m5ds.config import ModelConfig
from m5ds.model import fusion
from m5ds.model.blocks import ACTIVATIONS


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the tensors of one model_type are named and counted."""

    prefix: str
    """What the keys of a model with a head begin with; a bare encoder's do not."""
    positions_follow_padding: bool = False
    """RoBERTa: the first token's position is pad_token_id + 1, since fairseq counts padding as a position."""


FAMILIES = {
    "bert": Family(prefix="bert."),
    "camembert": Family(prefix="roberta.", positions_follow_padding=True),
    "electra": Family(prefix="electra."),
    "roberta": Family(prefix="roberta.", positions_follow_padding=True),
    "xlm-roberta": Family(prefix="roberta.", positions_follow_padding=True),
}


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """What a directory's config.json says, the defaults of its model_type filled in."""

    family: Family
    settings: Any
    """The transformers configuration."""

    @property
    def first_position(self) -> int:
        """The row of the position table that belongs to the first token."""
        return self.settings.pad_token_id + 1 if self.family.positions_follow_padding else 0


def read_encoder(name: str, directory: Path) -> Encoder:
    """The encoder that `model.modalities.<name>.init_from` names. ValueError: no config.json that can be read, or one
    of another family.
    """
    where = f"model.modalities.{name}.init_from: {directory}/config.json"
    try:
        tree = json.loads((directory / "config.json").read_text())
    except OSError as error:
        raise ValueError(
            f"{where} cannot be read: {error.strerror}; name a local Hugging Face BERT directory"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON ({error}); copy the directory again") from error
    kind = tree.pop("model_type", None) if isinstance(tree, dict) else None
    if kind is None:
        raise ValueError(f'{where} names no model_type; write "model_type": "bert" into it if it is a BERT')
    if kind not in FAMILIES:
        raise ValueError(f"{where}: model_type {kind} is not read, only {', '.join(FAMILIES)}; name one of these")
    try:
        settings = AutoConfig.for_model(kind, **tree)
    except Exception as error:  # transformers' own types, which derive from Exception alone
        raise ValueError(f"{where}: {' '.join(str(error).split())}; copy the directory again") from error
    return Encoder(family=FAMILIES[kind], settings=settings)


def misfits(spec: ModelConfig, name: str, vocab_size: int, encoder: Encoder) -> list[str]:
    """Everything in which the encoder and the model disagree, one clause each with what to set; empty where it fits."""
    it, where = encoder.settings, f"model.modalities.{name}"
    unimodal = _unimodal(spec)
    problems = []
    if it.hidden_size != spec.hidden_size:
        problems.append(f"hidden_size is {it.hidden_size}, set model.hidden_size to it (now {spec.hidden_size})")
    if getattr(it, "embedding_size", it.hidden_size) != it.hidden_size:
        problems.append(
            f"embedding_size is {it.embedding_size}, not its hidden_size: name an encoder without projection"
        )
    if it.vocab_size != vocab_size:
        problems.append(f"vocab_size is {it.vocab_size}, set data.tokenizer to its own (now {vocab_size} tokens)")
    if it.layer_norm_eps != spec.layer_norm_eps:
        problems.append(
            f"its layer_norm_eps is another, set model.layer_norm_eps={it.layer_norm_eps} (now {spec.layer_norm_eps})"
        )
    rows = it.max_position_embeddings - encoder.first_position
    if spec.modalities[name].input.max_rows > rows:
        problems.append(
            f"max_position_embeddings leaves {rows} positions, set {where}.input.max_tokens to at most that"
            f" (now {spec.modalities[name].input.max_rows})"
        )
    if getattr(it, "position_embedding_type", None) not in (None, "absolute"):
        problems.append(f"position_embedding_type is {it.position_embedding_type}: name an encoder with absolute ones")
    if it.is_decoder:
        problems.append("is_decoder is true: name an encoder that sees both ways")
    if it.type_vocab_size < 1:
        problems.append("type_vocab_size is 0: name an encoder with token types")
    if len(unimodal) > it.num_hidden_layers:
        problems.append(
            f"num_hidden_layers is {it.num_hidden_layers}, set model.blocks.<name>.repeat to leave at most that many"
            f" unimodal layers (now {len(unimodal)})"
        )
    m = spec.modality_names.index(name)
    for layer in unimodal:
        problems += _layer_misfits(it, layer, name, m)
    return list(dict.fromkeys(problems))


def _unimodal(spec: ModelConfig) -> tuple[fusion.LayerSpec, ...]:
    layers = fusion.layers(spec)
    return layers[: fusion.num_unimodal(layers)]


def _layer_misfits(it: Any, layer: fusion.LayerSpec, name: str, m: int) -> list[str]:
    block = f"model.blocks.{layer.name.rpartition('_')[0]}"
    problems = []
    if layer.pre_norm:
        problems.append(f"its layers are post-norm, set {block}.norm=post (now pre)")
    if it.hidden_act not in ACTIVATIONS:
        problems.append(f"hidden_act is {it.hidden_act}, which no block computes: {', '.join(ACTIVATIONS)}")
    elif layer.activation != it.hidden_act:
        problems.append(f"hidden_act is {it.hidden_act}, set {block}.activation to it (now {layer.activation})")
    if layer.num_heads != it.num_attention_heads:
        problems.append(
            f"num_attention_heads is {it.num_attention_heads}, set {block}.num_heads to it (now {layer.num_heads})"
        )
    if layer.ffn_dim != it.intermediate_size:
        problems.append(f"intermediate_size is {it.intermediate_size}, set {block}.ffn_dim to it (now {layer.ffn_dim})")
    for what, is_shared in (("attention_weights", layer.shared_attention), ("ffn_weights", layer.shared_ffn)):
        if is_shared:
            problems.append(f"its weights are {name}'s alone, set {block}.{what}=per_modality (now shared)")
    if not layer.updates[m]:
        problems.append(f"its layers change {name}, add it to {block}.updates")
    if not layer.visibility[m][m]:
        problems.append(f"its tokens see each other, let {name} see itself in {block}.visibility")
    if layer.causal[m]:
        problems.append(f"its tokens see both ways, take {name} out of {block}.causal")
    return problems
