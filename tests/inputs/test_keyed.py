"""Training's random choices belong to the product and the draw, and to nothing else."""

import pytest
import torch
from keyed_cases import NUM, assert_keyed, keys_of, many_keys

from m5ds.inputs import keyed
from m5ds.inputs.keyed import Draws, Keys
from m5ds.kernels.common import philox
from m5ds.kernels.common.philox import Stream, product_hash


@pytest.fixture(scope="module")
def keys():
    return many_keys()


def every_choice(keys):
    return {
        "crops": keyed.crops(keys, 3, 0),
        "times": keyed.frame_times(keys, 3, 3, 5).tolist(),
        "starts": keyed.window_starts(keys, 3, 4).tolist(),
    }


def test_choices_belong_to_product_draw_and_seed_and_not_to_the_place_in_the_batch(keys):
    assert_keyed(every_choice, keys)
    assert keyed.crops(keys, 3, 0) != keyed.crops(keys, 4, 0)
    assert keyed.crops(keys, 3, 0) != keyed.crops(keys, 3, 3)


def test_crops_are_uniform_and_never_flip(keys):
    crops = keyed.crops(keys, 0, 0)
    for field in ("area", "aspect", "y", "x"):
        values = torch.tensor([getattr(crop, field) for crop in crops])
        assert values.min() >= 0 and values.max() < 1
        assert values.mean().item() == pytest.approx(0.5, abs=0.03)
    assert not any(crop.flip for crop in crops)


def test_frame_times_lie_one_in_each_part_of_the_clip(keys):
    times_KT = keyed.frame_times(keys, 0, 3, 4)
    assert torch.equal((times_KT * 4).long(), torch.arange(4).expand(NUM, 4))
    assert (times_KT * 4 % 1).mean().item() == pytest.approx(0.5, abs=0.03)
    assert keyed.centre_times(2, 4).tolist() == [[0.125, 0.375, 0.625, 0.875]] * 2


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

    (crop,) = keyed.crops(keys, seed, 3)
    share = [float(philox.uniform(torch.tensor(word))) for word in words(Stream.CROP)]
    assert [crop.area, crop.aspect, crop.y, crop.x] == share
    for i, time in enumerate(keyed.frame_times(keys, seed, 3, 4)[0].tolist()):
        first = float(philox.uniform(torch.tensor(words(Stream.FRAMES, element=i)[0])))
        assert time == pytest.approx((i + first) / 4, abs=1e-12)
    (start,) = keyed.window_starts(keys, seed, 3).tolist()
    assert start == float(philox.uniform(torch.tensor(words(Stream.AUDIO_WINDOW)[0])))


@pytest.mark.parametrize("random", [True, False])
def test_draws_are_the_owners_choices_or_the_centre(random):
    keys = keys_of(["a", "b"], draw=2)
    draws = Draws(keys=keys, seed=7, modality=3, random=random)
    if random:
        assert draws.crops() == keyed.crops(keys, 7, 3)
        assert torch.equal(draws.frame_times(4), keyed.frame_times(keys, 7, 3, 4))
        assert draws.window_starts() == keyed.window_starts(keys, 7, 3).tolist()
    else:
        assert draws.crops() == [None, None] and draws.window_starts() == [0.5, 0.5]
        assert draws.frame_times(2).tolist() == [[0.25, 0.75]] * 2


def test_keys_are_taken_in_the_order_asked_for_and_words_by_element():
    keys = Keys(torch.tensor([5, 6, 7]), torch.tensor([1, 2, 3]))
    taken = keys.take([2, 0])
    assert taken.product_K.tolist() == [7, 5] and taken.draw_K.tolist() == [3, 1]
    assert keys.take([]).product_K.tolist() == []
    by_element = keys.words(4, Stream.FRAMES, 3, torch.arange(4))[0]
    assert by_element.shape == (3, 4)
    for element in range(4):
        assert torch.equal(keys.words(4, Stream.FRAMES, 3, element)[0], by_element[:, element])
    assert torch.equal(keys.words(4, Stream.FRAMES, 3)[0], by_element[:, 0])
    assert keyed.centre_times(3, 2).tolist() == [[0.25, 0.75]] * 3
    assert keyed.centre_times(1, 1).dtype == torch.float64
