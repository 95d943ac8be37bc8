"""A Hydra application with a module of its own, and a sweep over budgets.

python examples/sweep.py -m callbacks.mpq.budget.average_bits=2.5,3,4
"""

import hydra
import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path=".", config_name="sweep")
def main(config: DictConfig) -> float:
    """Train and quantize; return the accuracy of the packed model, for sweepers that look for the best."""
    L.seed_everything(0)
    callbacks = [instantiate(callback) for callback in config.callbacks.values()]
    trainer: L.Trainer = instantiate(config.trainer, callbacks=callbacks)
    trainer.fit(instantiate(config.model), instantiate(config.data))
    report = callbacks[0].report
    print(f"{config.callbacks.mpq.budget.average_bits} bits: {report['chosen'].stored_bytes:,} bytes")
    return report["chosen"].metrics["val_accuracy"]


if __name__ == "__main__":
    main()
