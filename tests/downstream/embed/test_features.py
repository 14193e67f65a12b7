"""Product embeddings: operations, subsets, emptiness."""

import pytest
import torch
from downstream_examples import tiny_batch, tiny_model

from m5ds.config import ConfigError
from m5ds.downstream.embed.features import FeatureOptions, encode, pool, vector_width
from m5ds.model.objectives.classification import ClassifierHead

NAMES = ("image", "text", "table", "video", "audio")


@pytest.fixture
def model(tmp_path):
    return tiny_model(tmp_path)


def test_operations_follow_their_definitions():
    states_BMD = torch.arange(12.0).view(2, 2, 3)
    present_BM = torch.tensor([[True, True], [False, True]])
    assert pool(states_BMD, present_BM, "sum", False).tolist() == [[3, 5, 7], [9, 10, 11]]
    assert pool(states_BMD, present_BM, "mean", False).tolist() == [[1.5, 2.5, 3.5], [9, 10, 11]]
    assert pool(states_BMD, present_BM, "concat", False).tolist() == [[0, 1, 2, 3, 4, 5], [0, 0, 0, 9, 10, 11]]
    assert torch.allclose(pool(states_BMD, present_BM, "sum", True).norm(dim=1), torch.ones(2))


def test_an_empty_product_has_the_zero_vector(model):
    batch = tiny_batch(model, 3, present_BM=torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]]).bool())
    for states in ("fused", "contrastive"):
        for operation in ("concat", "mean", "sum"):
            options = FeatureOptions(modalities=("image", "table"), states=states, operation=operation)
            vector_BW = encode(model, batch, options)
            assert vector_BW.shape == (3, vector_width(model, options))
            assert torch.isfinite(vector_BW).all()
            assert (vector_BW.norm(dim=1) > 0.99).tolist() == [True, False, False]


def test_a_subsets_embedding_is_that_of_products_that_have_no_more(model):
    whole = tiny_batch(model, 4, present_BM=torch.ones(4, 5, dtype=torch.bool))
    only = torch.tensor([[False, True, True, False, False]]).expand(4, -1)
    options = FeatureOptions(modalities=("text", "table"))
    poor = FeatureOptions(modalities=NAMES)
    torch.testing.assert_close(
        encode(model, whole, options), encode(model, tiny_batch(model, 4, present_BM=only), poor)
    )


def test_an_embedding_does_not_depend_on_the_products_beside_it(model):
    options = FeatureOptions(modalities=NAMES)
    batch = tiny_batch(model, 8)
    alone = tiny_batch(model, 1, ids=["product-3"], present_BM=batch.present_BM[3:4])
    torch.testing.assert_close(encode(model, batch, options)[3:4], encode(model, alone, options))


def test_dense_features_are_the_classifiers_layer(model):
    head = ClassifierHead(5 * 16, 7, 3, dropout=0.1).eval()
    options = FeatureOptions(modalities=NAMES, states="dense", operation="concat", normalized=False)
    batch = tiny_batch(model, 3)
    fused_BMD = model(batch, masked=False).fused_BMD
    torch.testing.assert_close(encode(model, batch, options, head), head.dense(fused_BMD.flatten(1)).detach())
    with pytest.raises(ValueError, match="need a checkpoint of tools/finetune.py"):
        encode(model, batch, options)


def test_contrastive_features_of_a_model_without_the_loss_are_refused(tmp_path):
    model = tiny_model(tmp_path, "model.objectives.contrastive=null")
    with pytest.raises(ValueError, match="need a model with a contrastive loss"):
        encode(model, tiny_batch(model, 2), FeatureOptions(modalities=NAMES, states="contrastive"))


def test_subsets_are_checked_against_the_model(model):
    with pytest.raises(ValueError, match="subset is empty"):
        encode(model, tiny_batch(model, 2), FeatureOptions(modalities=()))


@pytest.mark.parametrize("options", [{"states": "raw"}, {"operation": "max"}, {"states": "dense"}])
def test_unknown_choices_are_refused(options):
    with pytest.raises(ConfigError, match="must be one of|one operation"):
        FeatureOptions(modalities=NAMES, **options)


def test_official_features_are_the_sum_and_not_normalised():
    options = FeatureOptions.official(NAMES)
    assert (options.states, options.operation, options.normalized) == ("fused", "sum", False)
