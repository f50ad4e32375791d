"""Self-contained HTML reports of one run and of several runs side by side."""

from sphere_pl.report.compare import write_comparison
from sphere_pl.report.page import write_report

__all__ = ["write_comparison", "write_report"]
