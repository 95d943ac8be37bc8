"""Attributes of modules that passes which take turns keep apart."""

from torch import nn

from lightning_mpq.network.kept_attributes import KeptAttributes


def test_each_pass_finds_its_own_again_and_the_module_is_as_before():
    model = nn.Sequential(nn.Identity())
    model.seen, model[0].left = [], "before"
    first, second = KeptAttributes(model), KeptAttributes(model)
    for number, each in enumerate((first, second)):
        with each.in_place():
            model.seen.append(number)
            model[0].number = number
            del model[0].left
    assert (model.seen, model[0].left, hasattr(model[0], "number")) == ([], "before", False)
    for number, each in enumerate((first, second)):
        with each.in_place():
            assert (model.seen, model[0].number, hasattr(model[0], "left")) == ([number], number, False)
    with first.in_place(stays=lambda: True):
        pass
    assert model.seen == [0]
