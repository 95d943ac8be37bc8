"""How curvature is measured: one estimator a file."""

from .base import Estimator, Setting
from .fisher import Fisher
from .gauss_newton import GaussNewton
from .hessian import Hessian
from .measurement import Measurement
from .secant import Secant

__all__ = ["Estimator", "Fisher", "GaussNewton", "Hessian", "Measurement", "Secant", "Setting"]
