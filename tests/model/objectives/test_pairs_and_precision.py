"""Which modalities are contrasted, and what stays in float32."""

import pytest
import torch
from model_cases import build, tiny_spec

from m5ds.model.objectives.pairs import chosen_pairs
from m5ds.model.precision import at_least_float32

NAMES = ("image", "text", "table", "video", "audio")


def pairs_of(tmp_path, *overrides):
    spec = tiny_spec(tmp_path, *overrides)
    return chosen_pairs(spec.objectives["contrastive"]["pairs"], spec, "contrastive")


def test_the_chain_joins_neighbours_in_table_order(tmp_path):
    expected = (("image", "text"), ("text", "table"), ("table", "video"), ("video", "audio"))
    assert pairs_of(tmp_path, "objectives.contrastive.pairs=chain") == expected


def test_all_is_every_pair_once(tmp_path):
    found = pairs_of(tmp_path, "objectives.contrastive.pairs=all")
    assert found == tuple((a, b) for i, a in enumerate(NAMES) for b in NAMES[i + 1 :]) and len(found) == 10


@pytest.mark.parametrize(("kind", "count"), [("chain", 3), ("all", 6)])
def test_a_modality_without_summary_is_passed_over(tmp_path, kind, count):
    found = pairs_of(tmp_path, f"objectives.contrastive.pairs={kind}", "modalities.table.cls=none")
    assert len(found) == count and not any("table" in pair for pair in found)
    assert kind == "all" or ("text", "video") in found


def test_named_pairs_keep_their_order_and_are_turned_into_table_order(tmp_path):
    found = pairs_of(tmp_path, "objectives.contrastive.pairs=[[audio, image], [text, table]]")
    assert found == (("image", "audio"), ("text", "table"))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("[[image, smell]]", r"names 'smell'; the model has image, text, table, video, audio"),
        ("[[smell, image]]", r"names 'smell'"),
        ("[[image, table]]", r"names 'table', which has no summary \(cls: none\)"),
        ("[[text, text]]", r"has 'text' with itself"),
        ("[[image, text], [text, image]]", "repeats a pair"),
    ],
)
def test_a_pair_that_cannot_be_contrasted_is_refused(tmp_path, pairs, message):
    with pytest.raises(ValueError, match=message):
        pairs_of(tmp_path, f"objectives.contrastive.pairs={pairs}", "modalities.table.cls=none")


def test_a_pairs_loss_has_the_name_of_its_family_and_modalities(tmp_path):
    model = build(tiny_spec(tmp_path, "objectives.sigmoid={pairs: [[video, text]]}"))
    names = {name: [term.name for term in objective.terms] for name, objective in model.objectives.items()}
    assert names["contrastive"][0] == "itc/image-text" and names["sigmoid"] == ["sig/text-video"]


def test_the_refusal_names_the_objectives_key(tmp_path):
    with pytest.raises(ValueError, match=r"model.objectives.second.pairs names 'smell'"):
        build(tiny_spec(tmp_path, "objectives.second={kind: sigmoid, pairs: [[image, smell]]}"))


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_float64_stays_and_less_becomes_float32(given, made):
    value = torch.tensor([1.5, -2.0], dtype=given)
    assert at_least_float32(value).dtype == made and at_least_float32(value).tolist() == [1.5, -2.0]
