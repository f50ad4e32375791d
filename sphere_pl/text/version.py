"""The version of sphere_pl, where both the package and its commands read it, and those of other packages."""

__version__ = "0.1.0"


def version_of(package: str) -> str:
    """The version of a package that is installed; "missing" if it is not, as in a clone that is run where it lies.

    Example:
        >>> version_of("a-package-that-nobody-wrote")
        'missing'
    """
    from importlib.metadata import PackageNotFoundError, version  # here: a short help needs none of it

    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
