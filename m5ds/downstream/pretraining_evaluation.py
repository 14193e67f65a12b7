"""What pretraining learned: held-out retrieval by the trained weights against the same seed's initial weights.

Each run's checkpoint and its untrained twin (same configuration, same tokenizer, same initial weights) embed the same
products, so that every difference is paired by product. Shape letters: N products, Q queries, S runs (seeds).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m5ds.downstream.embed.embeddings import EmbeddingSet
from m5ds.downstream.embed.encoding import Request, encode_split
from m5ds.downstream.embed.evaluation_data import EvaluationData
from m5ds.downstream.embed.features import FeatureOptions
from m5ds.downstream.embed.pretrained import Pretrained, load_pretrained
from m5ds.downstream.measure import bootstrap
from m5ds.downstream.measure.categories import LEAF, CategoryLevel
from m5ds.downstream.tasks.retrieval import RetrievalResult, evaluate_retrieval

KS = (1, 10)
CROSS_MODAL = (("image", "text"), ("text", "table"))
"""Query and gallery modality, compared in the contrastive space."""
LEVELS = ("leaf", "top")
"""Category levels of the fused retrieval: the whole path, or its first name."""
CROSS_MODAL_METRICS = ("recall@1", "recall@10", "mrr@10")
CATEGORY_METRICS = ("prec@1", "ap@10")
POOLED = "pooled"
"""The report's key for the queries of all splits together, each still ranked against its own split's gallery."""
GALLERY = "train"
"""The catalogue that is searched by category; held-out products also search the rest of their own split."""
_RUN_ONLY = ("name", "output_dir", "seed")
"""Keys in which runs of one comparison may differ."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One metric of one task, over all runs."""

    trained: float
    untrained: float
    difference: bootstrap.Interval
    """Of trained minus untrained, over products (by group) and, with several runs, over runs."""
    per_run: tuple[bootstrap.Interval, ...]
    """The difference of each run alone, over products."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One retrieval task on one split."""

    name: str
    num_queries: int
    num_gallery: tuple[int, ...]
    """Of each split. Cross-modal retrieval has one positive in it: the same product."""
    metrics: dict[str, Comparison]


