"""DeepSpeed's JSON and the run YAML: every value has one home, every contradiction one line."""

import json
from pathlib import Path

import pytest

from m5ds import config
from m5ds.config import ConfigError
from m5ds.train.engine import ds_config

ROOT = Path(__file__).resolve().parents[3]
QUICKSTART = ROOT / "configs/run/quickstart.yaml"


def written(tmp_path: Path, **changes) -> Path:
    tree = json.loads((ROOT / "configs/zero3.json").read_text())
    for key, value in changes.items():
        node = tree
        *parents, last = key.split("__")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(tree))
    return path


def resolved(path: Path, overrides: tuple[str, ...] = (), world_size: int = 1, precision: str = "fp32") -> dict:
    run = config.load(QUICKSTART, list(overrides))
    ds = ds_config.read(path)
    run = ds_config.merge(ds, run, str(QUICKSTART), config.given_keys(QUICKSTART, list(overrides)))
    steps = run.train.total_steps or 10
    return ds_config.resolve(ds, run, world_size=world_size, total_steps=steps, cpu=True, precision=precision)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("name", ["zero3", "zero3_offload", "zero3_fp16", "zero2"])
def test_shipped_json_files_resolve_every_auto(name: str, precision: str) -> None:
    tree = resolved(ROOT / f"configs/{name}.json", world_size=2, precision=precision)
    assert "auto" not in json.dumps(tree)
    assert tree["train_batch_size"] == 2 * tree["train_micro_batch_size_per_gpu"]
    assert tree["optimizer"]["params"]["torch_adam"] is True
    assert {half: tree[half]["enabled"] for half in ("bf16", "fp16") if half in tree}.items() <= {
        ("bf16", precision == "bf16"),
        ("fp16", precision == "fp16"),
    }


def test_a_value_in_both_files_names_both_and_the_key(tmp_path: Path) -> None:
    path = written(tmp_path, train_batch_size=48)
    with pytest.raises(ConfigError, match=r"ds\.json: train_batch_size is 48 and .*\.yaml: train\.global_batch"):
        resolved(path)


def test_what_only_the_json_says_counts(tmp_path: Path) -> None:
    tree = resolved(written(tmp_path, optimizer__params__weight_decay=0.25))
    assert tree["optimizer"]["params"]["weight_decay"] == 0.25


def test_adams_epsilon_comes_from_the_yaml_unless_the_json_says_it(tmp_path):
    assert resolved(written(tmp_path), ("train.epsilon=1e-4",))["optimizer"]["params"]["eps"] == 1e-4
    assert resolved(written(tmp_path, optimizer__params__eps=1e-6))["optimizer"]["params"]["eps"] == 1e-6
    with pytest.raises(ConfigError, match="train.epsilon"):
        resolved(written(tmp_path, optimizer__params__eps=1e-6), ("train.epsilon=1e-4",))


