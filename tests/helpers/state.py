"""What a model is, to see later whether anything has changed."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def state_of(model: nn.Module) -> State:
    """Return copies of all parameters and buffers."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Tell whether two states are the same bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def assert_state(model: nn.Module, expected: Mapping[str, Tensor]) -> None:
    """Check that a model holds the very numbers of a state."""
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


def snapshot(model: nn.Module) -> tuple[dict[str, int], dict[str, tuple[int, Tensor]]]:
    """Return which objects stand where, and what they hold."""
    modules = {name: id(module) for name, module in model.named_modules(remove_duplicate=False)}
    tensors = {name: (id(value), value.detach().clone()) for name, value in model.state_dict(keep_vars=True).items()}
    return modules, tensors


def assert_unchanged(model: nn.Module, before: tuple[dict[str, int], dict[str, tuple[int, Tensor]]]) -> None:
    """Check that the same objects stand in the same places with the same numbers."""
    modules, tensors = snapshot(model)
    assert modules == before[0]
    assert tensors.keys() == before[1].keys()
    for name, (identity, value) in tensors.items():
        assert identity == before[1][name][0], f"{name} is another tensor"
        if not value.is_meta:
            torch.testing.assert_close(value, before[1][name][1], rtol=0, atol=0, equal_nan=True, msg=name)


def hooks_of(model: nn.Module) -> int:
    """Return how many forward hooks hang on the modules of a model."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def equal(ones: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Tell whether tensors are the same bit for bit, one by one."""
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))
