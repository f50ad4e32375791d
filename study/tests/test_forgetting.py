"""What later edits do at earlier ones' keys."""

import pytest
import torch

from study.forgetting import Forgotten, forgetting_table, forgotten, read_forgotten


def test_what_later_edits_move_is_a_share_of_what_was_written_fact_by_fact():
    rng = torch.Generator().manual_seed(0)
    base, then, now = (torch.randn(3, 4, generator=rng, dtype=torch.float64) for _ in range(3))
    old, new = (torch.randn(5, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    shares, cosines = [], []
    for a, b in zip(old, new, strict=True):
        own = ((then - base) @ a).square().sum().sqrt()
        shares.append([float(((now - then) @ each).square().sum().sqrt() / own) for each in (a, b)])
        cosines.append(float(a @ b / (a @ a).sqrt() / (b @ b).sqrt()))
    expected = [*(sum(column) / 5 for column in zip(*shares, strict=True)), sum(cosines) / 5]
    ordinary = torch.randn(50, 4, generator=rng, dtype=torch.float64)
    expected.append(float(torch.stack([((now - base) @ each).square().sum() for each in ordinary]).mean()))
    assert forgotten(base, then, now, old, new, ordinary.T @ ordinary / 50) == pytest.approx(expected)


def test_edits_that_keep_off_a_key_leave_it():
    base, then = torch.zeros(2, 2), torch.eye(2)
    now = then + torch.tensor([[0.0, 3.0], [0.0, 0.0]])
    key, drifted = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    assert forgotten(base, then, now, key, drifted, torch.eye(2))[:2] == (0.0, 3.0)


def test_the_table_has_a_line_for_each_run():
    rows = {
        "AlphaEdit": {"a": Forgotten(0.3, 0.31, 1.0, 1.0), "b": Forgotten(0.4, 0.5, 0.93, 3.0)},
        "other": {"a": Forgotten(0.3, 0.3, 1.0, 2.0)},
    }
    first, second = forgetting_table(rows)[2:]
    assert first == "| AlphaEdit | 0.30, 0.40 | 0.31, 0.50 | 1.000, 0.930 | 1.00 |"
    assert second.endswith("| 0.50 |")
    assert forgetting_table({}) == []


def test_what_is_kept_is_read_again(tmp_path):
    assert read_forgotten(tmp_path / "none.json") == {}
    assert all(isinstance(each, Forgotten) for run in read_forgotten().values() for each in run.values())
