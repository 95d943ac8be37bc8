import sys
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Generator

from lightning_mpq.demo.digits import Digits
from lightning_mpq.demo.images import random_crop, random_flip

COUNT, HEIGHT, WIDTH = 40, 5, 7


def images() -> torch.Tensor:
    return torch.randint(1, 256, (COUNT, 2, HEIGHT, WIDTH), generator=Generator().manual_seed(1)).to(torch.uint8)


def test_random_crop_is_one_of_the_shifts_of_each_image() -> None:
    """Oracle: every shift of an image by hand, in numpy."""
    before, after = images(), random_crop(images(), Generator().manual_seed(0), padding=2)
    assert after.shape == before.shape
    assert after.dtype == before.dtype
    shifts = Counter()
    for old, new in zip(before.numpy(), after.numpy(), strict=True):
        padded = np.pad(old, ((0, 0), (2, 2), (2, 2)))
        found = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if np.array_equal(padded[:, top : top + HEIGHT, left : left + WIDTH], new)
        ]
        assert len(found) == 1
        shifts.update(found)
    assert {top for top, _ in shifts} == {left for _, left in shifts} == set(range(5))


def test_random_flip_mirrors_about_half() -> None:
    before, after = images(), random_flip(images(), Generator().manual_seed(0))
    same = (after == before).flatten(1).all(1)
    mirrored = (after == torch.from_numpy(before.numpy()[..., ::-1].copy())).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 0.25 < mirrored.float().mean() < 0.75


@pytest.fixture
def digits() -> Digits:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    module = Digits(batch_size=64)
    module.setup("fit")
    return module


def test_digits_are_split_without_overlap_or_loss(digits: Digits) -> None:
    splits = digits._splits
    assert {name: len(labels) for name, (_, labels) in splits.items()} == {"train": 1200, "val": 300, "test": 297}
    together = Counter(image.numpy().tobytes() for images, _ in splits.values() for image in images)
    from sklearn.datasets import load_digits

    assert together == Counter(image.astype(np.uint8).tobytes() for image in load_digits().images)


def test_batches_are_float_images_and_integer_labels(digits: Digits) -> None:
    for loader in (digits.train_dataloader(), digits.val_dataloader(), digits.test_dataloader()):
        batch, labels = next(iter(loader))
        assert batch.dtype == torch.float32
        assert batch.shape[1:] == (1, 8, 8)
        assert labels.dtype == torch.int64
        assert len(labels) == len(batch)


def test_training_pixels_are_normalised(digits: Digits) -> None:
    pixels = torch.cat([batch for batch, _ in digits.calibration_dataloader()])
    assert abs(float(pixels.mean())) < 0.05
    assert abs(float(pixels.std()) - 1) < 0.05


def test_calibration_batches_come_in_a_fixed_order_and_training_batches_do_not(digits: Digits) -> None:
    first = torch.cat([labels for _, labels in digits.calibration_dataloader()])
    assert torch.equal(first, torch.cat([labels for _, labels in digits.calibration_dataloader()]))
    assert torch.equal(first, digits._splits["train"][1])
    loader = digits.train_dataloader()
    epochs = [torch.cat([labels for _, labels in loader]) for _ in range(2)]
    assert not torch.equal(*epochs)
    assert torch.equal(epochs[0].sort().values, first.sort().values)
    again = digits.train_dataloader()
    assert torch.equal(epochs[0], torch.cat([labels for _, labels in again]))


def test_seed_decides_the_split_and_the_fingerprint(digits: Digits) -> None:
    same, other = Digits(seed=0), Digits(seed=1)
    assert same.fingerprint() == digits.fingerprint() != other.fingerprint()


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning_mpq\[demo\]'"):
        Digits().setup("fit")
