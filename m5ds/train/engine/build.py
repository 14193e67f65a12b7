"""The model under DeepSpeed.

Weights are filled by parameter name from the run's seed, so plain torch and every ZeRO stage start alike. Under bf16
and fp16 the forward sees rounded weights; the optimizer's master copy of every parameter, logit scale and harmony
included, is fp32, and both of these are used in fp32 inside their modules.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import deepspeed
from deepspeed.utils import safe_get_full_fp32_param

from m5ds.config import RunConfig
from m5ds.data.tokenizer import Tokenizer
from m5ds.model.configuration import M5Config
from m5ds.model.encoders.load import load_initial_weights
from m5ds.model.m5mmt import M5ForPretraining
from m5ds.train.engine import ds_config, schedule


def build_model(config: RunConfig, tokenizer: Tokenizer, ds: dict[str, Any], *, resumes: bool) -> M5ForPretraining:
    """The model with its initial weights; partitioned over ranks from the start under stage 3. Collective.

    A run that resumes does not read the directories that `init_from` names. ValueError where they do not fit.
    """
    model_config = M5Config.for_tokenizer(
        config.model,
        tokenizer,
        initializer_seed=config.seed,
        activation_checkpointing=config.train.activation_checkpointing,
        plugins=config.plugins or None,
    )
    with partitioned(ds):
        model = M5ForPretraining(model_config)
    if not resumes:
        load_initial_weights(model)
    return model


def partitioned(ds: dict[str, Any]) -> AbstractContextManager[Any]:
    """`zero.Init` under stage 3, nothing else."""
    if ds.get("zero_optimization", {}).get("stage", 0) != 3:
        return nullcontext()
    return deepspeed.zero.Init(config_dict_or_path=ds)


def parameter_groups(model: M5ForPretraining, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: with weight decay, and without (norms, biases, single vectors, logit scale, harmony)."""
    without = model.no_weight_decay_names()
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if name not in without], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name in without], "weight_decay": 0.0},
    ]


def initialize(model: Any, config: RunConfig, ds: dict[str, Any], total_steps: int) -> Any:
    """The DeepSpeed engine. The schedule is ours unless the JSON names one of DeepSpeed's."""
    scheduler = None
    if "scheduler" not in ds:
        warmup = ds_config.warmup_steps(config.train.warmup_ratio, total_steps)
        scheduler = schedule.warmup_cosine(warmup, total_steps)
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=parameter_groups(model, config.train.weight_decay),
        config=ds,
        lr_scheduler=scheduler,
        dist_init_required=False,
    )
    return engine


def logged_parameters(model: M5ForPretraining) -> dict[str, float]:
    """What objectives show of their parameters (a temperature), from the fp32 master copies. Collective."""
    values = {}
    for _, objective in model.objectives.chosen():
        for name, (parameter, convert) in objective.logged_parameters().items():
            value = safe_get_full_fp32_param(parameter)
            values[name] = float(convert((parameter if value is None else value).detach().float()).item())
    return values
