"""The log that a fit leaves, and the weights rebuilt from it."""

import json

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from sphere_callbacks import CollapseGuard, RelativeMask, SpectrumRestraint
from sphere_pl.errors import UserError
from sphere_pl.history.log import read_log
from sphere_pl.history.rebuild import rebuild, restrained
from sphere_pl.history.saved import SavedRun
from tests.saving import SaveAt


def same(rebuilt, live):
    assert rebuilt.keys() == live.keys()
    for name, weight in live.items():
        torch.testing.assert_close(rebuilt[name], weight, rtol=1e-5, atol=2e-6)


def base_of(run):
    return SavedRun.open(run.folder).load_base().weights


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["AlphaEdit", "ROME", "FT"])
def test_weights_rebuilt_after_batch_k_are_those_of_a_run_stopped_there(fit, method, model_type):
    whole = fit("whole", method, model_type, sphere={"strength": 0.8})
    base, history = base_of(whole), read_log(whole.folder)
    for number in range(1, len(history.entries) + 1):
        stopped = fit(f"stopped{number}", method, model_type, sphere={"strength": 0.8}, max_steps=number)
        same(rebuild(base, history, number), stopped.live)
    same(rebuild(base, history, 0), base)
    assert not torch.allclose(next(iter(base.values())), next(iter(whole.live.values())), atol=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        {"callbacks": [RelativeMask(keep=0.4)]},
        {"sphere": {"strength": 0.8, "when": "step"}},
        {"callbacks": [SpectrumRestraint()], "val_check_interval": 1},
    ],
    ids=["RECT", "SPHERE behind the loop", "PRUNE"],
)
def test_the_log_holds_what_was_applied_behind_all_callbacks(fit, arguments):
    run = fit(**arguments)
    same(rebuild(base_of(run), read_log(run.folder), 2), run.live)


def test_low_rank_changes_are_kept_as_factors_and_others_in_full(fit):
    tensors = load_file(fit("alpha").folder / "edits" / "batch-00000.safetensors")
    (left,) = [t for n, t in tensors.items() if n.startswith("left/") and ".1." in n]
    assert left.shape == (32, 2)
    assert not any(name.startswith("full/") for name in tensors)
    masked = fit("masked", callbacks=[RelativeMask(keep=0.4)])
    names = load_file(masked.folder / "edits" / "batch-00000.safetensors")
    assert sum(name.startswith("full/") for name in names) == 2


