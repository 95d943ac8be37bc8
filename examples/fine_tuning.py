"""The fit goes on with quantized weights: five epochs in float, then one at an average of 2.25 bits."""

import lightning as L
from digits import DigitsData, DigitsNet

import lightning_mpq as mpq


def main() -> None:
    """Train, quantize, train on, pack."""
    L.seed_everything(0)
    model, data = DigitsNet(), DigitsData()
    mixed = mpq.MixedPrecisionQuantization(
        mpq.Budget(average_bits=2.25),
        finetune_epochs=1,
        finetune=mpq.FinetuneOptions(distill=1.0, temperature=2.0),
        report_path=None,
    )
    L.Trainer(max_epochs=5, callbacks=[mixed], logger=False, enable_checkpointing=False).fit(model, data)

    report = mixed.report
    assert report is not None
    assert report.finetuning is not None
    before, after = report.finetuning.loss_before, report.finetuning.loss_after
    print(f"training loss {before:.4f} before fine-tuning, {after:.4f} after")
    for row in report.models:
        print(f"{row.name}: {row.stored_bytes:,} bytes, accuracy {row.metrics['val_accuracy']:.3f}")


if __name__ == "__main__":
    main()
