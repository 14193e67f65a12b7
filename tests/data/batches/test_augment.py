"""Training's random choices belong to the product and the draw, and to nothing else."""

import pytest
import torch
from keyed_cases import NUM, assert_keyed, keys_of, many_keys

from m5ds.data.batches import augment
from m5ds.kernels.common import philox
from m5ds.kernels.common.philox import Stream, product_hash


@pytest.fixture(scope="module")
def keys():
    return many_keys()


def every_choice(keys):
    num_files = [1 + int(product) % 4 for product in keys.product_K]
    present_KM = torch.ones(len(keys.product_K), 3, dtype=torch.bool)
    return {
        "files": augment.first_files(keys, 3, 0, num_files),
        "kept": augment.kept_modalities(keys, 3, [0, 1, 2], present_KM, 0.5).tolist(),
    }


def test_choices_belong_to_product_and_draw_and_not_to_the_place_in_the_batch(keys):
    assert_keyed(every_choice, keys)


def test_every_file_of_a_product_is_chosen_equally_often(keys):
    chosen = torch.tensor(augment.first_files(keys, 0, 0, [5] * NUM))
    assert chosen.bincount(minlength=5).min() > 0.8 * NUM / 5
    assert augment.first_files(keys, 0, 0, [1] * NUM) == [0] * NUM


@pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
def test_dropout_keeps_some_present_modality_and_never_invents_one(keys, dropout):
    generator = torch.Generator().manual_seed(0)
    present_KM = torch.rand(NUM, 3, generator=generator) < 0.6
    kept_KM = augment.kept_modalities(keys, 0, [0, 1, 2], present_KM, dropout)
    assert not (kept_KM & ~present_KM).any()
    assert torch.equal(kept_KM.any(1), present_KM.any(1))
    if dropout == 0.0:
        assert torch.equal(kept_KM, present_KM)
    if dropout == 1.0:
        assert int(kept_KM.sum(1).max()) == 1
    if dropout == 0.3:
        several = present_KM.sum(1) == 3
        # 0.7 each, and of 0.027 that would lose all three one stays.
        assert kept_KM[several].float().mean().item() == pytest.approx(0.7 + 0.009, abs=0.03)


def test_dropping_a_modality_does_not_depend_on_which_others_the_model_has(keys):
    present_KM = torch.ones(NUM, 3, dtype=torch.bool)
    three = augment.kept_modalities(keys, 0, [0, 1, 4], present_KM, 0.2)
    two = augment.kept_modalities(keys, 0, [0, 4], present_KM[:, :2], 0.2)
    some = three.sum(1) > 1
    agreeing = (three[:, [0, 2]] == two)[some & two.any(1)].float().mean()
    assert agreeing > 0.97


def test_where_all_would_go_the_modality_with_the_largest_word_stays():
    keys = keys_of([f"p{number}" for number in range(60)], draw=3)
    numbers = [0, 2, 4]
    words_KM = torch.stack([keys.words(7, Stream.MODALITY_DROPOUT, number)[0] for number in numbers], dim=1)
    present_KM = torch.ones(60, 3, dtype=torch.bool)
    present_KM[::2, 1] = False
    present_KM[5] = False
    kept_KM = augment.kept_modalities(keys, 7, numbers, present_KM, 1.0)
    for words, present, kept in zip(words_KM.tolist(), present_KM.tolist(), kept_KM.tolist(), strict=True):
        best = max((word for word, there in zip(words, present, strict=True) if there), default=None)
        assert kept == [there and word == best for word, there in zip(words, present, strict=True)]


def test_every_choice_is_read_from_the_stream_of_its_purpose():
    """Streams that were mixed up would tie a product's crop to its mask, and change the data of resumed runs."""
    keys, seed = keys_of(["a"], draw=5), 7

    def words(stream, modality=3, element=0):
        found = philox.random_words(
            seed=seed,
            draw=torch.tensor(5),
            product=torch.tensor(product_hash("a")),
            stream=stream,
            modality=modality,
            element=element,
        )
        return [int(word) for word in found]

    assert augment.first_files(keys, seed, 3, [1000]) == [words(Stream.MEDIA_CHOICE)[0] * 1000 // 2**32]
    kept_KM = augment.kept_modalities(keys, seed, [0, 1, 3, 4], torch.ones(1, 4, dtype=torch.bool), 0.5)
    dropped = [words(Stream.MODALITY_DROPOUT, modality)[0] for modality in (0, 1, 3, 4)]
    assert kept_KM[0].tolist() == [word >= 2**31 for word in dropped] or max(dropped) < 2**31


def test_the_first_file_is_a_share_of_the_word():
    """Word times count, divided by 2^32 and rounded down; so the draw of a product with one file costs it nothing."""
    keys = keys_of([f"p{number}" for number in range(50)], draw=1)
    words = keys.words(3, Stream.MEDIA_CHOICE, 4)[0].tolist()
    counts = [1 + number % 7 for number in range(50)]
    expected = [word * count // 2**32 for word, count in zip(words, counts, strict=True)]
    assert augment.first_files(keys, 3, 4, counts) == expected
