"""Keys of many products, and what holds of every choice that training draws by them."""

from collections.abc import Callable
from typing import Any

import torch

from m5ds.inputs.keyed import Keys
from m5ds.kernels.common.philox import product_hash

NUM = 2000


def keys_of(names: list[str], draw: int = 0) -> Keys:
    product_K = torch.tensor([product_hash(name) for name in names])
    return Keys(product_K, torch.full((len(names),), draw, dtype=torch.int64))


def many_keys() -> Keys:
    return keys_of([f"p{number}" for number in range(NUM)])


def assert_keyed(every_choice: Callable[[Keys], dict[str, list[Any]]], keys: Keys) -> None:
    """No choice depends on the place in the batch, and all differ from draw to draw."""
    together, places = every_choice(keys), [1999, 0, 7, 1200]
    alone, later = every_choice(keys.take(places)), every_choice(Keys(keys.product_K, keys.draw_K + 1))
    for name, values in together.items():
        assert alone[name] == [values[place] for place in places], name
        assert values != later[name], name
