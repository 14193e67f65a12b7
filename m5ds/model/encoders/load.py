"""Start a token modality from a local Hugging Face BERT or one of its family (bert_family.py): its embeddings and its
first layers (PAPER 1.1).

Rank 0 reads the files and the others receive, whole or as ZeRO-3 shards, so only its node needs the directory. Any
key that is missing or has another shape is an error that lists all of them, raised on every rank before a weight
changes.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from m5ds.model import fusion
from m5ds.model.encoders.bert import Encoder, misfits, read_encoder
from m5ds.model.initialization import gathered, is_partitioned
from m5ds.model.m5mmt import M5ForPretraining

_EMBEDDINGS = {
    "token": "embeddings.word_embeddings.weight",
    "position": "embeddings.position_embeddings.weight",
    "modality": "embeddings.token_type_embeddings.weight",
    "norm_weight": "embeddings.LayerNorm.weight",
    "norm_bias": "embeddings.LayerNorm.bias",
}
_LAYER = {
    "output.{name}.out": "attention.output.dense",
    "output.{name}.norm": "attention.output.LayerNorm",
    "ffn.{name}.fc1": "intermediate.dense",
    "ffn.{name}.fc2": "output.dense",
    "ffn.{name}.norm": "output.LayerNorm",
}


def load_initial_weights(model: M5ForPretraining) -> list[str]:
    """Fill every modality whose configuration names a BERT directory in `init_from`. Collective.

    Returns the names of the parameters that were filled. Raises ValueError on all ranks for a directory that cannot be
    read, a BERT of other sizes, or keys that are missing or have another shape.
    """
    filled: list[str] = []
    for name, settings in model.spec.modalities.items():
        if settings.init_from is not None:
            filled += _load(model, name, Path(settings.init_from))
    return filled


def _load(model: M5ForPretraining, name: str, directory: Path) -> list[str]:
    values: dict[str, Tensor] = {}
    message: str | None = None
    if _rank() == 0:
        try:
            values = bert_values(model, name, directory)
        except (ValueError, OSError) as error:
            message = str(error)
    # Names travel with the error, so that every rank gathers the same parameters in the same order.
    told: list[Any] = [message, list(values)]
    if dist.is_initialized():
        dist.broadcast_object_list(told)
    if told[0] is not None:
        raise ValueError(told[0])
    names: list[str] = told[1]
    parameters = dict(model.named_parameters())
    for key in names:
        parameter = parameters[key]
        with torch.no_grad(), gathered([parameter], writes=True):
            if key in values:
                parameter.copy_(values[key])
            if dist.is_initialized() and not is_partitioned(parameter):
                dist.broadcast(parameter, 0)
    return names


def bert_values(model: M5ForPretraining, name: str, directory: Path) -> dict[str, Tensor]:
    """What each parameter of the modality takes from the BERT, by parameter name. ValueError as
    `load_initial_weights`.
    """
    encoder = _fitting_encoder(model, name, directory)
    state = _state(directory, encoder.family.prefix)
    layers = fusion.layers(model.spec)[: model.num_unimodal]
    wanted = {f"embeddings.{name}_{what}": [key] for what, key in _EMBEDDINGS.items()}
    for number, layer in enumerate(layers):
        source = f"encoder.layer.{number}"
        for kind in ("weight", "bias"):
            projections = [f"{source}.attention.self.{which}.{kind}" for which in ("query", "key", "value")]
            wanted[f"blocks.{layer.name}.attention.{name}.qkv.{kind}"] = projections
            for target, key in _LAYER.items():
                wanted[f"blocks.{layer.name}.{target.format(name=name)}.{kind}"] = [f"{source}.{key}.{kind}"]
    shapes = {
        key: tuple(getattr(value, "ds_shape", value.shape)) for key, value in model.named_parameters() if key in wanted
    }
    values, problems = {}, []
    for target, keys in wanted.items():
        if missing := [key for key in keys if key not in state]:
            problems.append(f"missing {', '.join(missing)}")
            continue
        value = torch.cat([state[key] for key in keys])
        if target.endswith("_position"):
            value = value[encoder.first_position :][: shapes[target][0]]
        if target.endswith("_modality"):
            value = value[0]
        if tuple(value.shape) != shapes[target]:
            problems.append(f"{' + '.join(keys)} is {list(value.shape)}, {target} needs {list(shapes[target])}")
        values[target] = value
    if problems:
        raise ValueError(f"{directory}: does not fit model.modalities.{name}: {'; '.join(problems)}")
    return values


def _fitting_encoder(model: M5ForPretraining, name: str, directory: Path) -> Encoder:
    """The directory's encoder; ValueError lists everything in which it and the layers that it is to fill disagree."""
    encoder = read_encoder(name, directory)
    if model.embeddings.token_table(name) is None:
        raise ValueError(f"model.modalities.{name}.init_from: only modalities of tokens can start from a BERT")
    if problems := misfits(model.spec, name, model.config.vocab_size, encoder):
        raise ValueError(f"{directory}: does not fit model.modalities.{name}: {'; '.join(problems)}")
    return encoder


def _state(directory: Path, prefix: str) -> dict[str, Tensor]:
    """The encoder's tensors by the names of a bare `BertModel`, old TensorFlow-style norm names included."""
    if (directory / "model.safetensors").is_file():
        state = load_file(directory / "model.safetensors")
    elif (directory / "pytorch_model.bin").is_file():
        state = torch.load(directory / "pytorch_model.bin", map_location="cpu", weights_only=True)
    else:
        raise ValueError(f"{directory}: has neither model.safetensors nor pytorch_model.bin")
    renamed = {}
    for key, value in state.items():
        key = key.removeprefix(prefix).replace("LayerNorm.gamma", "LayerNorm.weight")
        renamed[key.replace("LayerNorm.beta", "LayerNorm.bias")] = value
    return renamed


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
