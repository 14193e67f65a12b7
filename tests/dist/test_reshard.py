"""A run goes on with another number of ranks, and rounding is all that differs."""

import json
from pathlib import Path

import launching  # noqa: E402
import pytest
import small_run  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_resume_on_another_number_of_ranks_has_the_same_losses(before: int, after: int, tmp_path) -> None:
    """In fp32, where runs of one and of two ranks differ by 1e-7.

    DeepSpeed's universal loader gives every parameter group the weight decay of the first, and all groups one tensor
    that counts Adam's steps, which then counts double: losses were 1e-3 away three steps later.
    """
    data = small_run.SmallData(tmp_path / "data")
    tree = json.loads((ROOT / "configs/zero3.json").read_text())
    del tree["bf16"], tree["fp16"]
    (tmp_path / "fp32.json").write_text(json.dumps(tree))
    common = ["--ds_config", str(tmp_path / "fp32.json"), "train.save_every=6", "train.weight_decay=0.5"]
    arguments = data.arguments(tmp_path, *common, steps=14)
    launching.run_ranks(launching.ENTRY, arguments, before, timeout=400)
    folder = tmp_path / "quickstart"
    whole = small_run.recorded(folder)
    tag = folder / "checkpoints/step-00000006"
    launching.run_ranks(launching.ENTRY, [*arguments, "--resume", str(tag)], after, timeout=400)
    resumed = small_run.recorded(folder)
    assert sorted(resumed) == list(range(1, 15))
    for step in range(7, 15):
        for name, value in whole[step].items():
            assert resumed[step][name] == pytest.approx(value, rel=1e-4), f"step {step}: {name}"
    assert not list((folder / "checkpoints").glob("universal-*"))
