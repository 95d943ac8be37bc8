"""The few exceptions that a caller may want to catch apart from plain ``ValueError``."""


class InfeasibleBudgetError(ValueError):
    """A budget lies below the least possible cost; the message names that least value."""


class BudgetExceededError(RuntimeError):
    """A packed model was counted to take more than its budget allows; the message names cost and bound."""


class CorruptModelError(ValueError):
    """A saved model is truncated, damaged, foreign, or does not fit the given architecture."""


class NonFiniteError(ValueError):
    """A weight, loss or output is NaN or infinite; the message names the module and the batch."""
