"""Triton turns an integer argument that equals 1 into a constant of the machine code, so every kernel must compile so.

A launch with seed 1 once failed only where there is a GPU: the constant had no method `to`. Ahead-of-time compiling saw
the argument as an integer, and the interpreter specializes nothing.
"""

import dataclasses

import pytest

from m5ds.kernels.verify import aot

KERNELS = {
    (op, configuration.kernel): configuration
    for op in aot.ops()
    for configuration in reversed(aot.shipped(op, "sm_90"))
}
"""One configuration of every kernel that ships."""


def specialized(configuration):
    """The configuration as a launch compiles it whose plain integer arguments are all 1."""
    ones = {
        parameter.name: 1
        for parameter in configuration.function.params
        if configuration.signature.get(parameter.name) in ("i32", "i64")
        and not parameter.do_not_specialize
        and not parameter.annotation_type
    }
    return dataclasses.replace(
        configuration,
        signature={name: kind for name, kind in configuration.signature.items() if name not in ones},
        constants={**configuration.constants, **ones},
        divisible=configuration.divisible - ones.keys(),
    )


@pytest.mark.parametrize("name", KERNELS, ids="-".join)
def test_kernel_compiles_where_integers_are_one(name):
    report = aot.compile_configuration(specialized(KERNELS[name]), "sm_90")
    assert not report.error