def test_each_line_names_its_requests_and_the_hash_of_its_file(fit, requests):
    import hashlib

    run = fit()
    header, first, second = run.lines
    assert header["model"] == run.editor.name
    assert [r["case_id"] for r in first["requests"] + second["requests"]] == ["0", "1", "2", "3"]
    assert {"case_id", "subject", "prompt", "target_new"} <= set(first["requests"][0])
    for line in (first, second):
        data = (run.folder / "edits" / line["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == line["sha256"]
    assert read_log(run.folder).requests == run.editor.requests


def test_a_run_with_the_log_edits_as_one_without(fit):
    logged, plain = fit("logged"), fit("plain", keep="none")
    assert all(torch.equal(logged.live[name], weight) for name, weight in plain.live.items())
    assert not (plain.folder / "edits.jsonl").exists()


def test_a_batch_that_a_guard_rolled_back_is_logged_without_a_change(fit):
    class Guard(L.Callback):
        """Puts the second batch's weights back, as CollapseGuard does."""

        def on_train_batch_start(self, trainer, pl_module, *_):
            self.kept = [w.detach().clone() for w in pl_module.weights]

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                with torch.no_grad():
                    for weight, kept in zip(pl_module.weights, self.kept, strict=True):
                        weight.copy_(kept)

    run = fit(callbacks=[Guard()])
    first, second = read_log(run.folder).entries
    assert first.ranks
    assert not second.ranks
    same(rebuild(base_of(run), read_log(run.folder), 2), run.live)


def test_a_rollback_after_a_validation_leads_back_to_the_state_it_was(fit, worse):
    guard = CollapseGuard(above={"harm": 0.5}, action="rollback", check="validation")
    run = fit(method="ROME", callbacks=[worse({3}, "validation"), guard], val_check_interval=1)
    assert guard.crossings == 1
    entries = read_log(run.folder).entries
    assert [(entry.number, entry.base, entry.edits) for entry in entries] == [
        (1, 0, 1), (2, 1, 2), (3, 2, 3), (4, 2, 3), (5, 4, 4),
    ]  # fmt: skip
    assert entries[3].file is None
    same(rebuild(base_of(run), read_log(run.folder), 5), run.live)
    two = fit("two", "ROME", max_steps=2)
    same(SavedRun.open(run.folder).weights(SavedRun.open(run.folder).load_base(), at=3), two.live)


def test_a_torn_last_line_is_left_out(fit):
    run = fit()
    path = run.folder / "edits.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    assert len(read_log(run.folder).entries) == 1
    assert read_log(run.folder).edits == 2


@pytest.mark.parametrize("damage", ["altered", "missing", "elsewhere"])
def test_a_file_with_another_hash_is_refused_by_name(fit, damage):
    run = fit()
    path = run.folder / "edits" / "batch-00001.safetensors"
    if damage == "altered":
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
    elif damage == "missing":
        path.unlink()
    else:
        log = run.folder / "edits.jsonl"
        log.write_text(log.read_text().replace("batch-00001.safetensors", "../../etc/passwd"))
    base = base_of(run)
    rebuild(base, read_log(run.folder), 1)
    with pytest.raises(UserError, match=r"passwd" if damage == "elsewhere" else r"batch-00001\.safetensors"):
        rebuild(base, read_log(run.folder), 2)


@pytest.mark.parametrize("line", ["{", "[]", '{"number": 7, "base": 0, "edits": 1}', '{"number": 1}'])
def test_a_damaged_line_in_the_middle_is_refused(fit, line):
    run = fit()
    path = run.folder / "edits.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = line
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"edits\.jsonl"):
        read_log(run.folder)


def test_a_resumed_run_drops_what_came_after_its_checkpoint_and_appends(fit, tmp_path):
    whole = fit("whole", "ROME")
    killed = fit("run", "ROME", max_steps=3, last=[SaveAt(2, tmp_path / "two.ckpt")])
    with (killed.folder / "edits.jsonl").open("a") as log:
        log.write('{"number":4,"ba')
    resumed = fit("run", "ROME", ckpt_path=tmp_path / "two.ckpt")
    assert [entry.edits for entry in read_log(resumed.folder).entries] == [1, 2, 3, 4]
    assert all(entry.requests for entry in read_log(resumed.folder).entries)
    same(rebuild(base_of(resumed), read_log(resumed.folder), 4), whole.live)
    assert all(torch.equal(resumed.live[name], weight) for name, weight in whole.live.items())


def test_a_run_resumed_into_another_folder_begins_its_log_at_the_checkpoint(fit, tmp_path, caplog):
    fit("part", "ROME", max_steps=2, last=[SaveAt(2, tmp_path / "two.ckpt")])
    resumed = fit("elsewhere", "ROME", ckpt_path=tmp_path / "two.ckpt")
    assert "begins again" in caplog.text
    entries = read_log(resumed.folder).entries
    assert [(entry.edits, len(entry.requests)) for entry in entries] == [(2, 0), (3, 1), (4, 1)]
    same(rebuild(base_of(resumed), read_log(resumed.folder), 3), resumed.live)


def test_a_run_is_not_resumed_with_the_log_of_another_model(fit, tmp_path):
    fit("run", "ROME", max_steps=2, last=[SaveAt(2, tmp_path / "two.ckpt")])
    log = tmp_path / "run" / "edits.jsonl"
    log.write_text(log.read_text().replace('"fingerprint":"', '"fingerprint":"0'))
    with pytest.raises(UserError, match="another unedited model"):
        fit("run", "ROME", ckpt_path=tmp_path / "two.ckpt")


def test_beyond_its_size_limit_the_log_notes_requests_only(fit, caplog):
    size = (fit("whole", "ROME").folder / "edits" / "batch-00000.safetensors").stat().st_size
    run = fit("run", "ROME", gigabytes=2.2 * size / 1e9)
    assert caplog.text.count("edit_log_gigabytes") == 1
    history = read_log(run.folder)
    assert [entry.complete for entry in history.entries] == [True, True, False, False]
    assert history.entries[3].case_ids == ["3"]
    rebuild(base_of(run), history, 2)
    with pytest.raises(UserError, match="size limit"):
        rebuild(base_of(run), history, 3)


def test_a_second_run_in_one_folder_begins_a_new_log_and_touches_nothing_else(fit):
    fit("run", "ROME")
    other = fit("run").folder / "edits" / "batch-mine.safetensors"
    other.write_text("mine")
    run = fit("run")
    assert len(run.lines) == 3
    assert sorted(p.name for p in (run.folder / "edits").iterdir()) == [
        "batch-00000.safetensors", "batch-00001.safetensors", "batch-mine.safetensors",
    ]  # fmt: skip


def test_states_are_known_between_batches_only(fit):
    history = read_log(fit().folder)
    assert [history.number_at(at) for at in (0, 2, 4, None)] == [0, 1, 2, 2]
    with pytest.raises(UserError, match="--at 2 and --at 4"):
        history.number_at(3)


def test_a_folder_without_a_log_says_what_to_give(tmp_path):
    with pytest.raises(UserError, match="no run folder"):
        read_log(tmp_path)
    (tmp_path / "edits.jsonl").write_text(json.dumps({"format": 2}) + "\n")
    with pytest.raises(UserError, match="format is 2"):
        read_log(tmp_path)


def mutations(value, path=()):
    """Every place inside a JSON value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from mutations(inner, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("number", [0, 2])
def test_a_log_with_any_value_of_another_kind_is_read_or_refused(fit, number):
    run = fit(callbacks=[SpectrumRestraint()], val_check_interval=1)
    path, lines = run.folder / "edits.jsonl", run.lines
    base = base_of(run)
    for place in mutations(lines[number]):
        for new in (None, -1, "../x", [], {}, [[1]], True, 1.5):
            changed = [*lines]
            changed[number] = replaced(lines[number], place, new)
            path.write_text("".join(json.dumps(line) + "\n" for line in changed))
            try:
                history = read_log(run.folder)
                weights = rebuild(base, history, len(history.entries))
                restrained(base, weights, history.header.restraint)
                assert len(history.requests) <= 4
            except UserError:
                continue


def test_a_request_is_read_as_it_was_edited(fit):
    run = fit(method="ROME", max_steps=1)
    assert read_log(run.folder).requests == run.editor.requests[:1]
    assert "form" not in run.lines[1]["requests"][0]
