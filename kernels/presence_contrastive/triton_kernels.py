"""Streaming InfoNCE: no B x C matrix exists; each tile of logits lives in registers (DESIGN section 5).

A directed pair e = 2 p + direction compares modality query_modality[e] of local products with key_modality[e] of the
gathered batch. The side that a program owns is read as it lies; the side it streams over is read through an index of
the products that have both modalities, so absent ones cost nothing. Nothing is atomic: a program owns what it writes.

Letters: E directed pairs, B local products, C gathered products, M modalities, D width; b rows of queries and c rows of
keys in one tile. Prefixes: p_ pointer, b_ block value, i_ program index, n_ number.
"""

import triton
import triton.language as tl

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _load_rows(p_x, row, valid, modality, n_modalities, width, start, COLUMNS: tl.constexpr, UPCAST: tl.constexpr):
    """[rows, COLUMNS] of x[row, modality, start:], zeros where not valid or past the width."""
    column = start + tl.arange(0, COLUMNS)
    offset = (row.to(tl.int64) * n_modalities + modality) * width
    tile = tl.load(p_x + offset[:, None] + column[None, :], mask=valid[:, None] & (column < width)[None, :], other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def _have_both(p_present, row, valid, modality_a, modality_b, n_modalities):
    offset = row.to(tl.int64) * n_modalities
    has_a = tl.load(p_present + offset + modality_a, mask=valid, other=0)
    has_b = tl.load(p_present + offset + modality_b, mask=valid, other=0)
    return (has_a != 0) & (has_b != 0)


@triton.jit
def _products(
    p_left,
    left,
    left_valid,
    left_modality,
    p_right,
    right,
    right_valid,
    right_modality,
    n_modalities,
    width,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """[LEFT, RIGHT] float32 dot products of rows of both sides."""
    b_acc = tl.zeros((LEFT, RIGHT), dtype=tl.float32)
    for start in range(0, width, BLOCK_K):
        b_left = _load_rows(p_left, left, left_valid, left_modality, n_modalities, width, start, BLOCK_K, UPCAST)
        b_right = _load_rows(p_right, right, right_valid, right_modality, n_modalities, width, start, BLOCK_K, UPCAST)
        b_acc = tl.dot(b_left, tl.trans(b_right), b_acc, input_precision="tf32x3")
    return b_acc


@triton.jit(do_not_specialize=["n_queries", "n_keys", "n_modalities"])
def contrastive_fwd_kernel(
    p_features,
    p_keys,
    p_present,
    p_positive,
    p_query_modality,
    p_key_modality,
    p_key_order,
    p_key_count,
    p_factor,
    p_lse,
    p_rest,
    p_loss,
    n_queries: tl.int64,
    n_keys: tl.int64,
    n_modalities: tl.int64,
    width: tl.int32,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Loss, log-sum-exp (base 2) and `rest` of BLOCK_B queries of one directed pair. Grid (blocks of queries, E).

    `rest` is the probability of all keys but the positive; the positive's gradient is minus that. Summed without the
    positive, it is exact where the positive has nearly everything, and 0 where it is the only key. It is taken of the
    log-sum-exp as rounded, which the backward uses, so that a query's gradients to its logits add up to 0: rounding
    would drown them where features are nearly alike (a model just initialised).
    """
    query = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    e = tl.program_id(1).to(tl.int64)
    query_modality, key_modality = tl.load(p_query_modality + e), tl.load(p_key_modality + e)
    inside = query < n_queries
    is_query = _have_both(p_present, query, inside, query_modality, key_modality, n_modalities)
    b_lse = tl.zeros((BLOCK_B,), dtype=tl.float32)
    b_rest = tl.zeros((BLOCK_B,), dtype=tl.float32)
    b_loss = tl.zeros((BLOCK_B,), dtype=tl.float32)
    if tl.max(is_query.to(tl.int32), 0) > 0:
        b_factor = tl.load(p_factor + e * n_queries + query, mask=is_query, other=0.0) * _LOG2E
        positive = tl.load(p_positive + query, mask=is_query, other=-1).to(tl.int32)
        b_max = tl.full((BLOCK_B,), float("-inf"), dtype=tl.float32)
        b_others = tl.zeros((BLOCK_B,), dtype=tl.float32)
        b_positive = tl.zeros((BLOCK_B,), dtype=tl.float32)
        n_present = tl.load(p_key_count + e // 2)
        for start in range(0, n_present, BLOCK_C):
            slot = start + tl.arange(0, BLOCK_C)
            is_key = slot < n_present
            key = tl.load(p_key_order + (e // 2) * n_keys + slot, mask=is_key, other=0)
            b_logit = _products(
                p_features,
                query,
                is_query,
                query_modality,
                p_keys,
                key,
                is_key,
                key_modality,
                n_modalities,
                width,
                BLOCK_B,
                BLOCK_C,
                BLOCK_K,
                UPCAST,
            )
            b_logit = b_logit * b_factor[:, None]
            is_positive = is_key[None, :] & (key[None, :] == positive[:, None])
            b_positive += tl.sum(tl.where(is_positive, b_logit, 0.0), 1)
            b_logit = tl.where(is_key[None, :], b_logit, float("-inf"))
            # Every tile has a key, so the maximum is finite after the first.
            b_new_max = tl.maximum(b_max, tl.max(b_logit, 1))
            b_other = tl.where(is_positive, 0.0, tl.exp2(b_logit - b_new_max[:, None]))
            b_others = b_others * tl.exp2(b_max - b_new_max) + tl.sum(b_other, 1)
            b_max = b_new_max
        b_log = tl.log2(b_others + tl.exp2(b_positive - b_max))
        b_lse = tl.where(is_query, b_max + b_log, 0.0)
        b_rest = tl.where(is_query, b_others * tl.exp2(b_max - b_lse), 0.0)
        b_loss = tl.where(is_query, (b_max - b_positive + b_log) * _LN2, 0.0)
    tl.store(p_lse + e * n_queries + query, b_lse, mask=inside)
    tl.store(p_rest + e * n_queries + query, b_rest, mask=inside)
    tl.store(p_loss + e * n_queries + query, b_loss, mask=inside)


@triton.jit(do_not_specialize=["n_queries", "n_keys", "n_modalities", "n_directed"])
def contrastive_bwd_features_kernel(
    p_features,
    p_keys,
    p_present,
    p_positive,
    p_query_modality,
    p_key_modality,
    p_key_order,
    p_key_count,
    p_factor,
    p_lse,
    p_rest,
    p_grad_loss,
    p_coefficient,
    p_limit,
    p_grad_features,
    p_grad_factor,
    n_queries: tl.int64,
    n_keys: tl.int64,
    n_modalities: tl.int64,
    n_directed: tl.int64,
    width: tl.int32,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Gradient to BLOCK_D columns of one modality of BLOCK_B products, over all directed pairs whose queries they are.

    Grid (blocks of queries, M, chunks of columns). The first chunk also writes the gradient to each query's factor.
    The coefficients are divided by their largest, so that the tile of gradients fits float16, and multiplied back.
    """
    query = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    modality = tl.program_id(1)
    column_start = tl.program_id(2) * BLOCK_D
    inside = query < n_queries
    b_grad = tl.zeros((BLOCK_B, BLOCK_D), dtype=tl.float32)
    for e in range(0, n_directed):
        query_modality, key_modality = tl.load(p_query_modality + e), tl.load(p_key_modality + e)
        if query_modality == modality:
            is_query = _have_both(p_present, query, inside, query_modality, key_modality, n_modalities)
            b_slope = tl.zeros((BLOCK_B,), dtype=tl.float32)
            if tl.max(is_query.to(tl.int32), 0) > 0:
                place = e * n_queries + query
                b_factor = tl.load(p_factor + place, mask=is_query, other=0.0) * _LOG2E
                b_lse = tl.load(p_lse + place, mask=is_query, other=0.0)
                b_rest = tl.load(p_rest + place, mask=is_query, other=0.0)
                b_coefficient = tl.load(p_coefficient + place, mask=is_query, other=0.0)
                positive = tl.load(p_positive + query, mask=is_query, other=-1).to(tl.int32)
                n_present = tl.load(p_key_count + e // 2)
                for start in range(0, n_present, BLOCK_C):
                    slot = start + tl.arange(0, BLOCK_C)
                    is_key = slot < n_present
                    key = tl.load(p_key_order + (e // 2) * n_keys + slot, mask=is_key, other=0)
                    b_product = _products(
                        p_features,
                        query,
                        is_query,
                        query_modality,
                        p_keys,
                        key,
                        is_key,
                        key_modality,
                        n_modalities,
                        width,
                        BLOCK_B,
                        BLOCK_C,
                        BLOCK_K,
                        UPCAST,
                    )
                    b_error = tl.exp2(b_product * b_factor[:, None] - b_lse[:, None])
                    b_error = tl.where(key[None, :] == positive[:, None], -b_rest[:, None], b_error)
                    b_error = tl.where(is_query[:, None] & is_key[None, :], b_error, 0.0)
                    b_slope += tl.sum(b_error * b_product, 1)
                    b_key = _load_rows(
                        p_keys, key, is_key, key_modality, n_modalities, width, column_start, BLOCK_D, UPCAST
                    )
                    b_error = (b_error * b_coefficient[:, None]).to(b_key.dtype)
                    b_grad = tl.dot(b_error, b_key, b_grad, input_precision="tf32x3")
            if column_start == 0:
                b_grad_loss = tl.load(p_grad_loss + e * n_queries + query, mask=is_query, other=0.0)
                tl.store(p_grad_factor + e * n_queries + query, b_slope * b_grad_loss, mask=inside)
    column = column_start + tl.arange(0, BLOCK_D)
    offset = (query * n_modalities + modality) * width
    tl.store(
        p_grad_features + offset[:, None] + column[None, :],
        (b_grad * tl.load(p_limit)).to(p_grad_features.dtype.element_ty),
        mask=inside[:, None] & (column < width)[None, :],
    )


@triton.jit(do_not_specialize=["n_queries", "n_keys", "n_modalities", "n_directed"])
def contrastive_bwd_keys_kernel(
    p_features,
    p_keys,
    p_keys_present,
    p_positive,
    p_query_modality,
    p_key_modality,
    p_query_order,
    p_query_count,
    p_factor,
    p_lse,
    p_rest,
    p_coefficient,
    p_limit,
    p_grad_keys,
    n_queries: tl.int64,
    n_keys: tl.int64,
    n_modalities: tl.int64,
    n_directed: tl.int64,
    width: tl.int32,
    BLOCK_B: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Gradient to BLOCK_D columns of one modality of BLOCK_C keys. Grid (blocks of keys, M, chunks of columns)."""
    key = tl.program_id(0).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    modality = tl.program_id(1)
    column_start = tl.program_id(2) * BLOCK_D
    inside = key < n_keys
    b_grad = tl.zeros((BLOCK_C, BLOCK_D), dtype=tl.float32)
    for e in range(0, n_directed):
        query_modality, key_modality = tl.load(p_query_modality + e), tl.load(p_key_modality + e)
        if key_modality == modality:
            is_key = _have_both(p_keys_present, key, inside, query_modality, key_modality, n_modalities)
            if tl.max(is_key.to(tl.int32), 0) > 0:
                n_present = tl.load(p_query_count + e // 2)
                for start in range(0, n_present, BLOCK_B):
                    slot = start + tl.arange(0, BLOCK_B)
                    is_query = slot < n_present
                    query = tl.load(p_query_order + (e // 2) * n_queries + slot, mask=is_query, other=0)
                    place = e * n_queries + query
                    b_factor = tl.load(p_factor + place, mask=is_query, other=0.0) * _LOG2E
                    b_lse = tl.load(p_lse + place, mask=is_query, other=0.0)
                    b_rest = tl.load(p_rest + place, mask=is_query, other=0.0)
                    b_coefficient = tl.load(p_coefficient + place, mask=is_query, other=0.0)
                    positive = tl.load(p_positive + query, mask=is_query, other=-1).to(tl.int32)
                    b_product = _products(
                        p_keys,
                        key,
                        is_key,
                        key_modality,
                        p_features,
                        query,
                        is_query,
                        query_modality,
                        n_modalities,
                        width,
                        BLOCK_C,
                        BLOCK_B,
                        BLOCK_K,
                        UPCAST,
                    )
                    b_error = tl.exp2(b_product * b_factor[None, :] - b_lse[None, :])
                    b_error = tl.where(key.to(tl.int32)[:, None] == positive[None, :], -b_rest[None, :], b_error)
                    b_error = tl.where(is_key[:, None] & is_query[None, :], b_error * b_coefficient[None, :], 0.0)
                    b_query = _load_rows(
                        p_features, query, is_query, query_modality, n_modalities, width, column_start, BLOCK_D, UPCAST
                    )
                    b_grad = tl.dot(b_error.to(b_query.dtype), b_query, b_grad, input_precision="tf32x3")
    column = column_start + tl.arange(0, BLOCK_D)
    offset = (key * n_modalities + modality) * width
    tl.store(
        p_grad_keys + offset[:, None] + column[None, :],
        (b_grad * tl.load(p_limit)).to(p_grad_keys.dtype.element_ty),
        mask=inside[:, None] & (column < width)[None, :],
    )
