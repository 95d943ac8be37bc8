"""What is left out of a run: advertisements and the deprecations of other libraries; everything else is said."""

import logging
import warnings

import pytest
from lightning.pytorch.utilities import rank_zero_info

from lightning_mpq.cli.other_libraries import less_said


def test_advertisements_and_their_deprecations_are_left_out(caplog):
    with caplog.at_level(logging.INFO), less_said(), warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        rank_zero_info("💡 Tip: buy this")
        rank_zero_info("GPU available")
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use something else", FutureWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="ours"):
            warnings.warn("ours", UserWarning, stacklevel=1)
    assert caplog.messages == ["GPU available"]


def test_afterwards_everything_is_said(caplog):
    with less_said():
        pass
    with caplog.at_level(logging.INFO):
        rank_zero_info("💡 Tip: buy this")
    assert caplog.messages == ["💡 Tip: buy this"]
    with pytest.warns(FutureWarning):
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated", FutureWarning, stacklevel=1)
