import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.idx_files import idx_bytes, write_fashion_mnist

from lightning_mpq.demo.fashion_mnist import FashionMNIST

REAL_FILES = os.environ.get("LIGHTNING_MPQ_FASHION_MNIST")


@pytest.mark.parametrize("zipped", [True, False])
def test_splits_come_from_the_right_files(tmp_path: Path, zipped: bool) -> None:
    arrays = write_fashion_mnist(tmp_path, zipped=zipped)
    module = FashionMNIST(tmp_path)
    module.setup("fit")
    splits = module._splits
    assert {name: len(labels) for name, (_, labels) in splits.items()} == {"train": 200, "val": 5000, "test": 60}
    assert np.array_equal(splits["test"][0].numpy(), arrays["t10k-images-idx3-ubyte"])
    assert np.array_equal(splits["test"][1].numpy(), arrays["t10k-labels-idx1-ubyte"])
    labels_of = {
        image.astype(np.uint8).tobytes(): label
        for image, label in zip(arrays["train-images-idx3-ubyte"], arrays["train-labels-idx1-ubyte"], strict=True)
    }
    seen = {}
    for name in ("train", "val"):
        for image, label in zip(*splits[name], strict=True):
            seen[image.numpy().tobytes()] = int(label)
    assert seen == labels_of


@pytest.mark.parametrize(
    ("flip", "shift", "least", "most"), [(False, 0, 200, 200), (True, 0, 70, 130), (False, 2, 0, 30), (True, 2, 0, 30)]
)
def test_only_training_batches_are_augmented(tmp_path: Path, flip: bool, shift: int, least: int, most: int) -> None:
    write_fashion_mnist(tmp_path)
    module = FashionMNIST(tmp_path, batch_size=200, flip=flip, shift=shift)
    module.setup("fit")
    plain, _ = next(iter(module.calibration_dataloader()))
    expected = (module._splits["train"][0][:, None].float() - module.mean) / module.std
    torch.testing.assert_close(plain, expected)
    known = {image.numpy().tobytes() for image in plain}
    augmented, _ = next(iter(module.train_dataloader()))
    again, _ = next(iter(module.train_dataloader()))
    assert torch.equal(augmented, again)
    assert least <= sum(image.numpy().tobytes() in known for image in augmented) <= most


@pytest.mark.parametrize("name", ["t10k-labels-idx1-ubyte", "train-images-idx3-ubyte"])
def test_missing_file_is_named_with_where_to_get_it(tmp_path: Path, name: str) -> None:
    write_fashion_mnist(tmp_path)
    (tmp_path / f"{name}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}.gz is missing .* dataset-fashion-mnist .* publisher"):
        FashionMNIST(tmp_path).setup("fit")


def test_images_and_labels_that_do_not_match_are_refused(tmp_path: Path) -> None:
    write_fashion_mnist(tmp_path, zipped=False)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(59)))
    with pytest.raises(ValueError, match=r"\[60, 28, 28\] and t10k-labels-idx1-ubyte \[59\]"):
        FashionMNIST(tmp_path).setup("fit")


@pytest.mark.skipif(REAL_FILES is None, reason="LIGHTNING_MPQ_FASHION_MNIST does not name a folder with the files")
def test_real_files_have_the_published_sizes_and_statistics() -> None:
    assert REAL_FILES is not None
    module = FashionMNIST(REAL_FILES)
    module.setup("fit")
    sizes = {name: tuple(images.shape) for name, (images, _) in module._splits.items()}
    assert sizes == {"train": (55_000, 28, 28), "val": (5_000, 28, 28), "test": (10_000, 28, 28)}
    pixels = module._splits["train"][0].float()
    assert abs(float(pixels.mean()) - module.mean) < 0.2
    assert abs(float(pixels.std()) - module.std) < 0.2
    assert module._splits["test"][1].bincount().tolist() == [1000] * 10
