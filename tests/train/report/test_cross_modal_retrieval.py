"""Retrieval metrics of validation against brute force and known cases."""

import torch

from m5ds.train.report import retrieval


def unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


def test_recall_counts_products_that_have_both_modalities() -> None:
    features = unit(torch.randn(6, 2, 8, generator=torch.Generator().manual_seed(0)))
    features[:, 1] = features[:, 0]
    present = torch.tensor([[True, True]] * 4 + [[True, False], [False, True]])
    report = retrieval.cross_modal(features, present, ("image", "text"))
    assert set(report) == {"image->text", "text->image"}
    assert report["image->text"] == {"R@1": 1.0, "R@5": 1.0, "R@10": 1.0, "chance": 0.25, "size": 4}


def test_collapsed_features_score_zero() -> None:
    features = unit(torch.ones(20, 2, 4))
    report = retrieval.cross_modal(features, torch.ones(20, 2, dtype=torch.bool), ("image", "text"))
    assert report["image->text"]["R@1"] == 0.0
    assert report["image->text"]["R@10"] == 0.0


def test_ranks_equal_brute_force(monkeypatch) -> None:
    monkeypatch.setattr(retrieval, "CHUNK", 7)
    generator = torch.Generator().manual_seed(1)
    query, gallery = (unit(torch.randn(40, 5, generator=generator)) for _ in range(2))
    scores = query.double() @ gallery.double().T
    expected = [int((scores[i] > scores[i, i]).sum()) for i in range(40)]
    assert retrieval.ranks(query, gallery).tolist() == expected


def test_recall_at_k_counts_counterparts_among_the_first_k() -> None:
    """Query i's own counterpart comes at place i + 1: R@k of n queries is exactly k / n."""
    n = 12
    query = torch.zeros(n, n + 1)
    query[torch.arange(n), torch.arange(n)] = 1.0
    query[:, n] = 1.0
    gallery = torch.zeros(n, n + 1)
    for i in range(n):
        above = torch.arange(n)[torch.arange(n) != i][:i]
        gallery[above, i] = 2.0
        gallery[i, i] = 1.0
    features = torch.stack([query, gallery], dim=1)
    report = retrieval.cross_modal(features, torch.ones(n, 2, dtype=torch.bool), ("image", "text"))
    assert retrieval.ranks(query, gallery).tolist() == list(range(n))
    recalls = {name: value for name, value in report["image->text"].items() if name.startswith("R@")}
    assert recalls == {"R@1": 1 / n, "R@5": 5 / n, "R@10": 10 / n}


def test_category_precision_equals_brute_force(monkeypatch) -> None:
    monkeypatch.setattr(retrieval, "CHUNK", 9)
    generator = torch.Generator().manual_seed(2)
    embedding = unit(torch.randn(30, 6, generator=generator))
    label = torch.randint(-1, 4, (30,), generator=generator)
    report = retrieval.by_category(embedding, label)
    precisions, averages = [], []
    known = [i for i in range(30) if label[i] >= 0]
    for query in known:
        others = sorted((i for i in known if i != query), key=lambda i: -float(embedding[query] @ embedding[i]))
        hits = [bool(label[i] == label[query]) for i in others]
        if any(hits):
            precisions.append(float(hits[0]))
            averages.append(
                sum(sum(hits[: k + 1]) / (k + 1) for k, hit in enumerate(hits) if hit) / sum(hits),
            )
    assert report["size"] == len(precisions)
    assert abs(report["P@1"] - sum(precisions) / len(precisions)) < 1e-9
    assert abs(report["mAP"] - sum(averages) / len(averages)) < 1e-9


def test_category_chance_is_what_equal_scores_do_not_exceed() -> None:
    label = torch.tensor([0, 0, 1, 1])
    report = retrieval.by_category(unit(torch.ones(4, 3)), label)
    assert report["P@1"] == 0.0
    assert abs(report["chance"] - 1 / 3) < 1e-9


def test_absent_modalities_do_not_enter_the_fused_embedding() -> None:
    fused = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(3))
    present = torch.tensor([[True, False], [True, True], [False, False]])
    embedding = retrieval.fused_embedding(fused, present)
    torch.testing.assert_close(embedding[0], unit(fused[0, 0]))
    assert torch.isfinite(embedding).all()
    assert embedding[2].abs().sum() == 0
