"""presence_contrastive's Triton kernels in the interpreter (TRITON_INTERPRET=1, own process) against float64."""

import pytest
import torch
from closeness import assert_close
from contrastive_cases import PAIRS_ALL, PAIRS_CHAIN, cancelling_case, case, gradients, lonely_case, without_weights
from embed_cases import all_patterns

from m5ds.kernels.common.dispatch import last_path
from m5ds.kernels.presence_contrastive import presence_contrastive
from m5ds.kernels.presence_contrastive.configurations import configurations
from m5ds.kernels.presence_contrastive.triton_path import LAUNCHED, contrastive_backward, contrastive_forward

_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def _patterns(copies: int) -> torch.Tensor:
    return all_patterns().repeat(copies, 1)[torch.randperm(32 * copies, generator=torch.Generator().manual_seed(0))]


def _agree(arguments: dict[str, torch.Tensor], pairs: tuple[tuple[int, int], ...], dtype: torch.dtype) -> None:
    exact = {
        name: value.detach().double().requires_grad_() if value.is_floating_point() else value
        for name, value in arguments.items()
    }
    want = presence_contrastive(**exact, pairs=pairs, path="reference")
    got = presence_contrastive(**arguments, pairs=pairs, path="triton")
    assert last_path("presence_contrastive") == "triton"
    assert got.dtype == torch.float32
    grads = gradients(got, arguments)
    assert_close({"loss": got, **grads}, {"loss": want, **gradients(want, exact)}, _TOLERANCE[dtype])
    assert all(grad.dtype == arguments[name].dtype for name, grad in grads.items())


@pytest.mark.parametrize("dtype", list(_TOLERANCE))
@pytest.mark.parametrize(("pairs", "width"), [(PAIRS_ALL, 12), (PAIRS_CHAIN, 70)])
def test_every_gradient_agrees_on_all_presence_patterns(
    pairs: tuple[tuple[int, int], ...], width: int, dtype: torch.dtype
) -> None:
    _agree(case(_patterns(3), slice(5, 75), width=width, num_pairs=len(pairs), dtype=dtype), pairs, dtype)


@pytest.mark.parametrize("num_products", [1, 37, 63, 111])
def test_every_gradient_agrees_on_odd_sizes(num_products: int) -> None:
    arguments = case(torch.ones(num_products, 5, dtype=torch.bool), slice(0, None), num_pairs=4, dtype=torch.float32)
    _agree(arguments, PAIRS_CHAIN, torch.float32)


def test_wide_features_take_several_chunks_of_columns() -> None:
    arguments = case(_patterns(1), slice(0, 32), width=270, num_pairs=1, dtype=torch.float32)
    _agree(arguments, ((0, 4),), torch.float32)


def test_without_weights() -> None:
    _agree(without_weights(case(_patterns(1), slice(3, 20), dtype=torch.float32)), PAIRS_ALL, torch.float32)


def test_negative_weights_and_sharp_logits_stay_exact() -> None:
    """The released code's cosine weights turn negative (PAPER section 5, defect 12); 100 is CLIP's largest scale."""
    arguments = case(_patterns(1), slice(0, 32), dtype=torch.float32)
    arguments["weights_BP"] = (arguments["weights_BP"].detach() - 1.0).requires_grad_()
    arguments["logit_scale"] = torch.tensor(100.0, requires_grad=True)
    _agree(arguments, PAIRS_ALL, torch.float32)


def test_logits_far_below_zero_stay_finite() -> None:
    """Lanes past the last product hold logit 0; against a log-sum-exp of -97 their probability would be infinite."""
    arguments = case(_patterns(1), slice(0, 32), dtype=torch.float32)
    keys_CMD = arguments["keys_CMD"].detach()
    keys_CMD = torch.nn.functional.normalize(keys_CMD + 20.0 * keys_CMD[:1, :1], dim=-1)
    arguments |= {"keys_CMD": keys_CMD.requires_grad_(), "features_BMD": (-keys_CMD).detach().requires_grad_()}
    arguments["logit_scale"] = torch.tensor(100.0, requires_grad=True)
    arguments = without_weights(arguments)
    loss_P2 = presence_contrastive(**arguments, pairs=PAIRS_ALL, path="triton")
    assert_close(loss_P2, presence_contrastive(**arguments, pairs=PAIRS_ALL, path="reference"), 1e-5)
    assert all(grad.isfinite().all() for grad in gradients(loss_P2, arguments).values())


