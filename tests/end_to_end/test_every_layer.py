"""Attention, recurrent and registered layers, end to end: found, rounded, measured, decided, packed, saved, loaded."""

import copy
import warnings

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import lightning_mpq as mpq
from lightning_mpq.modules import packed_layers


class Scaled(nn.Module):
    """A layer of the user's own, linear in its weight, [in, out]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x @ self.weight)


mpq.register_layer(Scaled, output_dim=1)


class Net(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.recurrent = nn.LSTM(8, 6, bidirectional=True, batch_first=True)
        self.own = Scaled(12, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = self.decoder(x[:, :2], self.encoder(x))
        return self.head(self.own(self.recurrent(x)[0].mean(1)).tanh())

    def training_step(self, batch: list[Tensor]) -> Tensor:
        loss = cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log("val_loss", cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def data(samples: int = 64) -> TensorDataset:
    ids = torch.randint(0, 9, (samples, 4), generator=torch.Generator().manual_seed(0))
    return TensorDataset(ids, ids.sum(1) % 3)


@torch.no_grad()
def test_from_groups_to_a_loaded_model(tmp_path):
    torch.manual_seed(0)
    model, batches = Net().eval(), data().tensors[0].split(32)
    groups = mpq.find_groups(model)
    assert not groups.left_in_float
    offered = mpq.make_candidates(groups, [2, 4], grids=["symmetric"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="(What these layers do|The inputs of these weights).*: own\\. ")
        warnings.filterwarnings("ignore", message=".* layers were seen with fewer than")
        warnings.filterwarnings("ignore", message=".*(deprecated|TF32|performance drop|nested tensor).*")
        rounded = mpq.round_candidates(model, batches, groups, offered)
        taylor = mpq.profile(model, batches, groups=groups, rounded=rounded, likelihood=mpq.Categorical())
    allocation = mpq.allocate(taylor, mpq.Budget(average_bits=4.5))
    float_copy = copy.deepcopy(model)
    mpq.quantize(model, allocation.policy, list(batches), rounded=rounded)
    layers = packed_layers(model)
    assert set(layers) == {layer for group in groups for layer in group.layers}
    mpq.save(model, tmp_path)
    loaded = mpq.load(tmp_path, copy.deepcopy(float_copy))
    torch.testing.assert_close(loaded(batches[0]), model(batches[0]), rtol=1e-6, atol=1e-6)
    meta = Net().to("meta").eval()
    torch.testing.assert_close(mpq.load(tmp_path, meta)(batches[0]), model(batches[0]), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(model(batches[0]), float_copy(batches[0]), atol=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_in_the_trainer_and_out_of_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    model = Net()
    callback = mpq.MixedPrecisionQuantization(
        budget=mpq.Budget(average_bits=6.5), candidates=mpq.CandidateOptions(bits=[3, 6])
    )
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        callbacks=[callback],
    )
    trainer.fit(model, DataLoader(data(), 32), DataLoader(data(32), 32))
    assert {"encoder.self_attn.in_proj_weight", "recurrent.weight_hh_l0_reverse", "own"} <= set(packed_layers(model))
    trainer.save_checkpoint(tmp_path / "packed.ckpt")
    twin = mpq.load(tmp_path / "packed.ckpt", Net()).eval()
    ids = data().tensors[0]
    with torch.no_grad():
        torch.testing.assert_close(twin(ids), model.eval()(ids), rtol=1e-6, atol=1e-6)
