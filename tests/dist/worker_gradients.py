"""Runs on each rank (tests/dist/test_gradients.py): gradients of global batches under DeepSpeed, written by rank 0.

Usage: worker_gradients.py CASES OUT, where CASES is a torch file of dicts: `spec` (ModelConfig), `presence` (list of
[products, M] bool), `accumulation`, `stage`, `precision`, `draw` (epoch). Rank r takes its share
of consecutive products.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

from m5ds.train import runtime

runtime.prepare_environment()
runtime.start_process_group()

import deepspeed  # noqa: E402
from deepspeed.utils import safe_get_full_grad  # noqa: E402

from m5ds.data.batches.random_batch import random_batch  # noqa: E402
from m5ds.model.configuration import M5Config  # noqa: E402
from m5ds.model.m5mmt import M5ForPretraining  # noqa: E402
from m5ds.train import distributed  # noqa: E402
from m5ds.train.engine import build as engine  # noqa: E402
from m5ds.train.step import TrainStep  # noqa: E402

VOCAB = 64


def model_config(spec) -> M5Config:
    return M5Config.from_spec(spec, vocab_size=VOCAB, mask_id=4, special_ids=[0, 1, 2, 3, 4])


def own_micro_batches(spec, presence, accumulation, draw):
    """This rank's products, cut into micro-batches; product ids are those of the whole batch."""
    size = len(presence) // (distributed.world_size() * accumulation)
    first = distributed.rank() * accumulation * size
    batches = []
    for number in range(accumulation):
        chosen = range(first + number * size, first + (number + 1) * size)
        ids = [f"product-{i}" for i in chosen]
        batches.append(random_batch(spec, [presence[i] for i in chosen], vocab_size=VOCAB, ids=ids, draw=draw))
    return batches


def build(case):
    slots = distributed.world_size() * case["accumulation"]
    products = len(case["presence"][0])
    ds = {
        "train_batch_size": products,
        "train_micro_batch_size_per_gpu": products // slots,
        "gradient_accumulation_steps": case["accumulation"],
        "optimizer": {"type": "SGD", "params": {"lr": 0.0}},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": case["stage"],
            "stage3_param_persistence_threshold": 0,
            "reduce_bucket_size": 2**20,
            "stage3_prefetch_bucket_size": 2**20,
        },
        "steps_per_print": 2**31,
    }
    if case["precision"] != "fp32":
        ds[case["precision"]] = {"enabled": True}
    with engine.partitioned(ds):
        model = M5ForPretraining(model_config(case["spec"]))
    initial = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=case["stage"] == 3):
            initial[name] = parameter.detach().float().clone()
    wrapped, *_ = deepspeed.initialize(
        model=model, model_parameters=engine.parameter_groups(model, 0.0), config=ds, dist_init_required=False
    )
    return model, wrapped, initial


def run(case):
    model, wrapped, initial = build(case)
    step = TrainStep(wrapped, model, seed=3, precision=case["precision"], directory=Path("/nowhere"))
    gradients = {}
    original = wrapped.step

    def reading_step():
        if wrapped.is_gradient_accumulation_boundary():
            for name, parameter in model.named_parameters():
                gradients[name] = safe_get_full_grad(parameter).detach().float().clone()
        original()

    wrapped.step = reading_step
    results = []
    for presence in case["presence"]:
        batches = own_micro_batches(case["spec"], presence, case["accumulation"], case["draw"])
        taken = SimpleNamespace(micro_batches=batches, bad_media=[], num_decoded=0)
        losses = step(batches, step.count(taken, 0))
        results.append({"losses": losses, "gradients": dict(gradients)})
    wrapped.destroy()
    return {"initial": initial, "results": results}


if __name__ == "__main__":
    cases, out = sys.argv[1:]
    found = [run(case) for case in torch.load(cases, weights_only=False)]
    if distributed.rank() == 0:
        torch.save(found, out)
    runtime.end_process_group()