@pytest.mark.parametrize("dtype", list(_TOLERANCE))
def test_a_pair_with_one_product_has_exactly_zero_gradients(dtype: torch.dtype) -> None:
    """p - 1 with a rounded log-sum-exp left 1e-6, of which Adam made full steps: test_training_triton.py tells."""
    arguments = lonely_case(dtype)
    loss_P2 = presence_contrastive(**arguments, pairs=PAIRS_ALL, path="triton")
    assert not loss_P2.any()
    assert all(not grad.any() for grad in gradients(loss_P2, arguments).values())


@pytest.mark.parametrize("kind", ["alike", "confident"])
def test_gradients_that_cancel_keep_their_digits(kind: str) -> None:
    """With p - 1 for the positive and a rounded log-sum-exp these were 3e-3 and 1e-2 off."""
    arguments = cancelling_case(kind, torch.float32)
    exact = {n: v.detach().double().requires_grad_() if v.is_floating_point() else v for n, v in arguments.items()}
    wanted = gradients(presence_contrastive(**exact, pairs=PAIRS_CHAIN, path="reference"), exact)
    got = gradients(presence_contrastive(**arguments, pairs=PAIRS_CHAIN, path="triton"), arguments)
    # Alike, a key's gradient depends on logits beyond their last float32 digit, whatever computes it.
    for name in ("features_BMD",) if kind == "alike" else ("features_BMD", "keys_CMD"):
        assert_close({name: got[name]}, {name: wanted[name]}, 3e-4)


@pytest.mark.parametrize("num_products", [0, 3])
def test_nothing_present_gives_zero_loss_and_zero_gradients(num_products: int) -> None:
    arguments = case(torch.zeros(num_products, 5, dtype=torch.bool), slice(None), dtype=torch.float32)
    loss_P2 = presence_contrastive(**arguments, pairs=PAIRS_ALL, path="triton")
    assert torch.equal(loss_P2, torch.zeros(10, 2))
    for name, grad in gradients(loss_P2, arguments).items():
        assert grad is not None, name
        assert not grad.any(), name


def test_no_local_products_against_a_full_batch() -> None:
    arguments = case(torch.ones(6, 5, dtype=torch.bool), slice(0, 0), dtype=torch.float32)
    loss_P2 = presence_contrastive(**arguments, pairs=PAIRS_ALL, path="triton")
    assert not loss_P2.any()
    assert all(grad is not None and not grad.any() for grad in gradients(loss_P2, arguments).values())


def test_features_and_weights_of_absent_modalities_are_never_read() -> None:
    arguments = case(_patterns(2), slice(0, 64), dtype=torch.float32)
    for features, mask in (("features_BMD", "present_BM"), ("keys_CMD", "keys_present_CM")):
        poisoned = arguments[features].detach().clone()
        poisoned[~arguments[mask]] = torch.nan
        arguments[features] = poisoned.requires_grad_()
    for weights in ("weights_BP", "loss_weights_BP"):
        poisoned = arguments[weights].detach().clone()
        for p, (i, j) in enumerate(PAIRS_ALL):
            poisoned[~(arguments["present_BM"][:, i] & arguments["present_BM"][:, j]), p] = torch.nan
        arguments[weights] = poisoned.requires_grad_()
    loss_P2 = presence_contrastive(**arguments, pairs=PAIRS_ALL, path="triton")
    assert loss_P2.isfinite().all()
    assert all(grad.isfinite().all() for grad in gradients(loss_P2, arguments).values())


