"""What the documentation says of packed checkpoints where neither callback nor mixin is at hand."""

import pytest
import torch
from helpers.trainer import SmallClassifier, SmallData, make_trainer
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.modules import packed_layers


class Mixed(mpq.PackedCheckpoints, SmallClassifier):
    pass


POLICY = mpq.BitPolicy({"network.8": mpq.WeightScheme(3)})


def checkpoint_of(folder, module, weights_only):
    trainer = make_trainer(folder, max_epochs=0)
    trainer.fit(mpq.quantize(module, POLICY, repair=mpq.RepairOptions(batchnorm=False)), SmallData())
    trainer.save_checkpoint(folder / "packed.ckpt", weights_only=weights_only)
    return folder / "packed.ckpt"


@pytest.mark.parametrize("weights_only", [False, True])
def test_the_mixin_writes_what_a_file_needs_of_weights_alone_too(tmp_path, weights_only):
    module = Mixed()
    path = checkpoint_of(tmp_path, module, weights_only)
    loaded = mpq.load(path, SmallClassifier())
    assert torch.equal(loaded.network[8].weight, module.network[8].weight)
    make_trainer(tmp_path).test(loaded, SmallData(), verbose=False)  # no code of ours has a say there


def test_torch_names_the_keys_that_the_documentation_names(tmp_path):
    path = checkpoint_of(tmp_path, Mixed(), True)
    keys = r'Missing[^\n]*"network.8.weight"[^\n]*\n[^\n]*"network.8.packed_codes", "network.8.scale"'
    with pytest.raises(RuntimeError, match=keys):
        make_trainer(tmp_path).test(SmallClassifier(), SmallData(), ckpt_path=path, verbose=False)


def test_weights_alone_without_a_policy_are_refused_with_the_way_out(tmp_path):
    module = SmallClassifier()
    path = checkpoint_of(tmp_path, module, True)
    given: nn.Module = SmallClassifier()
    with pytest.raises(mpq.CorruptModelError, match="without save_weights_only, give the module the mixin"):
        mpq.load(path, given)
    assert not packed_layers(given)
