"""What the embeddings are worth when modalities are missing, pairs are wrong or files are damaged.

Coarse retrieval of the test split against itself, both sides under the same condition; with a finetuned classifier also
its accuracy. Everything runs on one decoding of the split, except for damaged files. A split's vectors are held in
memory for every condition: about 60 x products x width x 4 bytes.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m5ds.batch import Batch
from m5ds.downstream.embed.embeddings import EmbeddingSet
from m5ds.downstream.embed.encoding import Request, check_policy, encode_split, with_policy
from m5ds.downstream.embed.evaluation_data import damage_files
from m5ds.downstream.embed.features import FeatureOptions
from m5ds.downstream.embed.harmony_weights import mean_weights
from m5ds.downstream.embed.presence import missing_at_random, shuffled_pairs, subsets, with_presence
from m5ds.downstream.embed.pretrained import Pretrained
from m5ds.downstream.measure.results import Result, Table
from m5ds.downstream.settings import DownstreamConfig
from m5ds.downstream.tasks.evaluation import Evaluation
from m5ds.downstream.tasks.jobs import feature_options
from m5ds.downstream.tasks.retrieval import category_codes, evaluate_retrieval
from m5ds.downstream.tasks.tasks import retrieval_table
from m5ds.train import distributed

KS = (1, 10)


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One point of a curve or of the subset lattice. `facts` say which."""

    name: str
    facts: dict[str, Any]
    modalities: tuple[str, ...]
    variant: Callable[[Batch], Batch] | None = None


def conditions(settings: DownstreamConfig, names: tuple[str, ...], policy: str) -> list[Condition]:
    """Subsets, missing rates (random, then each modality alone) and shuffled pairs, under one policy."""
    config, found = settings.robustness, []

    def add(name: str, shown: tuple[str, ...], variant: Callable[[Batch], Batch] | None, **facts: Any) -> None:
        facts |= {"policy": policy}
        found.append(Condition(name=f"{policy}: {name}", facts=facts, modalities=shown, variant=variant))

    for subset in subsets(names) if config.subsets else [names]:
        add("+".join(subset), subset, None, kind="subset", modalities=list(subset))
    for rate in config.rates:
        variant = partial(_lose, rates=dict.fromkeys(names, rate), seed=settings.seed)
        add(f"missing {rate:g}", names, variant, kind="missing", modality="any", rate=rate)
    for name in names if config.by_modality else ():
        for rate in config.rates:
            variant = partial(_lose, rates={name: rate}, seed=settings.seed)
            add(f"missing {name} {rate:g}", names, variant, kind="missing", modality=name, rate=rate)
    for rate in config.noise_rates:
        variant = partial(shuffled_pairs, rate=rate, seed=settings.seed)
        add(f"shuffled {rate:g}", names, variant, kind="shuffled", rate=rate)
    return found


def _lose(batch: Batch, rates: dict[str, float], seed: int) -> Batch:
    return with_presence(batch, missing_at_random(batch, rates, seed))


def evaluate_robustness(evaluation: Evaluation, pretrained: Pretrained, stage: str) -> Result | None:
    """Every condition under every policy; the result on rank 0, None elsewhere. Collective.

    A condition under which no query can be scored (no product has the modality) is left out and named in
    `extras["not_scored"]`.
    """
    settings, config = evaluation.settings, evaluation.settings.coarse_retrieval
    names = pretrained.model.names
    evaluation.check_head(pretrained)
    tables: list[Table] = []
    not_scored: dict[str, str] = {}
    policies = settings.robustness.policies or [pretrained.model.spec.absent]
    for policy in policies:
        check_policy(pretrained, policy)
    for policy in policies:
        followed = with_policy(pretrained, policy)
        chosen = conditions(settings, names, policy)
        batches = [(evaluation.data(pretrained), chosen)]
        for rate in settings.robustness.noise_rates:
            facts = {"kind": "damaged", "rate": rate, "policy": policy}
            condition = Condition(name=f"{policy}: damaged files {rate:g}", facts=facts, modalities=names)
            damaged = evaluation.data(pretrained, f"damaged {rate}", damage_files(rate, settings.seed))
            batches.append((damaged, [condition]))
        for data, wanted in batches:
            requests = [
                Request(options=_options(config, pretrained, condition.modalities), variant=condition.variant)
                for condition in wanted
            ]
            sets = encode_split(followed, data, requests, progress=f"robustness ({policy})")
            found = [(c, products.by_id()) for c, products in zip(wanted, sets, strict=True)] if sets else []
            for condition, queries, gallery in [*((c, s, s) for c, s in found), *_against_all(found, names)]:
                try:
                    tables.append(_table(condition, queries, gallery, pretrained, evaluation))
                except ValueError as error:
                    not_scored[condition.name] = str(error)
    states = _states(evaluation, pretrained)
    if distributed.rank():
        return None
    if not tables:
        raise ValueError(f"robustness: no condition could be scored: {next(iter(not_scored.values()))}")
    fused = states["fused"]
    extras = {
        "not_scored": not_scored,
        "correlation": {name: _correlation(products, names) for name, products in states.items()},
        "harmony": mean_weights(pretrained.model, _by_modality(fused, names), fused.present_NM),
    }
    return evaluation.result("robustness", stage, pretrained, tables, extras)