def test_gradients_are_bitwise_the_same_twice_and_under_checkpointing() -> None:
    arguments = case(_patterns(2), slice(0, 64), num_pairs=4, dtype=torch.float32)

    def run() -> torch.Tensor:
        return presence_contrastive(**arguments, pairs=PAIRS_CHAIN, path="triton")

    first, second = gradients(run(), arguments), gradients(run(), arguments)
    checkpointed = gradients(torch.utils.checkpoint.checkpoint(run, use_reentrant=False), arguments)
    for name, grad in first.items():
        assert torch.equal(grad, second[name]), name
        assert torch.equal(grad, checkpointed[name]), name


def test_operator_passes_opcheck() -> None:
    torch.use_deterministic_algorithms(False)
    arguments = case(_patterns(1), slice(0, 9), num_pairs=1, dtype=torch.float32)
    names = ("features_BMD", "keys_CMD", "present_BM", "keys_present_CM", "positive_B")
    factor_P2B = torch.full((1, 2, 9), 3.0, requires_grad=True)
    positional = (*(arguments[name] for name in names), [0, 1], factor_P2B)
    torch.library.opcheck(contrastive_forward, positional)
    saved = [value.detach() for value in contrastive_forward(*positional)]
    torch.library.opcheck(
        contrastive_backward,
        (torch.ones_like(saved[0]), *positional, *saved[1:]),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_compilation_gives_the_same_gradients() -> None:
    arguments = case(_patterns(1), slice(0, 9), num_pairs=4, dtype=torch.float32)

    def run(features_BMD: torch.Tensor) -> torch.Tensor:
        rest = {name: value for name, value in arguments.items() if name != "features_BMD"}
        return presence_contrastive(features_BMD * 2, **rest, pairs=PAIRS_CHAIN, path="triton")

    compiled = torch.compile(run, backend="aot_eager")
    want = gradients(run(arguments["features_BMD"]), arguments)
    for name, grad in gradients(compiled(arguments["features_BMD"]), arguments).items():
        assert torch.equal(grad, want[name]), name


def test_allocations_grow_linearly_with_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted from what the op allocates, launches left out: nothing in it depends on the values."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from m5ds.kernels.presence_contrastive import triton_path

    class Largest(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else (out,):
                if isinstance(value, torch.Tensor):
                    Largest.total += value.numel() * value.element_size()
            return out

    class NoLaunch:
        def __getitem__(self, grid):
            return lambda *args, **kwargs: None

    for name in ("contrastive_fwd_kernel", "contrastive_bwd_features_kernel", "contrastive_bwd_keys_kernel"):
        monkeypatch.setattr(triton_path.kernels, name, NoLaunch())
    totals = []
    for num_products in (1024, 16384):
        arguments = case(torch.ones(num_products, 5, dtype=torch.bool), slice(0, None), width=8, dtype=torch.float32)
        positional = [arguments[n] for n in ("features_BMD", "keys_CMD", "present_BM", "keys_present_CM", "positive_B")]
        pairs = [m for pair in PAIRS_ALL for m in pair]
        factor_P2B = torch.ones(10, 2, num_products)
        Largest.total = 0
        with torch.no_grad(), Largest():
            loss, lse, rest = triton_path.contrastive_forward(*positional, pairs, factor_P2B)
            triton_path.contrastive_backward(torch.ones_like(loss), *positional, pairs, factor_P2B, lse, rest)
        totals.append(Largest.total)
    assert totals[1] <= 16 * totals[0]


def test_every_launch_is_among_the_compiled_configurations() -> None:
    arguments = case(_patterns(1), slice(0, 8), dtype=torch.float32)
    gradients(presence_contrastive(**arguments, pairs=PAIRS_ALL, path="triton"), arguments)
    assert {kernel for kernel, _ in LAUNCHED} == {"fwd", "bwd_features", "bwd_keys"}
    assert {(c.kernel, c.variant) for c in configurations("sm_90")} >= LAUNCHED
