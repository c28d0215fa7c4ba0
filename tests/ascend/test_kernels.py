"""No operation of any graph is compiled on line: each has a kernel of CANN's operator library, or needs none."""

import pytest
from ascend import standin
from ascend.kernels import chosen, others

FEW, ALL = ("class fp16 flash",), ()
STEP = ("train fp16", "train velocity", "train distilled", "guided fp16 velocity")


@pytest.mark.parametrize(
    "names",
    [FEW, pytest.param(STEP, marks=pytest.mark.slow), pytest.param(ALL, marks=[pytest.mark.slow, pytest.mark.long])],
)
def test_every_operation_has_a_kernel(names):
    found = chosen(*names, environment=standin.environment("plan"))
    assert all(found.values()) and others(found) == {}
