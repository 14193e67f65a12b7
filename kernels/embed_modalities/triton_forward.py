"""Forward kernel of embed_modalities: one modality's rows from their source to the packed buffer in one pass.

Letters and prefixes: triton_common.py.
"""

import triton
import triton.language as tl

from m5ds.kernels.common.philox import Stream
from m5ds.kernels.common.philox_triton import random_words
from m5ds.kernels.embed_modalities.masking import MASK_BELOW, RANDOM_BELOW
from m5ds.kernels.embed_modalities.triton_common import (
    MASK_KEY_OR_VALUE,
    gather_rows,
    load_vector,
    locate,
    sum_of_embeddings,
)

_KEY_OR_VALUE = tl.constexpr(MASK_KEY_OR_VALUE)
_MASK_STREAM = tl.constexpr(int(Stream.MASK))
_REPLACEMENT_STREAM = tl.constexpr(int(Stream.REPLACEMENT))
_MASK_BELOW = tl.constexpr(MASK_BELOW)
_RANDOM_BELOW = tl.constexpr(RANDOM_BELOW)


@triton.jit(
    do_not_specialize=[
        "slab_start",
        "slab_rows",
        "content_start",
        "seed",
        "modality_number",
        "threshold",
        "mask_kind",
        "text",
        "mask_token",
        "first_random",
        "num_random",
        "has_cls",
        "has_part",
        "has_extra",
    ]
)
def embed_fwd_kernel(
    p_base,
    p_position_table,
    p_modality,
    p_part_table,
    p_extra,
    p_mask,
    p_cls,
    p_norm_weight,
    p_norm_bias,
    p_token,
    p_position,
    p_unit,
    p_part,
    p_row_product,
    p_row_position,
    p_cls_before,
    p_product,
    p_draw,
    p_x,
    p_mean,
    p_rstd,
    p_masked,
    p_seen,
    slab_start: tl.int64,
    slab_rows: tl.int64,
    content_start: tl.int64,
    seed: tl.int64,
    modality_number: tl.int64,
    threshold: tl.int64,
    mask_kind: tl.int32,
    text: tl.int32,
    mask_token: tl.int64,
    first_random: tl.int64,
    num_random: tl.int64,
    has_cls: tl.int32,
    has_part: tl.int32,
    has_extra: tl.int32,
    width: tl.int32,
    eps: tl.float32,
    ROWS: tl.constexpr,
    PROGRAM_ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """PROGRAM_ROWS rows of the slab. Grid (blocks of rows). Writes x, row statistics, mask, and the tokens seen."""
    column = tl.arange(0, COLUMNS)
    b_modality = load_vector(p_modality, column, width, 1)
    b_part_0 = load_vector(p_part_table, column, width, has_part)
    b_part_1 = load_vector(p_part_table + width, column, width, has_part)
    b_mask = tl.zeros((COLUMNS,), dtype=tl.float32)
    if not TOKENS:
        b_mask = load_vector(p_mask, column, width, mask_kind)
    b_cls = load_vector(p_cls, column, width, has_cls)
    b_weight = load_vector(p_norm_weight, column, width, 1)
    b_bias = load_vector(p_norm_bias, column, width, 1)
    first = tl.program_id(0).to(tl.int64) * PROGRAM_ROWS
    for start in range(first, tl.minimum(first + PROGRAM_ROWS, slab_rows), ROWS):
        row = start + tl.arange(0, ROWS)
        inside = row < slab_rows
        product, content, offset, is_content = locate(
            p_row_product, p_row_position, p_cls_before, slab_start, row, inside, has_cls
        )
        hashed = tl.load(p_product + product, mask=inside, other=0)
        draw = tl.load(p_draw + product, mask=inside, other=0)
        masked = is_content & (mask_kind != 0)
        if mask_kind != 0:
            unit = tl.load(p_unit + content, mask=is_content, other=-1)
            word_0, word_1, _, _ = random_words(unit, hashed, draw, seed, _MASK_STREAM, modality_number, 0)
            # an int64 threshold: probability 1 is 2**32, which no 32-bit word holds
            masked = is_content & (unit >= 0) & (word_0.to(tl.int64) < threshold)
            if mask_kind == _KEY_OR_VALUE:
                part = tl.load(p_part + content, mask=is_content, other=0)
                masked = masked & (part == (word_1 & 1))
        tl.store(p_masked + content_start + content, masked.to(tl.uint8), mask=is_content)
        if TOKENS:
            token = tl.load(p_token + content, mask=is_content, other=0)
            if text != 0:
                word_0, word_1, _, _ = random_words(offset, hashed, draw, seed, _REPLACEMENT_STREAM, modality_number, 0)
                drawn = first_random + word_1.to(tl.int64) % num_random
                replaced = tl.where(word_0.to(tl.int64) < _RANDOM_BELOW, drawn, token)
                replaced = tl.where(word_0.to(tl.int64) < _MASK_BELOW, mask_token, replaced)
                token = tl.where(masked, replaced, token)
            else:
                token = tl.where(masked, mask_token, token)
            tl.store(p_seen + content_start + content, token, mask=is_content)
            b_base = gather_rows(p_base, token, is_content, column, width)
        else:
            b_base = gather_rows(p_base, content, is_content & (masked == 0), column, width)
        b_x, _ = sum_of_embeddings(
            b_base,
            masked,
            content,
            is_content,
            p_position_table,
            p_position,
            p_part,
            p_extra,
            b_modality,
            b_part_0,
            b_part_1,
            b_mask,
            b_cls,
            column,
            width,
            has_part,
            has_extra,
            TOKENS,
        )
        b_mean = tl.sum(b_x, 1) / width
        b_centred = tl.where((column < width)[None, :], b_x - b_mean[:, None], 0.0)
        b_rstd = 1.0 / tl.sqrt(tl.sum(b_centred * b_centred, 1) / width + eps)
        b_out = b_centred * b_rstd[:, None] * b_weight[None, :] + b_bias[None, :]
        tl.store(p_mean + slab_start + row, b_mean, mask=inside)
        tl.store(p_rstd + slab_start + row, b_rstd, mask=inside)
        tl.store(
            p_x + (slab_start + row)[:, None] * width + column[None, :],
            b_out.to(p_x.dtype.element_ty),
            mask=inside[:, None] & (column < width)[None, :],
        )
