"""Candidates and calibration batches in, a Taylor model of the loss out."""

from ..network.likelihood import Bernoulli, Categorical, Gaussian, Likelihood
from .profile import profile
from .shrinkage import shrink
from .taylor_model import Prediction, TaylorModel

__all__ = ["Bernoulli", "Categorical", "Gaussian", "Likelihood", "Prediction", "TaylorModel", "profile", "shrink"]
