"""Mutated records, configurations, checkpoints and cache files: each a clear error or a right result."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sphere_pl.data.builtin import facts_path
from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.editing import kept_moments
from sphere_pl.editing.moments import SecondMoment
from sphere_pl.errors import UserError
from sphere_pl.storage.checkpoint_file import read_checkpoint, write_checkpoint

# In CI some inputs of each kind; `-m slow` tries 1,200 in all.
AMOUNTS = [40, pytest.param(300, marks=pytest.mark.slow)]

junk = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just([]), st.just({}),
    st.sampled_from(["{}", "{} {}", "\ud800", "../../x", "a" * 5000, "${nothing}", "!!python/object:os.system"]),
)  # fmt: skip


@st.composite
def damaged(draw, content):
    """Bytes with a few places changed, cut out, doubled or cut off."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["change", "insert", "remove", "double", "end"]))
        if kind == "change" and data:
            data[place] = draw(st.integers(0, 255))
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "remove":
            del data[place : place + draw(st.integers(1, 30))]
        elif kind == "double":
            data[place:place] = data[place : place + 20]
        else:
            del data[place:]
    return bytes(data)


@st.composite
def warped(draw, tree):
    """A tree in which one branch has become something else, or has gone."""
    tree = json.loads(json.dumps(tree))
    node, depth = tree, draw(st.integers(0, 4))
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return tree
        key = draw(st.sampled_from(keys))
        if depth == 0 or not isinstance(node[key], dict | list):
            if draw(st.booleans()):
                node[key] = draw(junk)
            else:
                del node[key]
            return tree
        node, depth = node[key], depth - 1


def try_many(amount, strategy, check):
    """Try the same inputs every time if they are few, new ones if they are many."""
    relaxed = settings(
        max_examples=amount,
        deadline=None,
        database=None,
        derandomize=amount < 100,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # an input that fails is short enough; making it shorter takes minutes
    )
    relaxed(given(strategy)(check))()


def right_or_refused(work):
    """Run something that may only end well or with a `UserError`, which has to say something."""
    try:
        work()
    except UserError as error:
        if len(str(error)) < 20:
            pytest.fail(f"says nothing: {error}")


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.filterwarnings("ignore")
def test_records(amount, tmp_path):
    records = json.loads(facts_path().read_text(encoding="utf-8"))[:3]
    whole = json.dumps(records).encode()
    trees = warped(records).map(lambda tree: json.dumps(tree).encode())
    path = tmp_path / "records.json"

    def check(content):
        path.write_bytes(content)

        def read():
            data = EditDataModule("counterfact", str(path))
            data.setup("fit")
            assert data.requests
            assert all(r.subject and r.target_new and r.prompt.count("{}") == 1 for r in data.requests)

        right_or_refused(read)

    try_many(amount, st.one_of(trees, damaged(whole)), check)


@pytest.mark.parametrize("amount", AMOUNTS)
def test_checkpoints(amount, tmp_path):
    path = tmp_path / "batch-000001.safetensors"
    kept = {"weights": torch.arange(20.0), "more": [{"a": (1, None)}, torch.tensor([True])], "n": 3}
    write_checkpoint(kept, path)

    def check(content):
        path.write_bytes(content)

        def read():
            found = read_checkpoint(path)
            assert torch.equal(found.pop("weights"), torch.arange(20.0))
            assert found["more"][0] == {"a": (1, None)}
            assert found["n"] == 3

        right_or_refused(read)

    try_many(amount, damaged(path.read_bytes()), check)


@pytest.mark.parametrize("amount", AMOUNTS)
def test_kept_second_moments(amount, tmp_path):
    path = tmp_path / "moment.safetensors"
    kept = SecondMoment(torch.eye(5), torch.arange(5.0))
    kept_moments._save(kept, {"model": "x", "matrix": "y"}, path)

    def same(found):
        return all(torch.equal(each, expected) for each, expected in zip(found[:2], kept[:2], strict=True))

    def check(content):
        path.write_bytes(content)
        right_or_refused(lambda: None if same(kept_moments._load(path)) else pytest.fail("wrong"))

    try_many(amount, damaged(path.read_bytes()), check)


@pytest.mark.parametrize("amount", [8, AMOUNTS[1]])  # each takes a second
@pytest.mark.filterwarnings("ignore")
def test_configurations(amount, monkeypatch, capsys, tmp_path):
    from sphere_pl.commands import main
    from sphere_pl.model.known import config_folder

    tree = yaml.safe_load((config_folder() / "default.yaml").read_text())
    whole = yaml.safe_dump(tree).encode()
    trees = warped(tree).map(lambda tree: yaml.safe_dump(tree).encode())

    monkeypatch.chdir(tmp_path)
    # Everything up to the model and the folder of the run is built; there is no such model.
    arguments = ["fit", "--config=mine.yaml", "--model.name=/nowhere", "--trainer.logger=false", "--run_dir=run"]

    def check(content):
        Path("mine.yaml").write_bytes(content)
        monkeypatch.setattr(sys, "argv", ["sphere_pl", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert end.value.code == 2, (content, out, err)
        assert "Traceback" not in out + err
        assert not Path("run").exists()

    try_many(amount, st.one_of(trees, damaged(whole)), check)
