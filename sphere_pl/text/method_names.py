"""What a run is called: its method, and what the method's updates pass through."""

from collections.abc import Sequence

_JOINT = " + "


def display_name(method: str, transforms: Sequence[str]) -> str:
    """A method with what its updates pass through, as people read it.

    Example:
        >>> display_name("MEMIT", ["RECT", "SPHERE"])
        'MEMIT + RECT + SPHERE'
    """
    return _JOINT.join((method, *transforms))


def parts_of(shown: str) -> tuple[str, list[str]]:
    """Method and transforms of a results.json that was written before it held them apart; nothing else asks.

    Example:
        >>> parts_of("MEMIT + RECT + SPHERE")
        ('MEMIT', ['RECT', 'SPHERE'])
    """
    method, *transforms = shown.split(_JOINT)
    return method, transforms