def test_an_override_on_the_command_line_counts_as_given(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weight_decay"):
        resolved(written(tmp_path, optimizer__params__weight_decay=0.25), ("train.weight_decay=0.1",))


def test_micro_batch_follows_from_batch_and_ranks(tmp_path: Path) -> None:
    path = written(tmp_path, train_micro_batch_size_per_gpu=16)
    with pytest.raises(ConfigError, match="train_micro_batch_size_per_gpu is 16, must be 24"):
        resolved(path, world_size=2)


def test_batch_that_the_ranks_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"global_batch_size 48 must be a multiple of 5"):
        resolved(ROOT / "configs/zero3.json", world_size=5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zero_optimisation": {"stage": 3}}, "unknown key zero_optimisation"),
        ({"zero_optimization__overlap_com": True}, "zero_optimization.overlap_com"),
        ({"gradient_clipping": "auto"}, 'gradient_clipping is "auto"'),
        ({"bf16__enabled": "on"}, 'bf16.enabled must be true, false or "auto"'),
        ({"fp16__enabled": 1}, 'fp16.enabled must be true, false or "auto"'),
        ({"bf16__enabled": True, "fp16__enabled": True}, "both true"),
        ({"fp16__loss_scale": "auto"}, 'fp16.loss_scale is "auto"'),
        ({"prescale_gradients": True}, "remove prescale_gradients"),
        ({"activation_checkpointing": {}}, "train.activation_checkpointing"),
        ({"checkpoint": {"load_universal": True}}, "load_universal"),
        ({"optimizer": {}}, "optimizer.type is missing"),
        ({"optimizer": []}, "optimizer must be an object"),
    ],
)
def test_unusable_json_is_one_line_that_names_file_and_key(tmp_path: Path, changes: dict, message: str) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(ConfigError) as error:
        resolved(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_scheduler_of_deepspeed_takes_its_steps_from_the_run(tmp_path: Path) -> None:
    scheduler = {"type": "WarmupCosineLR", "params": {"total_num_steps": "auto", "warmup_num_steps": "auto"}}
    params = resolved(written(tmp_path, scheduler=scheduler), ("train.total_steps=50",))["scheduler"]["params"]
    assert params == {"total_num_steps": 50, "warmup_num_steps": 5}


def test_broken_and_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a\.json: not valid JSON"):
        ds_config.read(tmp_path / "a.json")
    with pytest.raises(ConfigError, match=r"b\.json: no such"):
        ds_config.read(tmp_path / "b.json")


@pytest.mark.parametrize("length", ["total_steps=9", "epochs=2"])
def test_the_length_of_a_run_is_the_yamls(tmp_path: Path, length: str) -> None:
    """Which must say one of the two, so that the line that trains twice as long can always raise it there."""
    scheduler = {"type": "WarmupCosineLR", "params": {"total_num_steps": 9}}
    other = ("train.total_steps=null",) if length.startswith("epochs") else ()
    with pytest.raises(ConfigError, match=r"scheduler\.params\.total_num_steps is 9 and "):
        resolved(written(tmp_path, scheduler=scheduler), (f"train.{length}", *other))


def test_what_the_json_says_has_the_type_of_the_runs_key(tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(
        "name: x\nmodel: {modalities: {text: {embedder: tokens, head: vocabulary, input: {kind: text_tokens}}}}\n"
        "train: {total_steps: 3}\n"
    )

    def merged(**changes):
        ds = ds_config.read(written(tmp_path, **changes))
        return ds_config.merge(ds, config.load(run), "run.yaml", config.given_keys(run)).train

    assert merged(train_batch_size=8, gradient_accumulation_steps=2).accumulation == 2
    assert merged(optimizer__params__betas=[0.5, 0.75]).betas == (0.5, 0.75)
    assert merged(optimizer__params__lr=1).learning_rate == 1
    assert merged(train_batch_size="auto") == config.load(run).train
    for changes, expected in (
        ({"train_batch_size": 8.0}, "train_batch_size must be int or"),
        ({"train_batch_size": True}, "train_batch_size must be int or"),
        ({"gradient_accumulation_steps": 2.0}, "gradient_accumulation_steps must be int or"),
        ({"optimizer__params__betas": 0.5}, "optimizer.params.betas must be list or"),
        ({"optimizer__params__lr": "1e-3"}, "optimizer.params.lr must be int or float or"),
        ({"optimizer__params__lr": False}, "optimizer.params.lr must be int or float or"),
    ):
        with pytest.raises(ConfigError, match=expected):
            merged(**changes)


def test_sections_are_objects_and_a_file_is_one(tmp_path: Path) -> None:
    for section in ("optimizer", "scheduler", "zero_optimization", "bf16", "fp16", "checkpoint"):
        with pytest.raises(ConfigError, match=rf"ds\.json: {section} must be an object, got 'x'"):
            ds_config.read(written(tmp_path, **{section: "x"}))
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"a\.json: must hold a JSON object, got list"):
        ds_config.read(tmp_path / "a.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ConfigError, match=r"b\.json: not valid JSON"):
        ds_config.read(tmp_path / "b.json")


def test_a_half_that_is_not_switched_on_may_stand_beside_one_that_is(tmp_path: Path) -> None:
    for halves in ((True, False), (False, True), (True, "auto"), ("auto", "auto"), (False, False)):
        changes = dict(zip(("bf16__enabled", "fp16__enabled"), halves, strict=True))
        assert ds_config.read(written(tmp_path, **changes)).tree["bf16"]["enabled"] == halves[0]
    assert ds_config.read(written(tmp_path, checkpoint={"load_universal": False})).path == str(tmp_path / "ds.json")


def test_resolving_leaves_what_was_read_as_it_is_and_keeps_equal_values(tmp_path: Path) -> None:
    ds = ds_config.read(written(tmp_path, train_micro_batch_size_per_gpu=48, gradient_clipping=1.0))
    before = json.dumps(ds.tree)
    run = config.load(QUICKSTART)
    tree = ds_config.resolve(ds, run, world_size=1, total_steps=9, cpu=True, precision="fp32")
    assert json.dumps(ds.tree) == before
    assert (tree["train_micro_batch_size_per_gpu"], tree["gradient_clipping"]) == (48, 1.0)
