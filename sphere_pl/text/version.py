"""The version of sphere_pl, where both the package and its commands read it."""

__version__ = "0.1.0"
