"""What the joined configuration holds, number by number."""

import json

import pytest

from m5ds import config
from m5ds.config import ConfigError
from m5ds.train.engine import ds_config

RUN = """
name: x
model:
  modalities: {text: {embedder: tokens, head: vocabulary, input: {kind: text_tokens}}}
  hidden_size: 2048
train: {%s, global_batch_size: 48, accumulation: 2, learning_rate: 0.002, betas: [0.8, 0.95]}
"""


@pytest.fixture
def resolve(tmp_path):
    def call(tree, *, cpu=True, world_size=3, total_steps=101, length="total_steps: 101", precision="fp32"):
        (tmp_path / "ds.json").write_text(json.dumps(tree))
        (tmp_path / "run.yaml").write_text(RUN % length)
        run, given = config.load(tmp_path / "run.yaml"), config.given_keys(tmp_path / "run.yaml")
        ds = ds_config.read(tmp_path / "ds.json")
        run = ds_config.merge(ds, run, "run.yaml", given)
        return ds_config.resolve(ds, run, world_size=world_size, total_steps=total_steps, cpu=cpu, precision=precision)

    return call


def test_the_run_fills_in_what_the_json_leaves_out_and_forces_nothing_on_other_optimizers(resolve):
    assert resolve({"optimizer": {"type": "SGD"}}) == {
        "optimizer": {"type": "SGD", "params": {"lr": 0.002}},
        "train_batch_size": 48,
        "gradient_accumulation_steps": 2,
        "train_micro_batch_size_per_gpu": 8,
        "steps_per_print": 2**31,
    }


@pytest.mark.parametrize(("cpu", "more"), [(True, {"torch_adam": True}), (False, {})])
def test_adam_has_all_that_the_run_says(resolve, cpu, more):
    for kind in ("Adam", "AdamW"):
        assert resolve({"optimizer": {"type": kind}}, cpu=cpu)["optimizer"]["params"] == {
            "lr": 0.002,
            "betas": [0.8, 0.95],
            "eps": 1e-8,
            "weight_decay": 0.01,
            **more,
        }


def test_an_auto_parameter_is_replaced_and_a_given_one_kept(resolve):
    scheduler = {
        "type": "WarmupLR",
        "params": {"warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto"},
    }
    tree = resolve(
        {"optimizer": {"type": "Lion", "params": {"betas": "auto"}}, "scheduler": scheduler, "steps_per_print": 5}
    )
    assert tree["optimizer"]["params"] == {"lr": 0.002, "betas": [0.8, 0.95]}
    assert tree["scheduler"]["params"] == {"warmup_max_lr": 0.002, "warmup_num_steps": 11, "total_num_steps": 101}
    assert tree["steps_per_print"] == 5


@pytest.mark.parametrize(
    ("hidden", "sizes"),
    [(64, (2**20, 2**20, 640)), (2048, (2048 * 2048, 3774873, 20480)), (1100, (1_210_000, 1_089_000, 11_000))],
)
def test_buckets_follow_the_models_width(hidden, sizes):
    assert tuple(ds_config._bucket_sizes(hidden).values()) == sizes


def test_only_auto_buckets_are_replaced(resolve):
    zero = {"stage": 3, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": 77}
    tree = resolve({"optimizer": {"type": "SGD"}, "zero_optimization": zero})
    assert tree["zero_optimization"] == {
        "stage": 3,
        "reduce_bucket_size": 2048 * 2048,
        "stage3_prefetch_bucket_size": 77,
    }


@pytest.mark.parametrize(("ratio", "total", "steps"), [(0.0, 100, 1), (0.1, 100, 10), (0.1, 101, 11), (1.0, 5, 5)])
def test_warm_up_is_rounded_up_and_one_step_at_least(ratio, total, steps):
    assert ds_config.warmup_steps(ratio, total) == steps


@pytest.mark.parametrize(
    ("tree", "stage"),
    [({}, 0), ({"zero_optimization": {}}, 0), ({"zero_optimization": {"stage": 2}}, 2)],
)
def test_the_stage_is_what_the_json_says_and_none_is_zero(tmp_path, tree, stage):
    (tmp_path / "ds.json").write_text(json.dumps({"optimizer": {"type": "SGD"}, **tree}))
    assert ds_config.read(tmp_path / "ds.json").stage == stage


@pytest.mark.parametrize("chosen", ["bf16", "fp16", "fp32"])
def test_sections_of_precision_that_are_there_say_what_was_chosen(resolve, chosen):
    tree = {"optimizer": {"type": "SGD"}, "bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto", "loss_scale": 0}}
    found = resolve(tree, precision=chosen)
    assert found["bf16"] == {"enabled": chosen == "bf16"}
    assert found["fp16"] == {"enabled": chosen == "fp16", "loss_scale": 0}
    alone = resolve({"optimizer": {"type": "SGD"}, "bf16": {"enabled": True}}, precision="bf16")
    assert "fp16" not in alone and alone["bf16"]["enabled"] is True


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"optimizer": {"type": "SGD", "params": {"weight_decay": True}}}, "weight_decay must be int or float"),
        (
            {"optimizer": {"type": "SGD", "params": {"eps": "small"}}},
            "eps must be int or float or \"auto\", got 'small'",
        ),
        ({"optimizer": {"type": "SGD"}, "train_micro_batch_size_per_gpu": 9}, "is 9, must be 8"),
        ({"optimizer": {"type": "SGD"}, "zero_optimization": {"stage": "three"}}, "zero_optimization.stage"),
        ({"optimizer": {"type": "SGD"}, "bf16": []}, "bf16 must be an object"),
    ],
)
def test_values_that_contradict_or_have_another_type_are_refused(resolve, tree, message):
    with pytest.raises(ConfigError, match=message):
        resolve(tree)


def test_the_json_cannot_set_the_steps_of_a_run_by_epochs(resolve):
    tree = {"optimizer": {"type": "SGD"}, "scheduler": {"type": "WarmupLR", "params": {"total_num_steps": 9}}}
    with pytest.raises(ConfigError, match="total_num_steps is 9 and run.yaml sets train.epochs"):
        resolve(tree, length="epochs: 2")


def test_a_batch_must_be_dealt_to_all_slots(resolve):
    assert resolve({"optimizer": {"type": "SGD"}}, world_size=24)["train_micro_batch_size_per_gpu"] == 1
    with pytest.raises(
        ConfigError, match="global_batch_size 48 must be a multiple of 10 .5 ranks x train.accumulation 2"
    ):
        resolve({"optimizer": {"type": "SGD"}}, world_size=5)
