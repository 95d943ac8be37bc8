"""A report goes wherever it can; what does not take it costs no model."""

import pytest
from helpers.trainer import make_callback, trained
from lightning.pytorch.loggers import CSVLogger

from lightning_mpq.modules import packed_layers


class Unreachable(CSVLogger):
    """Takes what training logs, and not a report."""

    def log_metrics(self, metrics, step=None):
        if any(name.startswith("mpq/") for name in metrics):
            raise ConnectionError("the server is gone")
        super().log_metrics(metrics, step)


@pytest.mark.filterwarnings("ignore")
def test_a_folder_in_the_place_of_the_report_is_warned_of(tmp_path):
    (tmp_path / "report.json").mkdir()
    mixed = make_callback()
    with pytest.warns(UserWarning, match="report could not be written to .*report.json .*`report`"):
        _, module = trained(tmp_path, mixed)
    assert packed_layers(module)
    assert mixed.report["chosen"].metrics
    assert mixed.policy is not None
    assert mixed.report.save(tmp_path / "elsewhere.json").is_file()


@pytest.mark.filterwarnings("ignore")
def test_a_logger_that_does_not_take_the_report_is_warned_of(tmp_path):
    mixed = make_callback()
    with pytest.warns(UserWarning, match="could not be logged by Unreachable .ConnectionError: the server is gone"):
        _, module = trained(tmp_path, mixed, logger=Unreachable(tmp_path))
    assert packed_layers(module)
    assert mixed.report is not None
    assert list(tmp_path.rglob("report.json"))
