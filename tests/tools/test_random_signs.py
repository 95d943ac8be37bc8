"""Random signs: the same as of PyTorch's whole numbers, in an eighth of their memory."""

import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_mpq.tools.random_signs import random_signs


def test_signs_are_those_of_the_seed_whatever_they_are_kept_in():
    numbers = torch.randint(0, 2, (50, 7), generator=Generator().manual_seed(5))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        found = random_signs((50, 7), Generator().manual_seed(5), dtype)
        assert found.dtype == dtype
        assert torch.equal(found, (2 * numbers - 1).to(dtype))


def test_nothing_wider_than_the_signs_is_made():
    widths: set[int] = set()

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                widths.add(result.element_size())
            return result

    with Watching():
        random_signs((4, 4), Generator(), torch.bfloat16)
    assert widths == {1, 2}
