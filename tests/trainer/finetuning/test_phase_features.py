"""What Lightning does goes on working while a model is fine-tuned."""

from pathlib import Path

import lightning as L
import pytest
import torch
from helpers.finetuning import Recorder, finetuning, fit, kind_of
from helpers.state import same, state_of
from helpers.trainer import SmallClassifier, SmallData, make_trainer, trained
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_mpq.modules import packed_layers
from lightning_mpq.options import FinetuneOptions

pytestmark = pytest.mark.filterwarnings("ignore")


def test_accumulated_batches_make_the_steps_of_larger_ones(tmp_path):
    """Two batches of 16, accumulated, are one of 32 where no layer looks at the batch as a whole."""

    class Plain(SmallClassifier):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3))

    class Ordered(SmallData):
        size = 16

        def train_dataloader(self):
            whole = torch.utils.data.TensorDataset(self.images, self.labels)
            return torch.utils.data.DataLoader(whole, batch_size=self.size)

        def calibration_dataloader(self):
            return self.val_dataloader()

    class Larger(Ordered):
        size = 32

    weights = []
    for data, settings in ((Ordered(), {"accumulate_grad_batches": 2}), (Larger(), {})):
        L.seed_everything(0, verbose=False)
        module, mixed = Plain(), finetuning(finetune=FinetuneOptions(schedule="constant"), finetune_epochs=2)
        make_trainer(tmp_path, mixed, gradient_clip_val=0.5, **settings).fit(module, data)
        weights.append([layer.weight for layer in packed_layers(module).values()])
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)


def test_gradients_of_scales_are_clipped_with_the_others(tmp_path):
    norms = []

    class Watch(L.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            if gradients and len(optimizer.param_groups) == 2:
                norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))

    trained(tmp_path, Watch(), finetuning(), gradient_clip_val=1e-3)
    assert len(norms) > 3
    assert max(norms) < 1.001e-3


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_low_precision(tmp_path, precision):
    recorder = Recorder()
    _, module = trained(tmp_path, recorder, finetuning(), precision=precision)
    assert recorder.epochs() == ["float", "float", "fake", "fake"]
    assert kind_of(module) == "packed"


def test_fp16_with_gradient_scaling(tmp_path):
    """``precision="16-mixed"`` becomes bf16 on a CPU, but Lightning's own plugin scales gradients there, too."""
    gradients = []

    class Watch(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            found = [[p.grad.clone() for p in group["params"]] for group in optimizer.param_groups]
            gradients.append(torch.cat([each.flatten() for each in found[1]]))

    scaler, firsts = torch.amp.GradScaler("cpu"), []
    for precision in ({"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}, {}):
        gradients.clear()
        _, module = trained(tmp_path, Watch(), finetuning(8.0, quantize_at=0), **precision)
        assert kind_of(module) == "packed"
        firsts.append(gradients[0])
    assert scaler.get_scale() > 1000
    assert float((firsts[0] - firsts[1]).norm() / firsts[1].norm()) < 0.1


def test_a_compiled_inner_network_is_compiled_again_for_each_phase(tmp_path):
    compiled, recorder = [], Recorder()

    def backend(graph, inputs):
        compiled.append(kind_of(module))
        return graph.forward

    class Compiled(SmallClassifier):
        def __init__(self):
            super().__init__()
            self.network = torch.compile(self.network, backend=backend)

    L.seed_everything(0, verbose=False)
    module, mixed = Compiled(), finetuning(candidates=None)
    make_trainer(tmp_path, mixed, recorder).fit(module, SmallData())
    assert kind_of(module) == "packed"
    assert recorder.epochs() == ["float", "float", "fake", "fake"]
    assert {"float", "fake"} <= set(compiled)
    assert all(name.startswith("network._orig_mod.") for name in packed_layers(module))
    plain = trained(tmp_path, finetuning(candidates=None))[1]
    for one, other in zip(packed_layers(module).values(), packed_layers(plain).values(), strict=True):
        torch.testing.assert_close(one.weight, other.weight, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("average", [EMAWeightAveraging(decay=0.5), StochasticWeightAveraging(swa_lrs=0.01)])
def test_averages_end_with_the_float_phase(tmp_path, average):
    class Watch(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            self.names = [type(callback).__name__ for callback in trainer.callbacks]

    watch, recorder, mixed = Watch(), Recorder(), finetuning()
    average_of_twin = type(average)(
        **({"decay": 0.5} if isinstance(average, EMAWeightAveraging) else {"swa_lrs": 0.01})
    )
    twin = trained(tmp_path, average_of_twin, max_epochs=3)[1].state_dict()
    seen = {}
    begin = mixed.finetuning.begin

    def keep(trainer, module, *args):
        seen.update(state_of(module))
        begin(trainer, module, *args)

    mixed.finetuning.begin = keep
    trainer, module = trained(tmp_path, average, mixed, watch, recorder, max_epochs=3)
    assert same(seen, twin)
    assert type(average).__name__ not in watch.names
    assert average in trainer.callbacks
    assert recorder.epochs()[-2:] == ["fake", "fake"]
    assert set(recorder.epochs()[:-2]) == {"float"}
    assert kind_of(module) == "packed"


def test_distillation_pulls_outputs_towards_the_float_model_and_leaves_the_step_alone(tmp_path):
    losses, images = {}, SmallData().images
    for weight in (0.0, 20.0):
        mixed = finetuning(3.0, finetune=FinetuneOptions(distill=weight, learning_rate=0.3), finetune_epochs=5)
        begin = mixed.finetuning.begin

        def keep(trainer, module, *args, begin=begin, weight=weight):
            module.eval()
            with torch.no_grad():
                losses[weight] = module(images).log_softmax(1)
            module.train()
            begin(trainer, module, *args)

        mixed.finetuning.begin = keep
        _, module = trained(tmp_path, mixed)
        assert "training_step" not in module.__dict__
        with torch.no_grad():
            after = module.eval()(images).log_softmax(1)
        losses[weight] = float((losses[weight].exp() * (losses[weight] - after)).sum(1).mean())
    assert losses[20.0] < losses[0.0]


def test_the_comparison_leaves_no_trace_in_callbacks_and_loggers(tmp_path):
    logger, mixed = CSVLogger(tmp_path), finetuning(compare=True)
    trained(tmp_path, mixed, logger=logger)
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("val_accuracy")
    assert len([row for row in rows[1:] if row.split(",")[column]]) == 4  # one an epoch
    last = dict(zip(rows[0].split(","), rows[-1].split(","), strict=True))
    value = float(last["mpq/fine-tuned/val_accuracy"])
    assert value == pytest.approx(mixed.report["fine-tuned"].metrics["val_accuracy"])


def test_best_checkpoints_are_float_or_finetuned_and_both_resume(tmp_path):
    fit(tmp_path, finetuning())
    phases = {}
    for path in tmp_path.glob("epoch=*.ckpt"):
        state = torch.load(path, weights_only=True)["callbacks"]["MixedPrecisionQuantization"]
        phases[path.stem] = state["finetuning"]["phase"]
    assert phases == {"epoch=0": "float", "epoch=1": "due", "epoch=2": "training", "epoch=3": "training"}
