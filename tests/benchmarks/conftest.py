"""Run folders as those of the report's tests."""

from tests.report.conftest import make_run

__all__ = ["make_run"]
