"""DeepSpeed's JSON, read strictly and joined with the run YAML (DESIGN 3.9): every value has one home.

The JSON owns precision, ZeRO, offload, clipping, the optimizer's kind and DeepSpeed's monitors. Batch, accumulation,
learning rate, decay, betas, epsilon, warm-up and steps are `"auto"` or missing there and come from the run YAML; or the
YAML leaves them to their defaults and the JSON says them. Both is an error.
"""

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Protocol, TypeVar

from m5ds.config import ConfigError, RunConfig, TrainConfig
from m5ds.train.engine.precision import AUTO, HALF

_SHARED = {
    "train_batch_size": "global_batch_size",
    "gradient_accumulation_steps": "accumulation",
    "optimizer.params.lr": "learning_rate",
    "optimizer.params.weight_decay": "weight_decay",
    "optimizer.params.betas": "betas",
    "optimizer.params.eps": "epsilon",
    "scheduler.params.warmup_max_lr": "learning_rate",
    "scheduler.params.total_num_steps": "total_steps",
}
"""JSON key -> key of `train` in the run YAML that means the same."""

_TYPES: dict[str, tuple[type, ...]] = {
    "global_batch_size": (int,),
    "accumulation": (int,),
    "total_steps": (int,),
    "betas": (list,),
}
"""What the JSON may say; a number where the key is not named here."""

_DERIVED = {
    "train_micro_batch_size_per_gpu": "it follows from train.global_batch_size, train.accumulation and the world size",
    "scheduler.params.warmup_num_steps": "it follows from train.warmup_ratio and the steps",
}

_REFUSED = {
    "prescale_gradients": "losses are normalised by global target counts, which relies on DeepSpeed's plain averaging",
    "gradient_predivide_factor": "losses are normalised by global counts, which relies on DeepSpeed's plain averaging",
    "gradient_allreduce_op": "losses are normalised by global target counts, which relies on DeepSpeed's averaging",
    "managed_gradient_accumulation": "the accumulation is train.accumulation of the run YAML",
    "activation_checkpointing": "set train.activation_checkpointing in the run YAML",
    "data_efficiency": "the order of the data is the loader's (m5ds/data/batches/order.py)",
    "curriculum_learning": "the order of the data is the loader's (m5ds/data/batches/order.py)",
    "dataloader_drop_last": "the loader is ours; evaluation pads its last batch with empty products",
    "tensor_parallel": "only data parallelism is supported",
    "expert_parallel": "only data parallelism is supported",
    "pipeline": "only data parallelism is supported",
    "autotuning": "start the run with fixed values",
    "torch_autocast": "choose bf16 or fp16",
}

_KNOWN = {
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "optimizer", "scheduler"),
    *("zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "bf16", "fp16", "aio"),
    *("gradient_clipping", "communication_data_type", "data_types", "checkpoint", "steps_per_print", "dump_state"),
    *("wall_clock_breakdown", "memory_breakdown", "flops_profiler", "comms_logger", "tensorboard", "wandb", "comet"),
    *("csv_monitor", "disable_python_gc", "disable_allgather", "log_level", "timers", "compile", "nebula"),
    *("sparse_gradients", "weight_quantization", "datastates"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepSpeedJson:
    """The JSON as read: `tree` still holds `"auto"`."""

    path: str
    tree: dict[str, Any]

    @property
    def stage(self) -> int:
        return int(self.tree.get("zero_optimization", {}).get("stage", 0))


def read(path: str | Path) -> DeepSpeedJson:
    """The JSON file, its keys checked against what DeepSpeed knows and what this project owns.

    Raises ConfigError: no such file, not JSON, unknown or refused key, no optimizer, both precisions on.
    """
    try:
        tree = json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such DeepSpeed configuration file (--ds_config)") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold a JSON object, got {type(tree).__name__}")
    for key in tree:
        if key in _REFUSED:
            raise ConfigError(f"{path}: remove {key}: {_REFUSED[key]}")
        if key not in _KNOWN:
            raise ConfigError(f"{path}: unknown key {key}; remove it or correct its spelling")
    for section in ("optimizer", "scheduler", "zero_optimization", "bf16", "fp16", "checkpoint"):
        if not isinstance(tree.get(section, {}), dict):
            raise ConfigError(f"{path}: {section} must be an object, got {tree[section]!r}")
    if "type" not in tree.get("optimizer", {}):
        raise ConfigError(f'{path}: optimizer.type is missing; for instance "AdamW"')
    asked = [tree.get(half, {}).get("enabled", False) for half in HALF]
    for half, value in zip(HALF, asked, strict=True):
        if not isinstance(value, bool) and value != AUTO:
            raise ConfigError(f'{path}: {half}.enabled must be true, false or "auto", got {value!r}')
    if all(value is True for value in asked):
        raise ConfigError(f"{path}: bf16.enabled and fp16.enabled are both true; choose one")
    if tree.get("checkpoint", {}).get("load_universal"):
        raise ConfigError(f"{path}: remove checkpoint.load_universal: --resume decides what is loaded")
    _check_zero(str(path), tree.get("zero_optimization", {}))
    return DeepSpeedJson(path=str(path), tree=tree)


def _check_zero(path: str, section: dict[str, Any]) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig  # takes seconds to import: not for bad JSON
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**section)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["zero_optimization", *(str(part) for part in first["loc"])])
        raise ConfigError(f"{path}: {key}: {first['msg']}, got {first['input']!r}") from error


