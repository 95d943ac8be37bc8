"""Write what version 0.1 wrote before its files moved.

Run at commit de939f5: PYTHONPATH=.:tests python make.py FOLDER.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from trainer_cases import SmallData, trained

import lightning_mpq as mpq

warnings.filterwarnings("ignore")
folder = Path(sys.argv[1])
settings = {"candidates": mpq.CandidateOptions(bits=(2, 3, 4, 8)), "calibration_batches": 2}
mixed = mpq.MixedPrecisionQuantization(4.5, report_path=folder / "report.json", **settings)
trainer, module = trained(folder, mixed)
trainer.save_checkpoint(folder / "packed.ckpt", weights_only=False)
mpq.save(module, folder / "saved")
mixed.policy.save(folder / "policy.json")
mixed.taylor.save(folder / "taylor.npz")
images = SmallData().images[:4]
with torch.no_grad():
    outputs = module.eval()(images).tolist()

keep = ModelCheckpoint(folder, every_n_epochs=1, save_top_k=-1, filename="finetuning-{epoch}")
again = mpq.MixedPrecisionQuantization(
    4.5, finetune_epochs=2, report_path=None, finetune=mpq.FinetuneOptions(distill=1.0), **settings
)
_, finetuned = trained(folder, again, keep, enable_checkpointing=True)
with torch.no_grad():
    expected = {"packed": outputs, "finetuned": finetuned.eval()(images).tolist()}
(folder / "outputs.json").write_text(json.dumps(expected) + "\n")
