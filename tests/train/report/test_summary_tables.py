"""The tables that a run prints at its end, figure by figure."""

from types import SimpleNamespace

from m5ds.train.report import summary


class Recorded:
    """A monitor with these records."""

    def __init__(self, **ends) -> None:
        self._ends = ends

    def first_and_last(self, kind: str):
        return self._ends.get(kind)


def test_losses_show_first_and_last_with_pairs_averaged() -> None:
    first = {"loss/mlm": 4.0, "loss/itc/image-text": 3.0, "loss/itc/text-table": 1.0, "loss/only-first": 9.0}
    last = {"loss/mlm": 2.5, "loss/itc/image-text": 1.0, "loss/itc/text-table": 0.5, "loss/only-last": 9.0, "x": 1.0}
    lines = summary._losses(Recorded(train=(first, last)))
    assert [line.split() for line in lines if line] == [
        ["loss", "first", "last"],
        ["training", "mlm", "4.0000", "2.5000"],
        ["training", "itc,", "mean", "of", "2", "2.0000", "0.7500"],
    ]


def test_retrieval_shows_recall_before_and_after_beside_chance() -> None:
    first = {"retrieval/a->b/R@1": 0.125}
    last = {f"retrieval/a->b/{name}": value for name, value in {"R@1": 0.5, "R@10": 0.75, "chance": 0.05}.items()}
    last |= {"retrieval/a->b/size": 20, "retrieval/average/ratio": 10.0, "retrieval/worst/ratio": 4.0}
    last |= {"category/P@1": 0.5, "category/mAP": 0.25, "category/chance": 0.1, "category/size": 19}
    lines = summary._retrieval(Recorded(validation=(first, last)))
    assert [line.split() for line in lines if line][1:] == [
        ["a->b", "0.500", "0.125", "0.0500", "10.0", "0.750", "20"],
        ["average,", "worst", "10.0", "worst", "4.0", "x", "chance"],
        ["fused,", "by", "category", "P@1", "0.500,", "mAP", "0.250,", "chance", "0.100,", "19", "products"],
    ]
    assert summary._retrieval(Recorded()) == []


def test_opening_counts_parameters_steps_and_products() -> None:
    parameters = [SimpleNamespace(ds_numel=1_200_000, numel=lambda: 0), SimpleNamespace(numel=lambda: 300_000)]
    job = SimpleNamespace(
        config=SimpleNamespace(
            name="run", train=SimpleNamespace(global_batch_size=24, accumulation=3, learning_rate=5e-4)
        ),
        model=SimpleNamespace(parameters=lambda: parameters, names=("image", "text")),
        sources=SimpleNamespace(shards="shards", training=SimpleNamespace(num_products=77)),
        directory="runs/run",
        step=2,
        total_steps=9,
        precision="bf16",
        engine=SimpleNamespace(device="cpu"),
    )
    ds = {"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 8, "optimizer": {"type": "AdamW"}}
    text = summary.opening(job, ds)
    assert text.splitlines()[0] == "run run -> runs/run" and len(text.splitlines()) == 5
    for part in (
        "1.5 M parameters, image, text",
        "shards (77 products",
        "24 products = 1 ranks x 3 x 8; steps 2 to 9, learning rate 0.0005",
        "ZeRO-3, bf16, AdamW, on cpu",
    ):
        assert part in text
    without = {key: value for key, value in ds.items() if key != "zero_optimization"}
    for given in (without, {**without, "zero_optimization": {}}):
        assert "DeepSpeed ZeRO-0, " in summary.opening(job, given)


def test_a_pair_that_was_not_validated_before_has_no_figure_of_before() -> None:
    last = {f"retrieval/a->b/{name}": 0.5 for name in ("R@1", "R@10", "chance", "size")}
    last |= {"retrieval/average/ratio": 1.0, "retrieval/worst/ratio": 1.0}
    (row,) = (line for line in summary._retrieval(Recorded(validation=({}, last))) if line.startswith("a->b"))
    assert row.split()[2] == "nan"