def _get(tree: dict[str, Any], dotted: str) -> Any:
    for part in dotted.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return None
        tree = tree[part]
    return tree


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
    tree[last] = value


class _HasTrain(Protocol):
    @property
    def train(self) -> TrainConfig: ...


Run = TypeVar("Run", bound=_HasTrain)
"""A configuration with a `train` section: a run's, or that of a downstream task."""


def merge(ds: DeepSpeedJson, run: Run, run_path: str, given: frozenset[str]) -> Run:
    """The run configuration with what only the JSON says; `given` are the YAML's own keys (config.given_keys).

    Raises ConfigError that names both files and the key where both say a value.
    """
    changes: dict[str, Any] = {}
    for json_key, train_key in _SHARED.items():
        value = _get(ds.tree, json_key)
        if value in (None, AUTO):
            continue
        if f"train.{train_key}" in given:
            ours = getattr(run.train, train_key)
            raise ConfigError(
                f"{ds.path}: {json_key} is {value!r} and {run_path}: train.{train_key} is {ours!r}; a value has one"
                f' home: write "auto" in {ds.path} or remove the key from {run_path}'
            )
        if train_key == "total_steps" and run.train.epochs is not None:
            raise ConfigError(f'{ds.path}: {json_key} is {value!r} and {run_path} sets train.epochs; write "auto"')
        expected = _TYPES.get(train_key, (int, float))
        if isinstance(value, bool) or not isinstance(value, expected):
            raise ConfigError(
                f'{ds.path}: {json_key} must be {" or ".join(t.__name__ for t in expected)} or "auto", got {value!r}'
            )
        changes[train_key] = tuple(value) if isinstance(value, list) else value
    changed: Any = run
    return dataclasses.replace(changed, train=dataclasses.replace(run.train, **changes)) if changes else run


def resolve(
    ds: DeepSpeedJson, run: RunConfig, *, world_size: int, total_steps: int, cpu: bool, precision: str
) -> dict[str, Any]:
    """The dict for `deepspeed.initialize`: every `"auto"` replaced. `run` is what `merge` returned.

    `precision` is what m5ds/train/engine/precision.py chose: `bf16`, `fp16` or `fp32`.

    Raises ConfigError: batch that the ranks do not divide, a derived value that contradicts, an `"auto"` that stays.
    """
    train = run.train
    slots = world_size * train.accumulation
    if train.global_batch_size % slots:
        raise ConfigError(
            f"train.global_batch_size {train.global_batch_size} must be a multiple of {slots}"
            f" ({world_size} ranks x train.accumulation {train.accumulation})"
        )
    tree = copy.deepcopy(ds.tree)
    derived = {
        "train_micro_batch_size_per_gpu": train.global_batch_size // slots,
        "scheduler.params.warmup_num_steps": warmup_steps(train.warmup_ratio, total_steps),
    }
    for key, value in derived.items():
        said = _get(tree, key)
        if said not in (None, AUTO, value):
            raise ConfigError(f'{ds.path}: {key} is {said!r}, must be {value}: {_DERIVED[key]}; write "auto"')
    shared = {key: getattr(train, train_key) for key, train_key in _SHARED.items()}
    shared["optimizer.params.betas"] = list(train.betas)
    shared["scheduler.params.total_num_steps"] = total_steps
    for key, value in {**shared, **derived}.items():
        # A parameter that an optimizer or scheduler did not ask for is not forced on it (SGD has no betas).
        if "params" not in key or _get(tree, key) == AUTO:
            _set(tree, key, value)
    _set(tree, "optimizer.params.lr", train.learning_rate)
    if _get(tree, "optimizer.type").lower() in ("adam", "adamw"):
        _set(tree, "optimizer.params.weight_decay", train.weight_decay)
        _set(tree, "optimizer.params.betas", list(train.betas))
        _set(tree, "optimizer.params.eps", train.epsilon)
        if cpu:
            # DeepSpeed's own Adam would be compiled first, for about 70 s (FINDINGS, "DeepSpeed on CPU").
            _set(tree, "optimizer.params.torch_adam", True)
    for key, value in _bucket_sizes(run.model.hidden_size).items():
        if _get(tree, f"zero_optimization.{key}") == AUTO:
            _set(tree, f"zero_optimization.{key}", value)
    for half in HALF:
        if half in tree:
            tree[half]["enabled"] = half == precision
    tree.setdefault("steps_per_print", 2**31)
    _refuse_auto(ds.path, tree, "")
    return tree


def warmup_steps(warmup_ratio: float, total_steps: int) -> int:
    """Steps of linear warm-up: at least one."""
    return max(1, math.ceil(warmup_ratio * total_steps))


def _bucket_sizes(hidden_size: int) -> dict[str, int]:
    """Elements. DeepSpeed's defaults of 5e8 hold a gigabyte each; these follow the model as Hugging Face's do."""
    return {
        "reduce_bucket_size": max(hidden_size * hidden_size, 2**20),
        "stage3_prefetch_bucket_size": max(int(0.9 * hidden_size * hidden_size), 2**20),
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }


def _refuse_auto(path: str, node: Any, key: str) -> None:
    if node == AUTO:
        raise ConfigError(f'{path}: {key} is "auto", but nothing in the run says it; give a value')
    if isinstance(node, dict):
        for name, value in node.items():
            _refuse_auto(path, value, f"{key}.{name}" if key else name)
