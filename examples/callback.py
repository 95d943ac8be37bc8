"""One callback: the fit ends with a packed model and a comparison with the float one."""

import lightning as L
from digits import DigitsData, DigitsNet

import lightning_mpq as mpq


def main() -> None:
    """Train, quantize, save, load."""
    L.seed_everything(0)
    model, data = DigitsNet(), DigitsData()
    mixed = mpq.MixedPrecisionQuantization(mpq.Budget(average_bits=3.0), report_path=None)
    trainer = L.Trainer(max_epochs=5, callbacks=[mixed], logger=False, enable_checkpointing=False)
    trainer.fit(model, data)  # prints the comparison at its end

    assert mixed.allocation is not None
    print(mixed.allocation)
    for group, bits in mixed.allocation.policy.bits().items():
        print(f"{group}: {bits} bits")

    folder = mpq.save(model, "packed")
    print({path.name: path.stat().st_size for path in folder.iterdir()})
    loaded = mpq.load(folder, DigitsNet())
    L.Trainer(logger=False, enable_checkpointing=False).validate(loaded, data)


if __name__ == "__main__":
    main()
