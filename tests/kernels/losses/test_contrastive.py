"""presence_contrastive: the definition against the paths that run without a GPU."""

import pytest
import torch
from closeness import assert_close
from contrastive_cases import PAIRS_ALL, PAIRS_CHAIN, cancelling_case, case, gradients, lonely_case, without_weights
from embed_cases import all_patterns
from torch.utils._python_dispatch import TorchDispatchMode

from m5ds.kernels.common.dispatch import last_path
from m5ds.kernels.presence_contrastive import presence_contrastive, torch_path


def _patterns(copies: int = 2) -> torch.Tensor:
    return all_patterns().repeat(copies, 1)[torch.randperm(32 * copies, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("pairs", [PAIRS_ALL, PAIRS_CHAIN])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)],
)
def test_torch_path_agrees_with_float64_reference(
    dtype: torch.dtype, tolerance: float, pairs: tuple[tuple[int, int], ...], weighted: bool
) -> None:
    arguments = case(_patterns(), slice(5, 42), num_pairs=len(pairs), dtype=dtype)
    if not weighted:
        arguments = without_weights(arguments)
    exact = {
        name: value.detach().double().requires_grad_() if value.is_floating_point() else value
        for name, value in arguments.items()
    }
    want = presence_contrastive(**exact, pairs=pairs, path="reference")
    got = presence_contrastive(**arguments, pairs=pairs)
    assert last_path("presence_contrastive") == "torch"
    grads = gradients(got, arguments)
    assert_close({"loss": got, **grads}, {"loss": want, **gradients(want, exact)}, tolerance)
    assert all(grad.dtype == arguments[name].dtype for name, grad in grads.items())


@pytest.mark.parametrize("path", ["reference", "torch"])
def test_gradcheck(path: str) -> None:
    arguments = case(all_patterns()[[31, 0, 13, 27, 7]], slice(1, 4), width=3, num_pairs=4)
    names = [name for name, value in arguments.items() if value.requires_grad]

    def function(*values: torch.Tensor) -> torch.Tensor:
        return presence_contrastive(
            **{**arguments, **dict(zip(names, values, strict=True))}, pairs=PAIRS_CHAIN, path=path
        )

    assert torch.autograd.gradcheck(function, tuple(arguments[name] for name in names))


def test_chunks_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = case(_patterns(3), slice(0, 96))
    whole = presence_contrastive(**arguments, pairs=PAIRS_ALL)
    whole_grads = gradients(whole, arguments)
    monkeypatch.setattr(torch_path, "_CHUNK_LOGITS", 1)
    chunked = presence_contrastive(**arguments, pairs=PAIRS_ALL)
    assert_close({"loss": chunked, **gradients(chunked, arguments)}, {"loss": whole, **whole_grads}, 1e-12)


def test_ranks_add_up_to_one_process() -> None:
    """Each rank evaluates its own rows against all keys; losses and gradients of the ranks sum to the whole's."""
    whole = without_weights(case(_patterns(1), slice(0, 32)))
    whole["features_BMD"] = whole["keys_CMD"]
    loss = presence_contrastive(**whole, pairs=PAIRS_ALL)
    (want,) = torch.autograd.grad(loss.sum(), whole["keys_CMD"])
    total, got = torch.zeros_like(loss), torch.zeros_like(want)
    for part in (slice(0, 11), slice(11, 32)):
        rank = {
            **whole,
            "features_BMD": whole["keys_CMD"][part],
            "present_BM": whole["present_BM"][part],
            "positive_B": whole["positive_B"][part],
        }
        part_loss = presence_contrastive(**rank, pairs=PAIRS_ALL)
        total, got = total + part_loss, got + torch.autograd.grad(part_loss.sum(), whole["keys_CMD"])[0]
    torch.testing.assert_close(total, loss)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("path", ["reference", "torch"])
