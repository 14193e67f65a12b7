"""Embedding sets: one row a product, written in any order, compared only with their like."""

import numpy as np
import pytest
from downstream_examples import embedding_set

from m5ds.downstream.embed.embeddings import (
    check_comparable,
    check_modalities,
    read_embeddings,
    shard_path,
    start_writing,
    write_shard,
)


@pytest.fixture
def ten():
    random = np.random.default_rng(0)
    present_NM = random.random((10, 3)) < 0.6
    return embedding_set(
        random.normal(size=(10, 6)),
        random.integers(-1, 4, 10),
        present_NM=present_NM,
        group=[f"g{i // 2}" for i in range(10)],
    )


def write(directory, products, numbers):
    for n in numbers:
        write_shard(directory, n, products_of(products, n))


def products_of(products, number):
    """Rows of one shard, still described as part of the whole."""
    size = products.info.shard_size
    part = products.take(np.arange(number * size, min(len(products), (number + 1) * size)))
    object.__setattr__(part, "info", products.info)
    return part


def test_what_is_written_is_read_back(tmp_path, ten):
    write(tmp_path, ten, start_writing(tmp_path, ten.info))
    found = read_embeddings(tmp_path)
    assert (found.info, found.ids, found.group) == (ten.info, ten.ids, ten.group)
    np.testing.assert_array_equal(found.vector_ND, ten.vector_ND)
    np.testing.assert_array_equal(found.label_N, ten.label_N)
    np.testing.assert_array_equal(found.present_NM, ten.present_NM)


def test_a_killed_job_goes_on_with_the_missing_files_in_any_order(tmp_path, ten):
    assert start_writing(tmp_path, ten.info) == [0, 1, 2]
    write(tmp_path, ten, [2])
    (tmp_path / "000000.parquet.123.part").write_bytes(b"half")
    assert start_writing(tmp_path, ten.info) == [0, 1]
    with pytest.raises(ValueError, match="000000.parquet: missing; run the same"):
        read_embeddings(tmp_path)
    write(tmp_path, ten, [1, 0])
    assert start_writing(tmp_path, ten.info) == []
    assert read_embeddings(tmp_path).ids == ten.ids


def test_a_folder_of_other_embeddings_is_not_continued(tmp_path, ten):
    start_writing(tmp_path, ten.info)
    other = embedding_set(np.zeros((10, 6)), model="weights-b")
    with pytest.raises(ValueError, match="holds embeddings with model 'weights-a', not 'weights-b'"):
        start_writing(tmp_path, other.info)


def test_a_damaged_file_is_named(tmp_path, ten):
    write(tmp_path, ten, start_writing(tmp_path, ten.info))
    path = shard_path(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="000001.parquet: damaged") as error:
        read_embeddings(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_without_embeddings_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tools/embed.py wrote"):
        read_embeddings(tmp_path)
    (tmp_path / "embeddings.json").write_text('{"model": 1}')
    with pytest.raises(ValueError, match="embed again"):
        read_embeddings(tmp_path)


def test_a_product_that_occurs_twice_is_refused():
    with pytest.raises(ValueError, match="product 'b' occurs twice"):
        embedding_set(np.zeros((3, 2)), ids=["a", "b", "b"])


def test_a_product_without_a_shown_modality_is_empty():
    present_NM = [[True, False, False], [False, True, True], [False, False, False]]
    products = embedding_set(np.zeros((3, 2)), present_NM=present_NM, modalities=("image", "table"))
    assert products.empty_N.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "weights-b"}, "different models"),
        ({"operation": "sum"}, "differ in operation"),
        ({"normalized": True}, "differ in normalized"),
    ],
)
def test_vectors_of_different_spaces_are_not_compared(change, message):
    with pytest.raises(ValueError, match=message):
        check_comparable(embedding_set(np.zeros((2, 2))).info, embedding_set(np.zeros((2, 2)), **change).info)


def test_disjoint_subsets_are_comparable_unless_concatenated():
    def info(operation, name):
        return embedding_set(np.zeros((2, 2)), operation=operation, modalities=(name,)).info

    check_comparable(info("mean", "text"), info("mean", "image"))
    with pytest.raises(ValueError, match="share no modality"):
        check_comparable(info("concat", "text"), info("concat", "image"))


def test_modality_subsets_are_checked_and_ordered():
    assert check_modalities(["table", "image"], ("image", "text", "table")) == ("image", "table")
    with pytest.raises(ValueError, match="subset is empty; name at least one of image, text"):
        check_modalities([], ("image", "text"))
    with pytest.raises(ValueError, match="'audio' is not one of the model's: image, text"):
        check_modalities(["audio"], ("image", "text"))
    with pytest.raises(ValueError, match="must not repeat"):
        check_modalities(["text", "text"], ("image", "text"))


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match="labels have shape"):
        embedding_set(np.zeros((3, 2)), [0, 1])
