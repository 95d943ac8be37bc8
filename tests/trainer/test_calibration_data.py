"""Calibration sees the batches as the module is given them, everywhere, and takes none away from training."""

import copy

import lightning as L
import pytest
import torch
from helpers.trainer import SmallClassifier, SmallData, make_callback, make_trainer
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_mpq.modules import packed_layers
from lightning_mpq.trainer.calibration_data import apart, batches_outside_of_fit, share_of_batches

pytestmark = pytest.mark.filterwarnings("ignore")


class Raw(SmallData):
    """Data whose three hooks bring them to what the module takes, and note who calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = set()

    def _loader(self, shuffle=False):
        items = [{"x": 100 * image, "y": label} for image, label in zip(self.images, self.labels, strict=True)]
        return DataLoader(items, batch_size=16)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.stages.add((self.trainer.training, type(self.trainer.lightning_module).__name__))
        return batch["x"], batch["y"]

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return tuple(value.to(device) for value in batch)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] / 100, batch[1]


class Spy(SmallClassifier):
    """Refuses what no hook has treated."""

    def forward(self, images):
        assert images.abs().max() < 20
        return super().forward(images)


class HooksOfItsOwn(Spy):
    on_before_batch_transfer = Raw.on_before_batch_transfer
    transfer_batch_to_device = Raw.transfer_batch_to_device
    on_after_batch_transfer = Raw.on_after_batch_transfer
    stages: set = set()


class WithoutHooks(SmallData):
    _loader = Raw._loader


JOBS = {"at the end of a fit": {}, "fine-tuned": {"finetune_epochs": 1}, "fine-tuned at once": {"quantize_at": 0}}


@pytest.mark.parametrize(("module", "data"), [(Spy, Raw), (HooksOfItsOwn, WithoutHooks)])
@pytest.mark.parametrize("settings", JOBS.values(), ids=list(JOBS))
def test_batches_of_a_fit_pass_through_all_hooks(tmp_path, module, data, settings):
    model = module()
    make_trainer(tmp_path, make_callback(compare=False, **settings), max_epochs=1).fit(model, data())
    assert packed_layers(model)


@pytest.mark.parametrize(("module", "data"), [(Spy, Raw), (HooksOfItsOwn, WithoutHooks)])
def test_so_do_those_of_a_trained_model_without_a_trace(tmp_path, module, data):
    model, source, trainer = module(), data(), make_trainer(tmp_path)
    (model if module is HooksOfItsOwn else source).stages.clear()
    batches = batches_outside_of_fit(trainer, model, source, 2, seed=0)
    assert [batch[0].shape for batch in batches] == [torch.Size([16, 1, 6, 6])] * 2
    torch.testing.assert_close(torch.cat([batch[0] for batch in batches]), source.images[:32])
    assert (model if module is HooksOfItsOwn else source).stages == {(True, module.__name__)}
    assert model._trainer is None
    assert source.trainer is None
    assert not trainer.training
    make_callback().quantize_trained(trainer, model, source)
    assert packed_layers(model)


def test_a_trained_model_in_double_precision_is_given_double_batches(tmp_path):
    trainer = make_trainer(tmp_path, precision="64-true")
    assert (
        batches_outside_of_fit(trainer, SmallClassifier().double(), SmallData(), 1, seed=0)[0][0].dtype == torch.float64
    )


def test_batches_without_samples_are_not_counted():
    batches = [(torch.zeros(size, 2), torch.zeros(size)) for size in (0, 3, 0, 4, 5)]
    found = share_of_batches([None, *batches], 2)
    assert [len(batch[0]) for batch in found] == [3, 4]


class Rewinding:
    """A loader that iterates itself, as those of some other libraries do."""

    def __init__(self, batches):
        self.batches, self.position = batches, 0

    def __iter__(self):
        self.position = 0
        return self

    def __next__(self):
        if self.position == len(self.batches):
            raise StopIteration
        self.position += 1
        return self.batches[self.position - 1]

    def __len__(self):
        return len(self.batches)


class Stream(IterableDataset):
    """A dataset that is its own iterator."""

    def __init__(self, count):
        self.left = self.count = count

    def __iter__(self):
        return self

    def __next__(self):
        if not self.left:
            raise StopIteration
        self.left -= 1
        return torch.tensor(self.count - self.left - 1)


def numbers(count: int, **settings) -> DataLoader:
    return DataLoader(TensorDataset(torch.arange(count)), batch_size=1, **settings)


@pytest.mark.parametrize(
    "loader",
    [
        numbers(4),
        numbers(4, num_workers=1, persistent_workers=True),
        DataLoader(Stream(4), batch_size=1),
        Rewinding([torch.tensor([number]) for number in range(4)]),
    ],
    ids=["plain", "persistent workers", "stream", "its own iterator"],
)
def test_who_is_in_the_middle_of_a_loader_goes_on_there(loader):
    def first(batch):
        return int(batch[0])

    training = iter(loader)
    begun = first(next(training))
    own = [first(batch) for batch in apart(loader)]
    assert (begun, own) in [(0, [0, 1, 2, 3]), (0, [1, 2, 3])]  # a stream goes on where it is
    assert [first(next(training)) for _ in range(3)] == [1, 2, 3]


class Steps(L.Callback):
    def __init__(self):
        self.count = 0

    def on_train_batch_end(self, *args):
        self.count += 1


def test_fine_tuning_at_once_has_all_its_batches(tmp_path):
    data = SmallData(48)
    batches = list(DataLoader(TensorDataset(data.images, data.labels), batch_size=16))
    data.train_dataloader = lambda: Rewinding(copy.copy(batches))
    steps = Steps()
    callback = make_callback(compare=False, quantize_at=0)
    make_trainer(tmp_path, callback, steps, max_epochs=1).fit(SmallClassifier(), data)
    assert steps.count == 3


class OnlyToPredict(L.LightningDataModule):
    def predict_dataloader(self):
        return SmallData().val_dataloader()


@pytest.mark.parametrize(("data", "name"), [(OnlyToPredict(), "OnlyToPredict"), (None, "SmallClassifier")])
def test_data_without_training_batches_are_told_what_to_define(tmp_path, data, name):
    message = rf"Calibration needs training batches, and {name} has no train_dataloader\. .*calibration_dataloader\(\)"
    with pytest.raises(ValueError, match=message):
        make_callback().quantize_trained(make_trainer(tmp_path), SmallClassifier(), data)


def test_a_compiled_module_is_quantized_as_itself(tmp_path):
    module = SmallClassifier()
    make_callback(compare=False).quantize_trained(
        make_trainer(tmp_path), torch.compile(module, backend="eager"), SmallData()
    )
    assert packed_layers(module)
