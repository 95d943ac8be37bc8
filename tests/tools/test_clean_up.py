"""Clean-ups come to their end whichever of their lines an interrupt meets."""

import pytest

from lightning_mpq.tools.clean_up import after_errors, afterwards


class Interrupted:
    """A clean-up in three steps; interrupts come after so many of them."""

    def __init__(self, *after):
        self.after, self.steps, self.done = set(after), 0, set()

    def __call__(self):
        for step in "abc":
            self.done.add(step)
            self.steps += 1
            if self.steps in self.after:
                raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_clean_up_that_is_interrupted_is_done_again(after):
    clean_up = Interrupted(after)
    with pytest.raises(KeyboardInterrupt), afterwards(clean_up):
        raise KeyboardInterrupt
    assert clean_up.done == set("abc")
    assert clean_up.steps == after + 3


def test_a_clean_up_is_done_once_and_after_errors_only_after_errors():
    clean_up, undo = Interrupted(), Interrupted()
    with afterwards(clean_up), after_errors(undo):
        pass
    assert (clean_up.steps, undo.steps) == (3, 0)
    with pytest.raises(ValueError, match="wrong"), afterwards(clean_up), after_errors(undo):
        raise ValueError("wrong")
    assert (clean_up.steps, undo.steps) == (6, 3)


def test_what_a_block_returns_is_returned():
    def block(manager):
        with manager:
            return "found"

    assert block(afterwards(Interrupted())) == block(after_errors(Interrupted())) == "found"
