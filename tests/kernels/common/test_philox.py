"""Random bits are a pure function of what they belong to."""

import pytest
import torch

from m5ds.kernels.common import philox
from m5ds.kernels.common.philox import Stream

# Known answers of philox4x32-10 from the Random123 distribution (kat_vectors).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, answer):
    words = philox.philox4x32(
        tuple(torch.tensor([word]) for word in counter), tuple(torch.tensor([word]) for word in key)
    )
    assert tuple(int(word) for word in words) == answer


def test_bits_do_not_depend_on_batch_mates_or_order():
    products = torch.tensor([philox.product_hash(name) for name in ("a", "b", "c", "d")])
    together = philox.random_words(seed=3, draw=1, product=products, stream=Stream.MASK, modality=2, element=5)[0]
    alone = philox.random_words(seed=3, draw=1, product=products[2:3], stream=Stream.MASK, modality=2, element=5)[0]
    backwards = philox.random_words(
        seed=3, draw=1, product=products.flip(0), stream=Stream.MASK, modality=2, element=5
    )[0]
    assert together[2] == alone[0]
    assert torch.equal(together, backwards.flip(0))


def test_every_part_of_the_identity_changes_the_bits():
    base = {"seed": 1, "draw": 2, "product": torch.tensor([-7]), "stream": Stream.MASK}
    base |= {"modality": 3, "element": 4, "index": 5}
    changes = {"seed": 2, "draw": 3, "product": torch.tensor([-6]), "stream": Stream.CROP}
    changes |= {"modality": 4, "element": 5, "index": 6}
    first = philox.random_words(**base)
    for name, value in changes.items():
        other = philox.random_words(**{**base, name: value})
        assert all(int(a) != int(b) for a, b in zip(first, other, strict=True)), name


def test_threshold_draws_the_stated_share():
    words = philox.random_words(
        seed=0, draw=0, product=torch.tensor([1]), stream=Stream.MASK, element=torch.arange(100_000)
    )[0]
    assert (words < philox.threshold(0.15)).double().mean().item() == pytest.approx(0.15, abs=0.004)
    assert not (words < philox.threshold(0.0)).any()
    assert (words < philox.threshold(1.0)).all()
    with pytest.raises(ValueError, match="probability"):
        philox.threshold(1.5)


def test_uniform_lies_in_the_half_open_unit_interval():
    values = philox.uniform(torch.tensor([0, 2**32 - 1]))
    assert values[0] == 0.0
    assert values[1] < 1.0


def test_product_hash_is_stable_across_processes_and_versions():
    assert philox.product_hash("emoji/1f600") == philox.product_hash("emoji/1f600")
    assert philox.product_hash("") == int.from_bytes(bytes.fromhex("e4a6a0577479b2b4"), "little", signed=True)
