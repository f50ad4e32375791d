"""Editing methods: one file each, the tensor maths in `functional` and `descent`."""

from sphere_pl.methods.alphaedit import AlphaEdit
from sphere_pl.methods.base import Method
from sphere_pl.methods.emmet import EMMET
from sphere_pl.methods.ft import FT
from sphere_pl.methods.locft_bf import LocFTBF
from sphere_pl.methods.memit import MEMIT
from sphere_pl.methods.problem import KnownProblem, LayerProblem
from sphere_pl.methods.rome import ROME
from sphere_pl.methods.scr import SCR
from sphere_pl.methods.ultraedit import UltraEdit

__all__ = [
    "EMMET",
    "FT",
    "MEMIT",
    "ROME",
    "SCR",
    "AlphaEdit",
    "KnownProblem",
    "LayerProblem",
    "LocFTBF",
    "Method",
    "UltraEdit",
]
