"""The command of m5ds/pretrain.py on one rank: exit codes, run folder, stop and resume."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import launching  # noqa: E402
import pytest
import small_run  # noqa: E402

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).resolve().parents[2]


def bad_inputs(data: small_run.SmallData, root: Path) -> dict[str, tuple[list[str], str]]:
    """Command lines by name, each with a part of the line that it must print."""
    out = root / "bad"
    no_shard, wrong_bytes, no_index = (data.damaged(name) for name in ("no_shard", "wrong_bytes", "no_manifest"))
    (no_shard / "train/000000.tar").unlink()
    shard = bytearray((wrong_bytes / "train/000000.tar").read_bytes())
    shard[len(shard) // 2] ^= 0xFF
    (wrong_bytes / "train/000000.tar").write_bytes(shard)
    (no_index / "manifest.json").unlink()
    contradiction = json.loads((ROOT / "configs/zero3.json").read_text()) | {"train_batch_size": 32}
    (root / "contradiction.json").write_text(json.dumps(contradiction))
    return {
        "unknown key": (data.arguments(out, "train.lerning_rate=1"), "unknown key train.lerning_rate"),
        "wrong type": (data.arguments(out, "model.dropout=much"), "model.dropout"),
        "missing shard": (data.arguments(out, shards=no_shard), "000000.tar"),
        "shard of other bytes": (data.arguments(out, shards=wrong_bytes), "000000.tar"),
        "no manifest": (data.arguments(out, shards=no_index), "manifest.json"),
        "no shards": (data.arguments(out, shards=root / "nowhere"), "nowhere"),
        "tokenizer of another size": (data.arguments(out, vocab_size=999), "data.tokenizer.vocab_size is 999"),
        "fewer products than a batch": (data.arguments(out, "train.global_batch_size=4096"), "global_batch_size"),
        "contradicting JSON": (
            data.arguments(out, "--ds_config", str(root / "contradiction.json")),
            "train_batch_size is 32",
        ),
        "no such config": (["--config", str(root / "no.yaml")], "no.yaml: no such configuration file"),
        "nothing to resume": (data.arguments(out, "--resume", str(root / "nowhere")), "no run there"),
    }


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> tuple[Path, dict[str, tuple[list[str], str]], dict[str, dict]]:
    """All command lines in one process: their results by name."""
    root = tmp_path_factory.mktemp("command")
    data = small_run.SmallData(root / "data")
    bad = bad_inputs(data, root)
    cases: dict[str, dict] = {name: {"arguments": arguments} for name, (arguments, _) in bad.items()}
    whole, cut = root / "whole", root / "cut"
    cases["whole"] = {"arguments": data.arguments(whole, "train.save_every=4", "train.keep_last=2")}
    cases["cut"] = {"arguments": data.arguments(cut), "stop_after": 5}
    cases["resumed"] = {}
    cases["other model"] = {"arguments": data.arguments(cut, "--resume", "auto", "model.ffn_dim=48")}
    cases["no budget"] = {"arguments": data.arguments(root / "no_budget", "data.max_bad_fraction=0.0")}
    for name, enabled in (("bf16", True), ("fp32", False)):
        tree = json.loads((ROOT / "configs/zero3.json").read_text())
        tree["bf16"]["enabled"], tree["fp16"]["enabled"] = enabled, False
        (root / f"{name}.json").write_text(json.dumps(tree))
    half, resume = root / "bf16", ("--resume", "auto", "--ds_config")
    said = ("--ds_config", str(root / "bf16.json"))
    cases["bf16 whole"] = {"arguments": data.arguments(root / "bf16_whole", *said, steps=2)}
    cases["bf16"] = {"arguments": data.arguments(half, *said, steps=2), "stop_after": 1}
    cases["bf16 to fp32"] = {"arguments": data.arguments(half, *resume, str(root / "fp32.json"), steps=2)}
    cases["bf16 resumed"] = {"arguments": data.arguments(half, *resume, "configs/zero3.json", steps=2)}
    cases["fp16"] = {"arguments": data.arguments(root / "fp16", "--ds_config", "configs/zero3_fp16.json", steps=1)}
    cases["again"] = {"arguments": data.arguments(cut, steps=1)}
    (root / "cases.json").write_text(json.dumps(list(cases.values())))
    worker = Path(__file__).with_name("worker_commands.py")
    done = subprocess.run(
        [sys.executable, str(worker), str(root / "cases.json"), str(root / "out.json")],
        cwd=root,
        env=launching.environment(),
        timeout=600,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    results = dict(zip(cases, json.loads((root / "out.json").read_text()), strict=True))
    return root, bad, results


def test_bad_input_is_one_line_and_exit_code_2(commands) -> None:
    root, bad, results = commands
    for name, (_, message) in bad.items():
        assert results[name]["code"] == 2, f"{name}: {results[name]}"
        lines = results[name]["stderr"].strip().splitlines()
        assert len(lines) == 1, f"{name}: {lines}"
        assert lines[0].startswith("error: "), name
        assert message in lines[0], f"{name}: {lines[0]}"
    assert not (root / "bad").exists(), "a run that never started left a folder"


def test_a_run_leaves_what_it_promises(commands) -> None:
    root, _, results = commands
    assert results["whole"]["code"] == 0, results["whole"]["stderr"]
    folder = root / "whole/quickstart"
    for name in ("config.yaml", "ds_config.json", "run.json", "tokenizer", "tensorboard", "metrics.jsonl"):
        assert (folder / name).exists(), name
    kept = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    assert kept == ["step-00000008", "step-00000012"]
    final = folder / "checkpoints/step-00000012"
    assert (folder / "checkpoints/latest").read_text() == "step-00000012"
    files = json.loads((final / "manifest.json").read_text())["files"]
    assert {"state.json", "model/config.json", "random_00000.pt"} < set(files)
    assert any(name.startswith("tokenizer/") for name in files)
    state = json.loads((final / "state.json").read_text())
    assert (state["step"], state["position"], state["world_size"]) == (12, 12 * 16, 1)
    assert len(small_run.recorded(folder)) == 12
    assert sorted(small_run.recorded(folder, "validation")) == [0, 12]


def test_final_table_names_losses_retrieval_chance_memory_and_how_to_go_on(commands) -> None:
    text = commands[2]["whole"]["stdout"]
    for part in (
        "training mlm",
        "held out mlm",
        "image->text",
        "chance",
        "peak memory",
        "tensorboard --logdir",
        "--resume",
    ):
        assert part in text, part


def test_stop_and_resume_give_the_losses_of_an_uninterrupted_run_bit_for_bit(commands) -> None:
    root, _, results = commands
    assert results["cut"]["code"] == 128 + 15
    assert "stopped by SIGTERM after 5 of 12 steps" in results["cut"]["stdout"]
    assert results["resumed"]["code"] == 0, results["resumed"]["stderr"]
    whole, cut = (small_run.recorded(root / name / "quickstart") for name in ("whole", "cut"))
    assert sorted(cut) == list(range(1, 13))
    assert cut == whole
    assert (
        small_run.recorded(root / "cut/quickstart", "validation")[12]
        == small_run.recorded(root / "whole/quickstart", "validation")[12]
    )


def test_the_printed_lines_keep_every_override_and_name_the_length_once(commands) -> None:
    """A run of 12 steps, stopped and resumed as printed, became one of the YAML's 120."""
    root, _, results = commands
    again = next(line for line in results["cut"]["stdout"].splitlines() if line.startswith("go on with: "))
    longer = next(line for line in results["resumed"]["stdout"].splitlines() if line.startswith("go on longer "))
    for line, steps in ((again, 12), (longer, 24)):
        words = shlex.split(line)
        assert [word for word in words if word.startswith("train.total_steps=")] == [f"train.total_steps={steps}"]
        assert set(small_run.MODEL) < set(words)
        assert words[words.index("--resume") + 1] == str(root / "cut/quickstart")