def _against_all(
    found: list[tuple[Condition, EmbeddingSet]], names: tuple[str, ...]
) -> Iterator[tuple[Condition, EmbeddingSet, EmbeddingSet]]:
    """Each proper subset as queries against products that show everything, and the other way round."""
    subset = {c.modalities: (c, products) for c, products in found if c.facts["kind"] == "subset"}
    if names not in subset:
        return
    policy, whole = subset[names][0].facts["policy"], subset[names][1]
    for modalities, (_, products) in subset.items():
        if modalities != names:
            text, facts = "+".join(modalities), {"policy": policy, "modalities": list(modalities)}
            to_all = Condition(
                name=f"{policy}: {text} -> all", facts=facts | {"kind": "subset_to_all"}, modalities=modalities
            )
            from_all = Condition(
                name=f"{policy}: all -> {text}", facts=facts | {"kind": "all_to_subset"}, modalities=modalities
            )
            yield to_all, products, whole
            yield from_all, whole, products


def _states(evaluation: Evaluation, pretrained: Pretrained) -> dict[str, EmbeddingSet]:
    """The modalities' states side by side, fused and where the model has them contrastive; empty but on rank 0."""
    kinds = ["fused", "contrastive"] if len(pretrained.model.projections) else ["fused"]
    requests = [
        Request(
            options=FeatureOptions(modalities=pretrained.model.names, states=kind, operation="concat", normalized=False)
        )
        for kind in kinds
    ]
    sets = encode_split(pretrained, evaluation.data(pretrained), requests, progress="correlation")
    return dict(zip(kinds, sets or [], strict=False))


def _by_modality(products: EmbeddingSet, names: tuple[str, ...]) -> NDArray[np.float32]:
    """[N, M, D] from the concatenated states."""
    return products.vector_ND.reshape(len(products), len(names), -1)


def _correlation(products: EmbeddingSet, names: tuple[str, ...]) -> dict[str, Any]:
    """Mean cosine between each two modalities' states of one product (paper Fig. 5); None where no product has both."""
    states_NMD = _by_modality(products, names)
    norm_NM1 = np.linalg.norm(states_NMD, axis=2, keepdims=True)
    unit_NMD = states_NMD / np.maximum(norm_NM1, 1e-12)
    both_MM = products.present_NM.T.astype(np.float64) @ products.present_NM
    cosine_MM = np.einsum("nid,njd->ij", unit_NMD, unit_NMD, dtype=np.float64)
    return {
        "names": list(names),
        "cosine": [
            [round(float(c / b), 4) if b else None for c, b in zip(cosine_M, both_M, strict=True)]
            for cosine_M, both_M in zip(cosine_MM, both_MM, strict=True)
        ],
    }


def _options(config, pretrained: Pretrained, modalities: tuple[str, ...]) -> FeatureOptions:
    if pretrained.head is not None:
        return FeatureOptions(modalities=modalities, states="dense", operation="concat", normalized=False)
    return feature_options(config, modalities)


def _searched(products: EmbeddingSet, evaluation: Evaluation) -> EmbeddingSet:
    """A classifier's dense features are embedded as they are, for its head; search normalises them where configured."""
    if products.info.states != "dense" or not evaluation.settings.coarse_retrieval.normalized:
        return products
    norm_N1 = np.linalg.norm(products.vector_ND, axis=1, keepdims=True)
    return dataclasses.replace(products, vector_ND=products.vector_ND / np.maximum(norm_N1, 1e-12))


def _table(
    condition: Condition, queries: EmbeddingSet, gallery: EmbeddingSet, pretrained: Pretrained, evaluation: Evaluation
) -> Table:
    # Under a missing rate a product that lost what is shown counts as a failure; of a subset we ask who has it.
    result = evaluate_retrieval(
        _searched(queries, evaluation),
        _searched(gallery, evaluation),
        query_code_Q=category_codes(queries, "queries"),
        gallery_code_G=category_codes(gallery, "gallery"),
        ks=KS,
        score_empty="subset" not in condition.facts["kind"],
    )
    table = retrieval_table(condition.name, result, evaluation.uncertainty, labelled=False)
    table.facts |= condition.facts
    table.values = {"ap@10": result.scores["ap@10"]}
    if pretrained.head is not None and queries is gallery:
        classes = evaluation.classes
        shown = np.flatnonzero(~queries.empty_N)
        logits_NC = pretrained.head.logits(queries.vector_ND[shown])
        label_N = classes.apply(queries.label_N[shown])
        known = label_N >= 0
        correct = (np.where(classes.count_C > 0, logits_NC, -np.inf).argmax(1) == label_N)[known].astype(np.float64)
        table.metrics["accuracy"] = evaluation.uncertainty.mean(correct, [queries.ids[i] for i in shown[known]])
    return table
