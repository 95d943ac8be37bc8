"""The error of outputs, told by one half of a moment, against all of it."""

import pytest
import torch

from lightning_mpq.quantizers.output_error import output_error


@pytest.mark.parametrize("columns", [5, 256, 300, 700])
def test_the_error_of_outputs_is_that_of_the_whole_moment(columns):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 40, columns, dtype=torch.float64, generator=generator)
    errors = torch.randn(2, 3, columns, dtype=torch.float64, generator=generator)
    moment = inputs.mT @ inputs / 40
    torch.testing.assert_close(output_error(errors, moment), torch.einsum("gni,gij,gnj->gn", errors, moment, errors))
