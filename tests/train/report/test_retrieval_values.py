"""Validation's retrieval figures on cases whose every rank is known."""

import pytest
import torch

from m5ds.train.report import retrieval


def test_recall_at_k_counts_the_first_k_ranks() -> None:
    """Query i finds i better items than its own: of 12 queries 1, 5 and 10 are found among the first 1, 5 and 10."""
    angle = torch.linspace(0.0, 0.5, 12)
    gallery = torch.stack([angle.cos(), angle.sin()], 1)
    query = torch.tensor([[1.0, 0.0]]).expand(12, 2)
    features = torch.stack([query, gallery], 1)
    found = retrieval.cross_modal(features, torch.ones(12, 2, dtype=torch.bool), ("image", "text"))["image->text"]
    assert retrieval.ranks(query, gallery).tolist() == list(range(12))
    assert found == {
        "R@1": pytest.approx(1 / 12),
        "R@5": pytest.approx(5 / 12),
        "R@10": pytest.approx(10 / 12),
        "chance": pytest.approx(1 / 12),
        "size": 12,
    }


def test_two_products_are_a_gallery_and_one_is_not() -> None:
    features = torch.eye(3)[:, None].expand(3, 2, 3)
    two = torch.tensor([[True, True], [True, True], [False, True]])
    assert retrieval.cross_modal(features, two, ("a", "b"))["b->a"]["size"] == 2
    one = torch.tensor([[True, True], [True, False], [False, True]])
    assert retrieval.cross_modal(features, one, ("a", "b")) == {}


def test_nothing_is_ranked_in_an_empty_gallery() -> None:
    assert retrieval.ranks(torch.zeros(0, 4), torch.zeros(0, 4)).tolist() == []


def test_category_figures_of_five_products_by_hand() -> None:
    """On a line at 0, 1, 2, 3, 10 degrees with labels a, b, a, unknown, b: each query ranks the other three known."""
    angle = torch.deg2rad(torch.tensor([0.0, 1.0, 2.1, 3.0, 10.0]))
    report = retrieval.by_category(torch.stack([angle.cos(), angle.sin()], 1), torch.tensor([0, 1, 0, -1, 1]))
    # Ranks of the one relevant product: 2 for each of the a's; for the b at 1 it is last, for the b at 10 second.
    assert report == {
        "P@1": 0.0,
        "mAP": pytest.approx((1 / 2 + 1 / 3 + 1 / 2 + 1 / 2) / 4),
        "chance": pytest.approx(1 / 3),
        "size": 4,
    }


def test_queries_whose_category_has_no_other_product_are_left_out() -> None:
    embedding = torch.eye(3)
    assert retrieval.by_category(embedding, torch.tensor([0, 1, 2])) == {}
    assert retrieval.by_category(embedding[:1], torch.tensor([0])) == {}
    assert retrieval.by_category(embedding, torch.tensor([-1, -1, -1])) == {}
    report = retrieval.by_category(embedding, torch.tensor([0, 0, 1]))
    assert (report["size"], report["chance"]) == (2, 0.5)


def test_the_fused_embedding_is_the_mean_of_present_modalities_on_the_unit_sphere() -> None:
    fused = torch.tensor([[[2.0, 0.0], [0.0, 4.0], [9.0, 9.0]]])
    embedding = retrieval.fused_embedding(fused, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(embedding, torch.tensor([[1.0, 2.0]]) / 5**0.5)
