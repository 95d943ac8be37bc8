"""The callback in a fit of two processes whose parameters FSDP2 cuts, and strategies that are refused."""

import json

import pytest
from helpers.processes import run_two_processes
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from lightning_mpq.trainer.strategies import refuse_unsupported

pytestmark = pytest.mark.filterwarnings("ignore")


def test_fsdp2_ends_with_the_packed_model_of_a_single_process(tmp_path):
    run_two_processes("fsdp_fit.py", tmp_path, "two")
    first, second = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert first == second
    assert first["cut"]  # when the fit ended, before the callback worked
    assert first["types"] == ["Parameter"]
    assert first["packed"] == ["blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2", "embedding", "head"]
    assert (tmp_path / "last.ckpt").exists()
    run_two_processes("fsdp_fit.py", tmp_path, "one")  # which stays alone
    alone = json.loads((tmp_path / "one.json").read_text())
    for key in ("policy", "digest", "packed"):
        assert alone[key] == first[key], key


@pytest.mark.parametrize("strategy", [FSDPStrategy(), ModelParallelStrategy(2, 1)])
def test_fine_tuning_of_cut_weights_is_refused(strategy):
    refuse_unsupported(strategy)
    with pytest.raises(ValueError, match=r"fine-tunes whole weights.*cuts them. Leave finetune_epochs"):
        refuse_unsupported(strategy, finetunes=True)


def test_tensor_parallelism_is_refused():
    with pytest.raises(ValueError, match=r"not what tensor parallelism did.*tensor_parallel_size=2.*quantize_trained"):
        refuse_unsupported(ModelParallelStrategy(1, 2))


def test_deepspeed_is_refused():
    strategy = object.__new__(DeepSpeedStrategy)  # which asks for the package
    with pytest.raises(ValueError, match=r"under FSDP where the whole model fits.*got DeepSpeedStrategy.*'fsdp', or"):
        refuse_unsupported(strategy)
