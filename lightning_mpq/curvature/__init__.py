"""Candidates and calibration batches in, a Taylor model of the loss out."""

from .likelihood import Bernoulli, Categorical, Gaussian, Likelihood
from .model import Prediction, TaylorModel
from .profile import profile
from .shrinkage import shrink

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Likelihood", "Prediction", "TaylorModel", "profile", "shrink"]
