"""Pure functions on weights and updates: tensors in, tensors out, no trainer, no state.

Shapes throughout: a weight and its update are ``[d_out, d_in]``, each row is one neuron; bases of directions hold one
direction a column.
"""

from sphere_callbacks.functional._checks import computes_in_double, exact_products
from sphere_callbacks.functional.curvature import CurvatureBasis, curvature_basis, project_low_curvature
from sphere_callbacks.functional.energy import (
    EnergyStatistics,
    energy_statistics,
    hyperspherical_energy,
    unit_rows,
)
from sphere_callbacks.functional.geometry import row_cosines, subspace_overlap
from sphere_callbacks.functional.projection import (
    leading_directions,
    principal_directions,
    principal_share,
    project_out,
    project_out_both,
    reading_from,
)
from sphere_callbacks.functional.statistics import (
    SpearmanResult,
    bootstrap_interval,
    partial_spearman,
    permutation_p_value,
    spearman,
    spearman_test,
)
from sphere_callbacks.functional.theory import (
    EnergyBound,
    energy_constant,
    output_perturbation,
    perturbation_bound,
)
from sphere_callbacks.functional.updates import relative_mask, restrain_spectrum, spectral_norm

__all__ = [
    "CurvatureBasis",
    "EnergyBound",
    "EnergyStatistics",
    "SpearmanResult",
    "bootstrap_interval",
    "computes_in_double",
    "curvature_basis",
    "energy_constant",
    "energy_statistics",
    "exact_products",
    "hyperspherical_energy",
    "leading_directions",
    "output_perturbation",
    "partial_spearman",
    "permutation_p_value",
    "perturbation_bound",
    "principal_directions",
    "principal_share",
    "project_low_curvature",
    "project_out",
    "project_out_both",
    "reading_from",
    "relative_mask",
    "restrain_spectrum",
    "row_cosines",
    "spearman",
    "spearman_test",
    "spectral_norm",
    "subspace_overlap",
    "unit_rows",
]