@pytest.mark.parametrize("num_products", [0, 3])
def test_nothing_present_gives_zero_loss_and_zero_gradients(path: str, num_products: int) -> None:
    arguments = case(torch.zeros(num_products, 5, dtype=torch.bool), slice(None), dtype=torch.float32)
    loss = presence_contrastive(**arguments, pairs=PAIRS_ALL, path=path)
    assert torch.equal(loss, torch.zeros(10, 2))
    for name, grad in gradients(loss, arguments).items():
        assert grad is not None, name
        assert not grad.any(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_pair_with_one_product_has_exactly_zero_gradients(dtype: torch.dtype) -> None:
    """Adam makes full steps of whatever rounding leaves where the gradient is zero by definition."""
    arguments = lonely_case(dtype)
    loss = presence_contrastive(**arguments, pairs=PAIRS_ALL, path="torch")
    assert not loss.any()
    assert all(not grad.any() for grad in gradients(loss, arguments).values())


@pytest.mark.parametrize("kind", ["alike", "confident"])
def test_gradients_that_cancel_keep_their_digits(kind: str) -> None:
    """With p - 1 for the positive and a rounded log-sum-exp these were 2e-3 and 3e-2 off."""
    arguments = cancelling_case(kind, torch.float32)
    exact = {n: v.detach().double().requires_grad_() if v.is_floating_point() else v for n, v in arguments.items()}
    wanted = gradients(presence_contrastive(**exact, pairs=PAIRS_CHAIN, path="reference"), exact)
    got = gradients(presence_contrastive(**arguments, pairs=PAIRS_CHAIN, path="torch"), arguments)
    # Alike, a key's gradient depends on logits beyond their last float32 digit, whatever computes it.
    for name in ("features_BMD",) if kind == "alike" else ("features_BMD", "keys_CMD"):
        assert_close({name: got[name]}, {name: wanted[name]}, 3e-4)


@pytest.mark.parametrize("path", ["reference", "torch"])
def test_no_local_products_against_a_full_batch(path: str) -> None:
    arguments = case(torch.ones(6, 5, dtype=torch.bool), slice(0, 0), dtype=torch.float32)
    loss = presence_contrastive(**arguments, pairs=PAIRS_ALL, path=path)
    assert not loss.any()
    assert all(grad is not None and not grad.any() for grad in gradients(loss, arguments).values())


def test_features_and_weights_of_absent_modalities_are_never_read() -> None:
    arguments = case(_patterns(), slice(0, 64), dtype=torch.float32)
    for features, mask in (("features_BMD", "present_BM"), ("keys_CMD", "keys_present_CM")):
        poisoned = arguments[features].detach().clone()
        poisoned[~arguments[mask]] = torch.nan
        arguments[features] = poisoned.requires_grad_()
    for weights in ("weights_BP", "loss_weights_BP"):
        poisoned = arguments[weights].detach().clone()
        for p, (i, j) in enumerate(PAIRS_ALL):
            poisoned[~(arguments["present_BM"][:, i] & arguments["present_BM"][:, j]), p] = torch.nan
        arguments[weights] = poisoned.requires_grad_()
    loss = presence_contrastive(**arguments, pairs=PAIRS_ALL)
    assert loss.isfinite().all()
    assert all(grad.isfinite().all() for grad in gradients(loss, arguments).values())


def test_gradients_are_bitwise_the_same_twice() -> None:
    arguments = case(_patterns(), slice(0, 64), dtype=torch.float32)
    first, second = (gradients(presence_contrastive(**arguments, pairs=PAIRS_ALL), arguments) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


class _LargestTensor(TorchDispatchMode):
    """The most elements of any tensor that an op makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


def test_no_tensor_grows_with_the_square_of_the_batch() -> None:
    """Forward and backward of one pair; the definition makes 64 times the tensor for 8 times the products."""
    largest = {}
    for path in ("torch", "reference"):
        for num_products in (256, 2048):
            present_CM = torch.ones(num_products, 2, dtype=torch.bool)
            arguments = case(present_CM, slice(0, None), width=8, num_pairs=1, dtype=torch.float32)
            with _LargestTensor() as mode:
                gradients(presence_contrastive(**arguments, pairs=((0, 1),), path=path), arguments)
            largest[path, num_products] = mode.elements
    assert largest["torch", 2048] <= max(torch_path._CHUNK_LOGITS, 8 * largest["torch", 256])
    assert largest["reference", 2048] == 64 * largest["reference", 256]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("keys_CMD", lambda v: v[:, :4]),
        ("keys_CMD", lambda v: v.float()),
        ("present_BM", lambda v: v.long()),
        ("keys_present_CM", lambda v: v[:-1]),
        ("positive_B", lambda v: v.int()),
        ("positive_B", lambda v: v.to("meta")),
        ("positive_B", lambda v: v + 32),
        ("positive_B", lambda v: v - 1),
        ("logit_scale", lambda v: v.expand(2)),
        ("logit_scale", lambda v: v.to("meta")),
        ("weights_BP", lambda v: v[:, :3]),
        ("weights_BP", lambda v: v.to("meta")),
        ("loss_weights_BP", lambda v: v.long()),
        ("loss_weights_BP", lambda v: v[:3]),
        ("features_BMD", lambda v: v[0]),
    ],
)
def test_a_bad_argument_is_named(name: str, change: object) -> None:
    arguments = case(_patterns(1), slice(0, 8))
    with pytest.raises(ValueError, match=name):
        presence_contrastive(**{**arguments, name: change(arguments[name])}, pairs=PAIRS_ALL)
    with pytest.raises(ValueError, match="pairs"):
        presence_contrastive(**arguments, pairs=((1, 1),))


def test_groups_are_int64_one_a_product() -> None:
    arguments = case(_patterns(1), slice(0, 32), num_pairs=len(PAIRS_CHAIN), dtype=torch.float32)
    good = torch.arange(32)
    presence_contrastive(**arguments, pairs=PAIRS_CHAIN, groups=(good, good))
    for bad in (good[:5], good.int()):
        with pytest.raises(ValueError, match=r"groups of keys must be int64 \[32\]"):
            presence_contrastive(**arguments, pairs=PAIRS_CHAIN, groups=(good, bad))
    with pytest.raises(ValueError, match="the Triton kernels do not know them"):
        presence_contrastive(**arguments, pairs=PAIRS_CHAIN, groups=(good, good), path="triton")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_groups_agree_with_the_reference(dtype: torch.dtype) -> None:
    """Some queries are left with no key but their own."""
    arguments = case(_patterns(), slice(5, 42), num_pairs=len(PAIRS_ALL), dtype=dtype)
    keys = torch.arange(64) // 7
    keys[5:20] = 1
    exact = {
        name: value.detach().double().requires_grad_() if value.is_floating_point() else value
        for name, value in arguments.items()
    }
    groups = (keys[5:42], keys)
    want = presence_contrastive(**exact, pairs=PAIRS_ALL, path="reference", groups=groups)
    got = presence_contrastive(**arguments, pairs=PAIRS_ALL, groups=groups)
    assert (got <= presence_contrastive(**arguments, pairs=PAIRS_ALL) + 1e-4).all()
    found = {"loss": got, **gradients(got, arguments)}
    assert_close(found, {"loss": want, **gradients(want, exact)}, 1e-12 if dtype == torch.float64 else 1e-5)
