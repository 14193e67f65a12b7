"""From a sharded checkpoint of two ranks to embeddings and finetuned classifiers on one and on two ranks."""

import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from m5ds.downstream.embed.embeddings import read_embeddings
from m5ds.downstream.embed.pretrained import load_pretrained
from m5ds.downstream.measure.results import read_result

ROOT = Path(__file__).resolve().parents[2]
import launching  # noqa: E402
import small_run  # noqa: E402

FINETUNE, EVALUATE, EMBED = (ROOT / "tools" / f"{name}.py" for name in ("finetune", "evaluate", "embed"))
TIMEOUT = 600
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


class Jobs:
    """A two-rank pretraining run of two steps, and what is started from it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = small_run.SmallData(root / "data")
        fp32 = json.loads((ROOT / "configs" / "zero3.json").read_text()) | {
            "bf16": {"enabled": False},
            "fp16": {"enabled": False},
        }
        self.fp32 = root / "fp32.json"
        self.fp32.write_text(json.dumps(fp32))
        arguments = [*self.data.arguments(root / "runs", steps=2), "--ds_config", str(self.fp32)]
        launching.run_ranks(launching.ENTRY, arguments, 2, TIMEOUT)
        self.run = next((root / "runs").glob("*/checkpoints")).parent

    def arguments(self, name: str, *more: str) -> list[str]:
        """The command line that finetunes into OUT/NAME/classification."""
        return [
            *("classification", "--checkpoint", str(self.run), "--ds_config", str(self.fp32)),
            *(f"output_dir={self.root}/out", f"name={name}", "train.total_steps=4", "train.global_batch_size=16"),
            *(
                "train.validation_batch_size=16",
                "classification.dense_size=16",
                "num_replicates=40",
                "train.log_every=1",
            ),
            *more,
        ]

    def classify(self, name: str, num_ranks: int, *more: str) -> Path:
        """Finetune into OUT/NAME/classification and return that folder."""
        launching.run_ranks(FINETUNE, self.arguments(name, *more), num_ranks, TIMEOUT)
        return self.root / "out" / name / "classification"

    def on_one_rank(self) -> Path:
        """The plain finetuning run that several tests compare with."""
        folder = self.root / "out" / "ranks-1" / "classification"
        return folder if folder.is_dir() else self.classify("ranks-1", 1)

    def on_two_ranks(self) -> Path:
        folder = self.root / "out" / "ranks-2" / "classification"
        return folder if folder.is_dir() else self.classify("ranks-2", 2)

    def embed(self, name: str, num_ranks: int, *more: str) -> Path:
        out = self.root / "embeddings" / name
        arguments = [
            "--checkpoint",
            str(self.run),
            "--split",
            "validation",
            "--shard-size",
            "4",
            "--out",
            str(out),
            *more,
        ]
        launching.run_ranks(EMBED, arguments, num_ranks, TIMEOUT)
        return out


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    return Jobs(tmp_path_factory.mktemp("finetune"))


def losses(directory: Path) -> list[float]:
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [record["loss/classification"] for record in records if record["kind"] == "train"]


def test_a_checkpoint_of_two_ranks_starts_alike_on_one_and_on_two(jobs):
    one, two = jobs.on_one_rank(), jobs.on_two_ranks()
    starts = [read_result(folder)[0].table("before finetuning") for folder in (one, two)]
    for metric, interval in starts[0].metrics.items():
        assert abs(interval.estimate - starts[1].metrics[metric].estimate) < 1e-6, metric
    assert starts[0].ids == starts[1].ids
    np.testing.assert_allclose(losses(one), losses(two), rtol=2e-4)


def test_a_finetuned_run_resumes_to_the_same_losses_and_is_found_by_its_folder(jobs):
    whole = jobs.on_one_rank()
    cut = jobs.classify("cut", 1, "train.save_every=2", "train.keep_last=5")
    for path in (cut / "results.json", cut / "values.parquet"):
        path.unlink()
    last = cut / "checkpoints" / "step-00000004"
    (last / "manifest.json").unlink()  # as if killed while saving
    resumed = jobs.classify("cut", 1, "--resume", "auto", "train.save_every=2", "train.keep_last=5")
    assert resumed == cut
    assert losses(resumed) == losses(whole)
    found = load_pretrained(resumed)
    assert found.head is not None and found.state["step"] == 4
    assert found.fingerprint == load_pretrained(whole).fingerprint
    result = read_result(resumed)[0]
    assert result.stage == "finetune" and result.fingerprint == found.fingerprint


def test_adapters_change_the_blocks_alone(jobs):
    folder = jobs.classify("lora", 1, "classification.tuning=lora", "classification.lora_rank=2")
    before, after = load_pretrained(jobs.run), load_pretrained(folder)
    changed = {
        name
        for name, value in after.model.named_parameters()
        if not np.allclose(value.detach(), before.model.get_parameter(name).detach(), atol=1e-7)
    }
    assert changed and all(name.startswith("blocks.") for name in changed)


def test_embeddings_do_not_depend_on_the_number_of_ranks(jobs):
    one, two = (read_embeddings(jobs.embed(f"ranks-{n}", n)) for n in (1, 2))
    assert one.info == two.info and one.ids == two.ids
    np.testing.assert_array_equal(one.vector_ND, two.vector_ND)


def test_a_linear_probe_does_not_depend_on_the_number_of_ranks(jobs):
    settings = (
        "linear_probe.inverse_regularization=[1.0]",
        "linear_probe.label_fractions=[0.5,1.0]",
        "num_replicates=40",
    )
    results = []
    for ranks in (1, 2):
        where = (f"output_dir={jobs.root}/out", f"name=probe-{ranks}")
        launching.run_ranks(
            EVALUATE, ["linear_probe", "--checkpoint", str(jobs.run), *settings, *where], ranks, TIMEOUT
        )
        results.append(read_result(jobs.root / "out" / f"probe-{ranks}" / "linear_probe-pretrain")[0])
    one, two = results
    assert [table.name for table in one.tables] == [table.name for table in two.tables]
    for ours, theirs in zip(one.tables, two.tables, strict=True):
        assert ours.facts == theirs.facts and ours.metrics == theirs.metrics, ours.name


def test_early_stopping_keeps_the_best_checkpoint_by_validation(jobs):
    more = ("classification.patience=1", "test_split=train", "train.validate_every=1", "train.total_steps=8")
    folder = jobs.classify("early", 1, *more, "train.learning_rate=1.0e-9")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if record["kind"] == "validation"]
    assert steps == [1, 2]  # nothing improves at that rate, so patience ends it after the second
    assert load_pretrained(folder).state["step"] == 1
    assert (folder / "best" / "checkpoints" / "step-00000001").is_dir()


def test_two_ranks_under_accelerate_take_the_steps_of_two_plain_ones(jobs):
    process = launching.launch_by_accelerate(jobs.arguments("accelerate"), jobs.root / "accelerate", 2, FINETUNE)
    try:
        code = process.wait(timeout=TIMEOUT)
    finally:
        launching.kill_group(process.pid)
    assert code == 0, (jobs.root / "accelerate" / "output.txt").read_text()[-4000:]
    folder = jobs.root / "out" / "accelerate" / "classification"
    assert losses(folder) == losses(jobs.on_two_ranks())
    assert json.loads((folder / "run.json").read_text())[0]["world_size"] == 2


def test_sigterm_under_deepspeed_saves_and_the_printed_line_resumes_bit_for_bit(jobs):
    """As in pretraining (tests/dist/test_signals.py): the signal goes to the `deepspeed` command.

    What is pasted is the line that the stopped run printed, in another folder and without the virtual environment.
    """
    steps = ("train.total_steps=40",)
    whole = jobs.classify("long", 2, *steps)
    process = launching.launch(jobs.arguments("stopped", *steps), jobs.root / "stopped", num_ranks=2, entry=FINETUNE)
    folder, output = jobs.root / "out" / "stopped" / "classification", jobs.root / "stopped" / "output.txt"
    try:
        deadline = time.monotonic() + TIMEOUT
        while not (folder / "metrics.jsonl").is_file() or len(losses(folder)) < 3:
            assert process.poll() is None and time.monotonic() < deadline, output.read_text()[-4000:]
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        assert launching.wait_until_gone(process.pid, timeout=45) == []
    finally:
        launching.kill_group(process.pid)
    assert "Traceback" not in output.read_text() and "stopped by SIGTERM" in output.read_text()
    stopped_at = len(losses(folder))
    assert stopped_at < 40 and not (folder / "results.json").exists()
    assert (folder / "checkpoints" / f"step-{stopped_at:08d}" / "manifest.json").is_file()
    (line,) = [line for line in output.read_text().splitlines() if line.startswith("go on with: ")]
    shell = {**launching.environment(), "PATH": "/usr/bin:/bin"}
    words = ["/bin/sh", "-c", line.removeprefix("go on with: ")]
    pasted = subprocess.run(words, cwd="/", env=shell, capture_output=True, text=True, timeout=TIMEOUT)
    assert pasted.returncode == 0, pasted.stderr[-4000:]
    assert losses(folder) == losses(whole)
    assert load_pretrained(folder).fingerprint == load_pretrained(whole).fingerprint


def test_a_finetuned_run_resumes_on_another_number_of_ranks(jobs):
    saved = jobs.classify("fewer", 2, "train.save_every=2", "train.keep_last=5")
    (saved / "checkpoints" / "step-00000004" / "manifest.json").unlink()
    resumed = jobs.classify("fewer", 1, "--resume", "auto", "train.save_every=2", "train.keep_last=5")
    assert resumed == saved
    records = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["kind"] == "train"] == [1, 2, 3, 4]
    np.testing.assert_allclose(losses(resumed), losses(jobs.on_two_ranks()), rtol=1e-4)
    assert [start["world_size"] for start in json.loads((resumed / "run.json").read_text())] == [2, 1]
