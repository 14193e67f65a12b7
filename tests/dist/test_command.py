"""The command of m5ds/pretrain.py on one rank: exit codes, run folder, stop and resume."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import launching  # noqa: E402
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
    cases["resumed"] = {"arguments": data.arguments(cut, "--resume", "auto")}
    cases["other model"] = {"arguments": data.arguments(cut, "--resume", "auto", "model.ffn_dim=48")}
    cases["no budget"] = {"arguments": data.arguments(root / "no_budget", "data.max_bad_fraction=0.0")}
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
