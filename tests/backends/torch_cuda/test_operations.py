"""Which implementation runs: twins on a CPU, kernels on a GPU, and twins for kernels that do not compile."""

from dataclasses import fields, replace

import pytest
import torch
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources

from radixmesh.backends.torch_cuda.operations import TWINS, Operations, _WithTwin, operations_for

NAMES = [each.name for each in fields(Operations)]
GPU = torch.device("cuda")  # chosen for, never touched


def test_a_cpu_runs_twins() -> None:
    assert operations_for(torch.device("cpu"), strict=True) is TWINS
    assert TWINS.twins == tuple(NAMES)


@pytest.mark.parametrize("strict", [True, False])
def test_a_gpu_runs_kernels_of_the_same_names(strict: bool) -> None:
    chosen = operations_for(GPU, strict)
    assert chosen.twins == ()
    if strict:
        assert {getattr(chosen, name).__module__.rpartition(".")[2] for name in NAMES} == {"triton"}
        assert [getattr(chosen, name).__name__ for name in NAMES] == NAMES


@pytest.mark.parametrize("error", [CompilationError(None, None), OutOfResources(300, 227, "shared memory")])
def test_a_kernel_that_does_not_compile_is_replaced_and_named(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def kernel(*args: object) -> None:
        calls.append(args)
        raise error

    chosen = operations_for(GPU, strict=False)
    wrapper = _WithTwin(kernel, TWINS.greedy)
    chosen = replace(chosen, greedy=wrapper)
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    for _ in range(2):
        assert chosen.greedy(logits).tolist() == [1]
    assert len(calls) == 1  # not tried again
    assert chosen.twins == ("greedy",)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "kernel greedy does not compile" in caplog.text


def test_other_errors_of_a_kernel_are_raised() -> None:
    def kernel(*args: object) -> None:
        raise ValueError("a bug")

    wrapper = _WithTwin(kernel, TWINS.greedy)
    with pytest.raises(ValueError, match="a bug"):
        wrapper(torch.zeros(1, 2))