def test_every_report_counts_a_damaged_file_once_over_epochs_and_resume(commands) -> None:
    """The metrics counted 61 readings where the summary counted 16 files."""
    root, _, results = commands
    for name, last in (("whole", "whole"), ("cut", "resumed")):
        folder = root / name / "quickstart"
        listed = [json.loads(line) for line in (folder / "bad_media.jsonl").read_text().splitlines()]
        files = {(item["product_id"], item["member"]) for item in listed}
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        counts = [entry["data/bad_media"] for entry in metrics if entry["kind"] == "train"]
        state = json.loads((folder / "checkpoints/step-00000012/state.json").read_text())
        assert state["num_bad"] > len(files) > 0, "no damaged file came up twice: the test shows nothing"
        assert counts == sorted(counts)
        assert counts[-1] == len(listed) == len(files)
        assert re.search(rf"damaged media files +{len(files)} ", results[last]["stdout"])


def test_the_opening_says_which_precision_was_chosen_and_why(commands) -> None:
    root, _, results = commands
    assert "ZeRO-3, fp32 (auto: no GPU), AdamW, on cpu" in results["whole"]["stdout"]
    resolved = json.loads((root / "whole/quickstart/ds_config.json").read_text())
    assert [resolved[half]["enabled"] for half in ("bf16", "fp16")] == [False, False]
    assert json.loads((root / "whole/quickstart/run.json").read_text())[0]["precision"] == "fp32"


def test_bf16_is_obeyed_where_the_json_says_it_and_kept_by_a_run_that_resumes_under_auto(commands) -> None:
    root, _, results = commands
    assert "bf16 (as " in results["bf16"]["stdout"], results["bf16"]["stderr"]
    assert results["bf16 resumed"]["code"] == 0, results["bf16 resumed"]["stderr"]
    assert "bf16 (auto: as in the checkpoint)" in results["bf16 resumed"]["stdout"]
    half, whole = (small_run.recorded(root / name / "quickstart") for name in ("bf16", "bf16_whole"))
    assert sorted(half) == [1, 2] and half == whole
    resolved = json.loads((root / "bf16/quickstart/ds_config.json").read_text())
    assert [resolved[half]["enabled"] for half in ("bf16", "fp16")] == [True, False]
    assert results["bf16 to fp32"]["code"] == 2
    assert "precision was bf16 and is fp32" in results["bf16 to fp32"]["stderr"]
    assert results["fp16"]["code"] == 2
    assert "zero3_fp16.json: fp16.enabled is true, which does not run on rank 0 (no GPU)" in results["fp16"]["stderr"]


def test_checkpoint_of_another_model_is_refused_by_key(commands) -> None:
    result = commands[2]["other model"]
    assert result["code"] == 2
    assert "model.ffn_dim was 64 and is 48" in result["stderr"]


def test_a_new_run_stands_beside_the_earlier_one(commands) -> None:
    root, _, results = commands
    assert results["again"]["code"] == 0, results["again"]["stderr"]
    assert len(small_run.recorded(root / "cut/quickstart")) == 12
    assert len(small_run.recorded(root / "cut/quickstart-2")) == 1


def test_spent_budget_of_damaged_files_stops_with_the_list(commands) -> None:
    root, _, results = commands
    assert results["no budget"]["code"] == 2
    assert "data.max_bad_fraction 0.0" in results["no budget"]["stderr"]
    assert "synthetic/" in results["no budget"]["stderr"].splitlines()[-1]
    assert (root / "no_budget/quickstart/bad_media.jsonl").read_text()
