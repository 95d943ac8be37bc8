"""The same by hand: every step that the callback takes, and what can be seen in between."""

import copy

import lightning as L
import torch
from digits import DigitsData, DigitsNet

import lightning_mpq as mpq


def accuracy(model: torch.nn.Module, data: DigitsData) -> float:
    """Return the share of validation images that are recognised."""
    images, labels = next(iter(data.val_dataloader()))
    with torch.no_grad():
        return float((model.eval()(images).argmax(1) == labels).float().mean())


def main() -> None:
    """Train, then group, offer, round, profile, allocate, quantize, save."""
    L.seed_everything(0)
    model, data = DigitsNet(), DigitsData()
    L.Trainer(max_epochs=5, logger=False, enable_checkpointing=False).fit(model, data)
    batches = [batch for batch, _ in zip(data.calibration_dataloader(), range(8), strict=False)]

    # What is decided together, and what may be chosen.
    groups = mpq.find_groups(model, min_bits={"network.10": 4})
    candidates = mpq.make_candidates(groups, bits=[2, 3, 4, 6, 8])
    rounded = mpq.round_candidates(model, batches, groups, candidates)
    print(f"{len(groups)} groups, {len(candidates)} candidates, the best grids leave {len(rounded.candidates)}")

    # How the loss reacts to all of them, and to pairs of them.
    taylor = mpq.profile(model, batches, groups=groups, rounded=rounded, likelihood=mpq.Categorical())
    print(taylor)

    # The best policy at each of several budgets, from one profile; then one of them.
    for point in mpq.frontier(taylor, average_bits=[2.5, 3, 4, 5]).points:
        print(f"{point.costs['average_bits']:.2f} bits: loss {point.predicted_loss:.3g}, gap {point.gap:.2%}")
    allocation = mpq.allocate(taylor, mpq.Budget(average_bits=3.0))
    print(mpq.explain(allocation, pairs=3))

    # Packed layers in the place of the float ones, rounded one after the other and repaired.
    packed = mpq.quantize(copy.deepcopy(model), allocation.policy, batches, rounded=rounded)
    print(f"accuracy {accuracy(model, data):.3f} in float, {accuracy(packed, data):.3f} packed")
    mpq.save(packed, "packed")
    allocation.policy.save("policy.json")


if __name__ == "__main__":
    main()