def evaluate_runs(
    paths: Sequence[str | Path],
    splits: Sequence[str] = ("validation", "test"),
    *,
    batch_size: int = 32,
    num_threads: int = 1,
    num_replicates: int = 10_000,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Plain mappings: `runs`, and for each split (and, where there are several, `pooled`) its tasks as mappings.

    `ValueError`: no checkpoint, a repeated seed, runs that differ in more than seed and name, a missing split.
    """
    scores: dict[str, dict[str, list[tuple[RetrievalResult, RetrievalResult]]]] = {split: {} for split in splits}
    groups: dict[str, str] = {}
    runs = []
    for path in paths:
        say(f"{path}: trained and initial weights")
        trained, untrained = load_pretrained(path), load_pretrained(path, untrained=True)
        runs.append(_description(str(path), trained))
        check_comparable_runs(runs)
        before, after = (_embeddings(model, splits, batch_size, num_threads) for model in (untrained, trained))
        for split in splits:
            groups |= _groups(after["sets"][split]["fused"])
            found = [_tasks(side["sets"], split, side["categories"]) for side in (after, before)]
            for name, result in found[0].items():
                scores[split].setdefault(name, []).append((result, found[1][name]))
    sets = {split: {name: [pairs] for name, pairs in tasks.items()} for split, tasks in scores.items()}
    if len(scores) > 1:
        every = list(scores.values())
        sets[POOLED] = {name: [tasks[name] for tasks in every if name in tasks] for name in every[0]}
    return {
        "runs": [{key: value for key, value in run.items() if key != "config"} for run in runs],
        "num_replicates": num_replicates,
        "splits": {
            split: [asdict(compare(name, parts, groups, num_replicates)) for name, parts in tasks.items()]
            for split, tasks in sets.items()
        },
    }


def _description(path: str, trained: Pretrained) -> dict[str, Any]:
    if trained.run is None or trained.state is None:
        raise ValueError(f"{path}: a Hugging Face directory does not know its run; name a run's folder")
    state = trained.state
    return {
        "path": path,
        "seed": trained.run["seed"],
        "step": state["step"],
        "world_size": state["world_size"],
        "manifest_hash": state["manifest_hash"],
        "code_version": state["code_version"],
        "fingerprint": trained.fingerprint,
        "config": trained.run,
    }


def check_comparable_runs(runs: Sequence[dict[str, Any]]) -> None:
    """`ValueError` unless the last run has a seed of its own and otherwise the first one's configuration and data."""
    first, last = runs[0], runs[-1]
    for other in runs[:-1]:
        if other["seed"] == last["seed"]:
            raise ValueError(f"{last['path']}: has seed {last['seed']} as {other['path']} has; name one run a seed")
    plain = [{k: v for k, v in run["config"].items() if k not in _RUN_ONLY} for run in (first, last)]
    differing = [key for key in plain[0] if plain[0][key] != plain[1].get(key)]
    differing += [key for key in ("step", "manifest_hash") if first[key] != last[key]]
    if differing:
        raise ValueError(
            f"{last['path']}: differs from {first['path']} in {', '.join(differing)}; compare runs that differ in the"
            " seed only"
        )


def _embeddings(model: Pretrained, splits: Sequence[str], batch_size: int, num_threads: int) -> dict[str, Any]:
    """`sets`: split -> name (`fused` or a modality) -> products; `categories`: names of the labels."""
    assert model.state is not None
    names = model.model.names
    single = sorted({name for pair in CROSS_MODAL for name in pair} & set(names))
    options = {"fused": FeatureOptions(modalities=names)}
    options |= {name: FeatureOptions(modalities=(name,), states="contrastive") for name in single}
    sets: dict[str, dict[str, EmbeddingSet]] = {}
    categories: tuple[str, ...] = ()
    for split in dict.fromkeys([*splits, GALLERY]):
        data = EvaluationData(
            model.state["shards"],
            split,
            model.model.spec,
            model.tokenizer,
            batch_size=batch_size,
            num_threads=num_threads,
        )
        categories = data.manifest.categories
        wanted = {"fused": options["fused"]} if split not in splits else options
        found = encode_split(model, data, [Request(options=option) for option in wanted.values()], progress=split)
        assert found is not None, "one process"
        # By id, so that ties do not depend on the order of the shards.
        sets[split] = dict(zip(wanted, [products.by_id() for products in found], strict=True))
    return {"sets": sets, "categories": categories}


def _groups(products: EmbeddingSet) -> dict[str, str]:
    return {name: group or f"id:{name}" for name, group in zip(products.ids, products.group, strict=True)}


def _tasks(
    sets: dict[str, dict[str, EmbeddingSet]], split: str, categories: tuple[str, ...]
) -> dict[str, RetrievalResult]:
    """Every task of the split for one set of weights."""
    found = {}
    for query, gallery in CROSS_MODAL:
        if query in sets[split] and gallery in sets[split]:
            code_N = np.arange(len(sets[split][query]))
            found[f"{query}->{gallery}"] = evaluate_retrieval(
                sets[split][query],
                sets[split][gallery],
                query_code_Q=code_N,
                gallery_code_G=code_N,
                ks=KS,
                exclude_self=False,
            )
    for level in LEVELS:
        queries = sets[split]["fused"]
        query_code_Q = level_codes(queries.label_N, categories, level)
        for where in dict.fromkeys([GALLERY, split]):
            gallery_set = sets[where]["fused"]
            found[f"category {level}, gallery {where if where == GALLERY else 'own split'}"] = evaluate_retrieval(
                queries,
                gallery_set,
                query_code_Q=query_code_Q,
                gallery_code_G=level_codes(gallery_set.label_N, categories, level),
                ks=KS,
            )
    return found


def level_codes(label_N: NDArray[np.int64], categories: Sequence[str], level: str) -> NDArray[np.int64]:
    """Numbers of the labels' categories at a level (`leaf` or `top`); -1 where the label is unknown."""
    return CategoryLevel.of(categories, LEAF if level == "leaf" else 1).apply(label_N)


def compare(
    name: str,
    parts: Sequence[Sequence[tuple[RetrievalResult, RetrievalResult]]],
    groups: dict[str, str],
    num_replicates: int = 10_000,
) -> Task:
    """`parts`: for each split the (trained, untrained) results of each run; `groups`: product id -> what is resampled
    together.

    `ValueError` where the results are not of the same queries.
    """
    for pairs in parts:
        if any(result.ids != pairs[0][0].ids for pair in pairs for result in pair):
            raise ValueError(f"{name}: the runs scored different queries; evaluate them on the same shards")
    ids = [product for pairs in parts for product in pairs[0][0].ids]
    keys_Q = bootstrap.keys_of([groups[product] for product in ids])
    metrics = {}
    for metric in CATEGORY_METRICS if name.startswith("category") else CROSS_MODAL_METRICS:
        trained_SQ, untrained_SQ = (
            np.concatenate([np.stack([pair[side].scores[metric] for pair in pairs]) for pairs in parts], axis=1)
            for side in (0, 1)
        )
        gain_SQ = trained_SQ - untrained_SQ
        each = tuple(bootstrap.bootstrap_mean(gain_Q, keys_Q, num_replicates=num_replicates) for gain_Q in gain_SQ)
        pooled = each[0]
        if len(gain_SQ) > 1:
            pooled = bootstrap.bootstrap_seeds(gain_SQ, keys_Q, num_replicates=num_replicates)
        metrics[metric] = Comparison(
            trained=float(trained_SQ.mean()), untrained=float(untrained_SQ.mean()), difference=pooled, per_run=each
        )
    galleries = tuple(pairs[0][0].num_gallery for pairs in parts)
    return Task(name=name, num_queries=len(ids), num_gallery=galleries, metrics=metrics)


def summary(report: dict[str, Any]) -> str:
    """The report as a table for the terminal."""
    seeds = ", ".join(str(run["seed"]) for run in report["runs"])
    lines = [f"trained minus untrained, seeds {seeds}; 95 % paired bootstrap over products and seeds"]
    for split, tasks in report["splits"].items():
        for task in tasks:
            gallery = " and ".join(str(size) for size in task["num_gallery"])
            lines.append(f"{split}: {task['name']} ({task['num_queries']} queries, gallery {gallery})")
            for metric, value in task["metrics"].items():
                gain = bootstrap.Interval(**value["difference"])
                mark = "" if gain.excludes_zero else "   includes zero"
                lines.append(f"  {metric:<10}{value['untrained']:.3f} -> {value['trained']:.3f}   {gain}{mark}")
    return "\n".join(lines)


def write_report(path: Path, report: dict[str, Any]) -> None:
    """JSON with floats to 6 digits, which is below what a replicate resolves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = json.loads(json.dumps(report), parse_float=lambda text: round(float(text), 6))
    path.write_text(json.dumps(rounded, indent=1, ensure_ascii=False) + "\n")
