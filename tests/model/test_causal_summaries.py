"""A causal modality is summarised by its last row (`cls: last`); by its first row it would be a constant vector."""

import dataclasses

import pytest
import torch
from model_cases import VOCAB_SIZE, all_patterns, backward, batch_of, build, run, select, tiny_spec

from m5ds.config import ConfigError
from m5ds.model.configuration import M5Config
from m5ds.model.m5mmt import M5ForPretraining

CAUSAL = ("blocks.unimodal.causal=[text]", "modalities.text.cls=last")
TEXT = 1


@pytest.fixture(params=["drop", "token", "zeros"])
def policy(request):
    return request.param


@pytest.mark.parametrize("kind", ["learned", "token"])
@pytest.mark.parametrize("block", ["unimodal", "cross"])
def test_a_causal_modality_that_is_summarised_by_its_first_row_is_refused(tmp_path, kind, block):
    """It trained: every text had the same contrastive vector, and no error said so."""
    message = rf"run.yaml: model.modalities.text.cls is {kind}, but model.blocks.{block}.causal names text.*cls=last"
    with pytest.raises(ConfigError, match=message):
        tiny_spec(tmp_path, f"blocks.{block}.causal=[text]", f"modalities.text.cls={kind}")


def test_a_saved_model_of_such_a_configuration_is_refused_too(tmp_path):
    spec = tiny_spec(tmp_path, *CAUSAL)
    text = dataclasses.replace(spec.modalities["text"], cls="token")
    broken = dataclasses.replace(spec, modalities={**spec.modalities, "text": text})
    with pytest.raises(ValueError, match=r"model.modalities.text.cls is token"):
        M5ForPretraining(M5Config.from_spec(broken, vocab_size=VOCAB_SIZE))


@pytest.mark.parametrize("kind", ["last", "mean", "none"])
def test_every_other_summary_of_a_causal_modality_is_accepted(tmp_path, kind):
    tiny_spec(tmp_path, "blocks.unimodal.causal=[text]", f"modalities.text.cls={kind}")


def test_a_modality_that_is_not_causal_may_be_summarised_by_its_first_row(tmp_path):
    spec = tiny_spec(tmp_path, *CAUSAL, "modalities.image.cls=learned", "modalities.table.cls=token")
    assert spec.modalities["image"].cls == "learned"


def test_the_unimodal_summary_is_the_projected_last_real_row_of_each_product(tmp_path, policy):
    spec = tiny_spec(tmp_path, *CAUSAL, f"absent={policy}")
    model = build(spec).eval()
    states = []
    model.blocks["unimodal_1"].register_forward_hook(lambda module, args, output: states.append(output))
    batch = batch_of(spec, all_patterns())
    output = run(model, batch, masked=False)
    length_B = batch.modalities["text"].length_B
    # Rows of one modality lie product after product; `zeros` fills the products that lack it.
    held_B = torch.where(length_B > 0, length_B, spec.modalities["text"].input.max_rows if policy == "zeros" else 0)
    image_B = batch.modalities["image"].length_B
    image_B = torch.where(image_B > 0, image_B, spec.modalities["image"].input.max_rows if policy == "zeros" else 0)
    first_text_row = int((image_B + (image_B > 0)).sum())  # `learned` adds a row to each picture
    for b in range(len(length_B)):
        if length_B[b] == 0:
            assert not output.unimodal_BMD[b, TEXT].any()
            continue
        row = first_text_row + int(held_B[: b + 1].sum()) - 1
        expected = model.projections["text"](states[0][row])
        torch.testing.assert_close(output.unimodal_BMD[b, TEXT], expected, atol=1e-6, rtol=1e-5)


def test_the_fused_summary_is_the_last_row_after_fusion(tmp_path, policy):
    spec = tiny_spec(tmp_path, *CAUSAL, f"absent={policy}", "blocks.cross.norm=post")
    output = run(build(spec).eval(), batch_of(spec, all_patterns()), masked=False)
    layout = output.layout
    for b, pattern in enumerate(all_patterns()):
        end = int(layout.seg_start_BM[b, TEXT] + layout.seg_len_BM[b, TEXT])
        expected = output.fused_TD[end - 1] if pattern[TEXT] else torch.zeros(spec.hidden_size)
        assert torch.equal(output.fused_BMD[b, TEXT], expected), pattern


def test_the_summary_depends_on_every_token_of_the_text(tmp_path):
    spec = tiny_spec(tmp_path, *CAUSAL)
    model = build(spec).eval()
    batch = batch_of(spec, [[False, True, False, False, False]], full=True)
    before = run(model, batch, masked=False).unimodal_BMD[0, TEXT]
    text = batch.modalities["text"]
    for row in range(len(text.token_N)):
        changed = text.token_N.clone()
        changed[row] = (changed[row] - 4) % 30 + 5
        other = dataclasses.replace(batch, modalities={**batch.modalities, "text": dataclasses.replace(text)})
        other.modalities["text"].token_N = changed
        after = run(model, other, masked=False).unimodal_BMD[0, TEXT]
        assert (after - before).abs().max() > 1e-5, row


def test_gradients_reach_the_last_row_and_what_it_sees(tmp_path):
    spec = tiny_spec(tmp_path, *CAUSAL)
    model = build(spec)
    batch = batch_of(spec, [[True] * 5] * 3, full=True)
    output = run(model, batch, masked=False)
    (output.unimodal_BMD[:, TEXT] * torch.randn(3, 8, generator=torch.Generator().manual_seed(0))).sum().backward()
    tokens = batch.modalities["text"].token_N.unique()
    reached = model.embeddings.text_token.grad.abs().sum(1) > 0
    assert reached[tokens].all() and int(reached.sum()) == len(tokens)
    assert not model.embeddings.image_position.grad.any()


def test_every_presence_pattern_gives_finite_losses_and_gradients(tmp_path, policy):
    spec = tiny_spec(tmp_path, *CAUSAL, f"absent={policy}", base="scale")
    model = build(spec)
    for number, pattern in enumerate(all_patterns()):
        found = backward(model, batch_of(spec, [pattern], ids=[f"p{number}"]))
        assert all(torch.isfinite(value).all() for value in found.values()), pattern


def test_the_summary_does_not_depend_on_batch_mates(tmp_path, policy):
    spec = tiny_spec(tmp_path, *CAUSAL, f"absent={policy}")
    model = build(spec).eval()
    batch = batch_of(spec, all_patterns())
    together = run(model, batch)
    for product in (0, 8, 13, 31):
        alone = run(model, select(batch, spec, [product]))
        torch.testing.assert_close(alone.unimodal_BMD[0], together.unimodal_BMD[product], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(alone.fused_BMD[0], together.fused_BMD[product], atol=1e-6, rtol=1e-5)
