"""A pretrained model for evaluation: from a run's sharded checkpoint of any world size, or a Hugging Face directory."""

import contextlib
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from m5ds import config
from m5ds.data.tokenizer import Tokenizer, load_tokenizer
from m5ds.downstream.finetuning import lora
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.model.objectives.classification import TASK, ClassifierHead
from m5ds.processor import TOKENIZER_FOLDER, M5Processor
from m5ds.train import distributed
from m5ds.train.checkpoints import checkpoint

TOKENIZER = TOKENIZER_FOLDER
HEAD = "head.safetensors"
BEST = "best"
"""Folder of a finetuning run that holds its best checkpoint by validation."""


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """A whole model in fp32 on the CPU, in evaluation mode, and what belongs to it."""

    model: M5ForPretraining
    tokenizer: Tokenizer
    fingerprint: str
    """sha256 over the weights: the same for a run's checkpoint and its Hugging Face directory."""
    source: str
    """Where the weights came from, for messages and reports."""
    run: dict[str, Any] | None = None
    """The run configuration as plain mappings; None for a Hugging Face directory."""
    state: dict[str, Any] | None = None
    """The checkpoint's own record (step, position, hashes); None for a Hugging Face directory."""
    head: ClassifierHead | None = None
    """A finetuned classifier's head, where the checkpoint has one."""


def load_pretrained(path: str | Path, *, untrained: bool = False) -> Pretrained:
    """`path`: a run's folder (its best checkpoint where it has one, else the newest), one tag's folder, or a directory
    that `save_pretrained` wrote. `untrained` keeps the run's initial weights: the baseline that training must beat.

    Collective: every rank calls it and holds the whole model. `ValueError`: nothing usable there, weights of another
    shape, missing or unexpected names, tied weights that differ.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such checkpoint; name a run's folder or a Hugging Face directory")
    if (path / "config.json").is_file():
        return _from_hugging_face(path, untrained)
    if (path / BEST / "checkpoints").is_dir():
        path = path / BEST
    return _from_run(path, untrained)


def _from_run(path: Path, untrained: bool) -> Pretrained:
    found, skipped = checkpoint.find(path)
    if found is None:
        reason = f" ({skipped[0]})" if skipped else ""
        raise ValueError(f"{path}: holds no complete checkpoint{reason}; name a run's folder or a step-NNNNNNNN in it")
    folder = found.root / found.tag
    run = config.parse(found.state["config"], str(folder / "state.json"))
    tokenizer = load_tokenizer(folder / TOKENIZER)
    settings = {"initializer_seed": run.seed, "plugins": run.plugins or None}
    model = M5ForPretraining(M5Config.for_tokenizer(run.model, tokenizer, **settings)).eval()
    head = None
    if not untrained:
        weights = lora.merged(consolidate(found.root, found.tag), found.state.get("finetune", {}))
        weights, head_weights = split_head(weights)
        load_weights(model, weights, str(folder))
        head = None if head_weights is None else build_head(head_weights)
    return Pretrained(
        model=model,
        tokenizer=tokenizer,
        fingerprint=fingerprint(model, head),
        source=f"{folder} (initial weights)" if untrained else str(folder),
        run=found.state["config"],
        state=found.state,
        head=head,
    )


def _from_hugging_face(path: Path, untrained: bool) -> Pretrained:
    where = path / "config.json"
    if json.loads(where.read_text()).get("model_type") != M5Config.model_type:
        raise ValueError(f"{where}: model_type must be {M5Config.model_type}; export a run of this project")
    head = None
    if untrained:
        model = M5ForPretraining(M5Config.from_pretrained(path))
    else:
        model = M5ForPretraining.from_pretrained(path).float()
        head = build_head(load_file(path / HEAD)) if (path / HEAD).is_file() else None
    return Pretrained(
        model=model.eval(),
        tokenizer=load_tokenizer(path / TOKENIZER),
        fingerprint=fingerprint(model, head),
        source=f"{path} (initial weights)" if untrained else str(path),
        head=head,
    )


def export_pretrained(pretrained: Pretrained, directory: Path) -> None:
    """Write what `load_pretrained` and transformers' Auto classes read: model, processor with its tokenizer, and a
    classifier's head.
    """
    pretrained.model.save_pretrained(directory)
    M5Processor.for_model(pretrained.model.spec, pretrained.tokenizer, device="cpu").save_pretrained(directory)
    if pretrained.head is not None:
        save_file({name: value.contiguous() for name, value in pretrained.head.state_dict().items()}, directory / HEAD)


def consolidate(root: Path, tag: str) -> dict[str, Tensor]:
    """fp32 weights by name out of DeepSpeed's ZeRO shards, whatever number of ranks wrote them.

    Ranks of one machine read one after another, so that their peak memory does not add up.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    weights: dict[str, Tensor] = {}
    for rank in range(distributed.world_size()):
        if rank == distributed.rank():
            # It prints, and draws bars, whatever the log level.
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                weights = get_fp32_state_dict_from_zero_checkpoint(str(root), tag=tag)
        distributed.barrier()
    return {name: value.detach().float().contiguous() for name, value in weights.items()}


def split_head(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """The pretrained model's weights, and the head's where these are a finetuned classifier's."""
    prefix = f"objectives.{TASK}.head."
    head = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    return {name: value for name, value in weights.items() if not name.startswith(prefix)}, head or None


def build_head(weights: dict[str, Tensor]) -> ClassifierHead:
    """The head whose weights these are, in evaluation mode."""
    dense_size, width = weights["dense.weight"].shape
    head = ClassifierHead(width, dense_size, weights["output.weight"].shape[0], dropout=0.0)
    head.load_state_dict(weights)
    return head.eval()


def load_weights(model: M5ForPretraining, weights: dict[str, Tensor], where: str) -> None:
    """Strict; tied parameters must carry equal values under both their names, and are tied again."""
    weights = dict(weights)
    for name, source in model._tied_weights_keys.items():
        if name in weights and source in weights and not torch.equal(weights[name], weights[source]):
            raise ValueError(f"{where}: tied weights {name} and {source} differ; the checkpoint is damaged")
        if source in weights:
            weights[name] = weights[source]
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if expected != found:
        name = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))[0]
        raise ValueError(
            f"{where}: weight {name} has shape {found.get(name, 'none')}, the model needs {expected.get(name, 'none')};"
            " the checkpoint belongs to another model"
        )
    model.load_state_dict(weights)
    model.tie_weights()


def fingerprint(model: nn.Module, head: nn.Module | None) -> str:
    """sha256 over names, shapes and fp32 bytes of all parameters, tied ones once, and of a head's."""
    digest = hashlib.sha256()
    named = dict(model.named_parameters())
    if head is not None:
        named |= {f"head.{name}": value for name, value in head.named_parameters()}
    for name in sorted(named):
        value = named[name].detach().float().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
