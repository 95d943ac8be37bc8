"""Fixtures of packed layers and kernels."""

import pytest
from helpers.kernels import RecordingKernel

from lightning_mpq.modules.kernels import KERNELS, register_kernel


@pytest.fixture
def recording():
    """Offer the recording kernel to ``"auto"`` before all others."""
    before = dict(KERNELS)
    yield register_kernel(RecordingKernel(), first=True)
    KERNELS.clear()
    KERNELS.update(before)
