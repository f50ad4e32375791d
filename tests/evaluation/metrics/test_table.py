"""The table of metrics is whole: what is measured has a row, and what has a row is measured or drawn."""

import subprocess
import sys
from typing import get_args

from sphere_pl.evaluation.answers import TEACHER_FORCED
from sphere_pl.evaluation.metrics.table import ACCURACIES, FIRST_RANK, METRICS, PROTOCOLS, metric_of, titles
from sphere_pl.evaluation.protocols import SAMPLED
from sphere_pl.evaluation.settings import Protocol
from sphere_pl.report.style import COLORS, DARK, SYMBOLS

NAMES = [metric.name for metric in METRICS]


def test_names_are_unique_and_every_metric_is_called_something():
    assert len(set(NAMES)) == len(NAMES)
    assert all(metric.label and metric.title and "/" not in metric.name for metric in METRICS)
    assert all(metric.meaning for metric in METRICS if metric.first_rank)


def test_metrics_of_first_rank_can_be_told_apart_in_a_figure_on_either_background():
    first = [metric for metric in METRICS if metric.first_rank]
    assert len({metric.color for metric in first}) == len({metric.symbol for metric in first}) == len(first)
    assert all(COLORS[metric.color] in DARK and metric.symbol in SYMBOLS for metric in METRICS)


def test_protocols_are_those_of_the_settings_and_measure_metrics_of_the_table():
    assert tuple(protocol.name for protocol in PROTOCOLS) == get_args(Protocol)
    assert set(SAMPLED) == {protocol.name for protocol in PROTOCOLS if protocol.prefix}
    assert all(set(protocol.metrics) <= set(NAMES) for protocol in PROTOCOLS)


def test_what_validations_measure_has_a_row():
    (teacher_forced,) = [protocol for protocol in PROTOCOLS if not protocol.prefix]
    assert set(TEACHER_FORCED) == set(teacher_forced.metrics)
    assert {*TEACHER_FORCED, "neighborhood_agreement", "perplexity"} >= set(FIRST_RANK)


def test_perplexity_is_of_first_rank_but_no_accuracy():
    assert set(FIRST_RANK) - set(ACCURACIES) == {"perplexity"}
    assert not metric_of("val/perplexity").higher_is_better


def test_the_terminal_shows_every_metric_and_every_protocol_once():
    assert {name for name in titles() if "/" not in name} == set(NAMES)
    assert "generation/portability" in titles()
    assert len(set(titles().values())) == len(titles())


def test_the_table_and_the_reports_load_neither_torch_nor_torchmetrics():
    program = "import sys, sphere_pl.report; print(*{'torch', 'torchmetrics', 'lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
