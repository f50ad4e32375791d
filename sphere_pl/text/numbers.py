"""Numbers as people read them: one number looks the same in the terminal, in reports, in pages and in cards.

The minus sign is a hyphen, which every console and LaTeX can show; reports put the longer one in its place.
"""

import math

MISSING = "–"
_DECIMALS = 4  # of a percentage at most: what is smaller than 0.0001 % is rounding


def score(mean: float, error: float = math.nan) -> str:
    """A mean of marks between 0 and 1, with its standard error if it is known.

    Example:
        >>> score(0.873), score(0.8734, 0.0112), score(float("nan"))
        ('0.873', '0.873 ± 0.011', '–')
    """
    if not math.isfinite(mean):
        return MISSING
    return f"{mean:z.3f}" + (f" ± {error:.3f}" if math.isfinite(error) else "")


def percent(share: float, error: float = math.nan, digits: int = 1) -> str:
    """A share in per cent, with its standard error if it is known.

    Example:
        >>> percent(0.873), percent(0.873, 0.011), percent(float("nan"))
        ('87.3 %', '87.3 ± 1.1 %', '–')
    """
    if not math.isfinite(share):
        return MISSING
    spread = f" ± {100 * error:.{digits}f}" if math.isfinite(error) else ""
    return f"{100 * share:z.{digits}f}{spread} %"


def change(share: float, digits: int | None = None) -> str:
    """A change in per cent, with its sign; what rounds to nothing has none.

    Args:
        share: The change as a share of what was there before.
        digits: Decimals, for columns; if left out, two significant digits of a small change and whole per cents of a
            large one.

    Example:
        >>> change(0.00123), change(-0.000001), change(0.25), change(-0.00000001), change(-0.0004, 1)
        ('+0.12 %', '-0.0001 %', '+25 %', '0 %', '0.0 %')
    """
    if not math.isfinite(share):
        return MISSING
    return f"{_signed(100 * share, _decimals(100 * share) if digits is None else digits)} %"


def difference(value: float, digits: int | None = None) -> str:
    """A change in the unit of what changed, with its sign: three significant digits, or so many decimals.

    Example:
        >>> difference(-0.03891), difference(12.345), difference(0.0), difference(-16.42, 1)
        ('-0.0389', '+12.3', '0', '-16.4')
    """
    if not math.isfinite(value):
        return MISSING
    if digits is not None:
        return _signed(value, digits)
    return f"{value:+.3g}" if value else "0"


def plain(value: float, digits: int = 3) -> str:
    """A positive number of any size.

    Example:
        >>> plain(24.31), plain(1234.5), plain(3.2e7), plain(float("inf")), plain(45.0)
        ('24.3', '1,234', '3.2e+07', '∞', '45.0')
    """
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.{digits}g}".rstrip(".")


def total(value: float) -> str:
    """A sum, such as a hyperspherical energy: whole from a thousand on, six digits below.

    Example:
        >>> total(828843.4), total(2005650.0), total(12.3456789)
        ('828,843', '2,005,650', '12.3457')
    """
    if not math.isfinite(value):
        return MISSING
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.6g}"


def coefficient(value: float) -> str:
    """A coefficient with two digits and its sign.

    Example:
        >>> coefficient(-0.918), coefficient(float("nan"))
        ('-0.92', '–')
    """
    return f"{value:+z.2f}" if math.isfinite(value) else MISSING


def counted(number: int, one: str, several: str | None = None) -> str:
    """So many of something, one or several.

    Args:
        number: How many.
        one: What follows a one.
        several: What follows any other number; `one` with an s if left out.

    Example:
        >>> counted(1, "edit"), counted(2000, "edit"), counted(0, "batch is", "batches are")
        ('1 edit', '2,000 edits', '0 batches are')
    """
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def duration(seconds: float) -> str:
    """A time in the unit that fits.

    Example:
        >>> duration(0.84), duration(75), duration(7500)
        ('0.84 s', '1 min 15 s', '2 h 5 min')
    """
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def clock(seconds: float) -> str:
    """A time as h:mm:ss, as long as it runs.

    Example:
        >>> clock(3671)
        '1:01:11'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def memory(count: float) -> str:
    """Bytes in GiB or MiB.

    Example:
        >>> memory(3 * 2**30), memory(5 * 2**20)
        ('3.00 GiB', '5.00 MiB')
    """
    if not math.isfinite(count):
        return MISSING
    return f"{count / 2**30:#.3g} GiB" if count >= 2**30 else f"{count / 2**20:#.3g} MiB"


def typeset(text: str) -> str:
    """Put the minus sign of print in a number's place for it.

    Example:
        >>> typeset("-16.4")
        '−16.4'
    """
    return text.replace("-", "−")


def _decimals(percentage: float) -> int:
    """Decimals that leave two significant digits of a percentage, none if it is large."""
    size = abs(percentage)
    return 0 if size >= 10 else min(_DECIMALS, 1 - math.floor(math.log10(size))) if size else 0


def _signed(value: float, digits: int) -> str:
    """With its sign, and so many decimals; what rounds to nothing has no sign."""
    shown = f"{value:+.{digits}f}"
    if float(shown) != 0:
        return shown
    return f"{0:.{digits}f}" if digits < _DECIMALS else "0"
