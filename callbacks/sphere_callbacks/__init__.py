"""Lightning callbacks that watch and protect the hyperspherical energy of weights.

The callbacks work in any Lightning project; :class:`Loop` lends them to a loop without a trainer, and
:mod:`sphere_callbacks.functional` holds the same mathematics as plain functions on tensors.
"""

from sphere_callbacks.bound import PerturbationBound
from sphere_callbacks.correlation import Correlation, EnergyCorrelation
from sphere_callbacks.curvature import CurvatureProjection, record_factors
from sphere_callbacks.directions import PrincipalDirections
from sphere_callbacks.energy import HypersphericalEnergy
from sphere_callbacks.geometry import WeightGeometry
from sphere_callbacks.guard import CollapseGuard
from sphere_callbacks.layerwise import LayerwiseEdit
from sphere_callbacks.loop import Loop
from sphere_callbacks.projection import SparseProjection
from sphere_callbacks.prune import SpectrumRestraint
from sphere_callbacks.rect import RelativeMask
from sphere_callbacks.shares import PrincipalShares

__all__ = [
    "CollapseGuard",
    "Correlation",
    "CurvatureProjection",
    "EnergyCorrelation",
    "HypersphericalEnergy",
    "LayerwiseEdit",
    "Loop",
    "PerturbationBound",
    "PrincipalDirections",
    "PrincipalShares",
    "RelativeMask",
    "SparseProjection",
    "SpectrumRestraint",
    "WeightGeometry",
    "record_factors",
]
