"""The house itself: imports go one way, and the callbacks stand alone."""

import ast
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A module may import those of its own line and of the lines above it. `*` stands for any name.
LAYERS = [
    line.split()
    for line in """
errors devices trainers console closing budget forward monitors resilience tracing numbers commands.usage
resilience.interrupts resilience.failures budget.free
files names architectures configs embedded data.builtin data.request commands.wording
evaluation.forest evaluation.sample evaluation.settings
distributed resilience.checkpoint_file resilience.fingerprints resilience.randomness
commands.parsers
hub model_files gguf_files language_model
data.records data.review methods.functional methods.memory methods.base resilience.run_lock
loading commands.short_help
prompts optim data.formats data.formats.* metrics metrics.* abilities abilities.task abilities.metrics forward.attention
forward.packing methods.alphaedit methods.memit resilience.checkpoints
tracing.functional resilience.run_folder
methods.descent methods.emmet methods.rome methods.ultraedit
methods.ft methods.locft_bf
methods representations generation data.datamodule progress evaluation
statistics targets budget.needs evaluation.scoring abilities.sources abilities.answering abilities.tasks.*
refusals evaluation.editing abilities.tasks
evaluation.cases
evaluation.protocols abilities.evaluate
evaluation.texts
evaluation.evaluator
likelihood tracing.trace
tracing.summary
editor report report.* runs runs.low_rank
abilities.journal abilities.harness monitors.drift monitors.editor_callback monitors.evaluated_weights
abilities.callback monitors.target_table
tracing.picture
commands.compare commands.locate monitors.results monitors.loggers monitors.live monitors.tracking monitors.preflight
monitors.shortage resilience.resuming runs.log
commands.dashboard
monitors.edit_log runs.rebuild runs.delta runs.card
runs.saved
runs.arguments runs.solve
runs.states runs.export runs.diff
runs.validate runs.predict
cli
commands
__main__
""".strip().splitlines()
]


def module_name(path):
    parts = path.relative_to(ROOT / "sphere_pl").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def layer(name):
    return next((index for index, line in enumerate(LAYERS) if any(fnmatch(name, pattern) for pattern in line)), None)


@pytest.mark.parametrize("path", sorted((ROOT / "sphere_pl").rglob("*.py")), ids=module_name)
def test_imports_go_one_way(path):
    name = module_name(path)
    if name in {"", "data", "data.builtin.build"}:
        return
    mine = layer(name)
    assert mine is not None, f"{name} has no place in LAYERS"
    for imported in imports(path):
        if imported.startswith("sphere_pl."):
            other = imported.removeprefix("sphere_pl.")
            assert layer(other) is not None, f"{name} imports {other}, which has no place in LAYERS"
            assert layer(other) <= mine, f"{name} imports {other}, which stands behind it"


def test_nothing_rests_on_the_study():
    house = [ROOT / name for name in ("sphere_pl", "callbacks", "benchmarks", "examples", "tests")]
    files = [path for folder in house for path in folder.rglob("*.py")]
    assert [path for path in files if "study" in {name.split(".")[0] for name in imports(path)}] == []
    assert not list((ROOT / "conf").rglob("*study*"))


def test_the_study_is_in_no_archive_and_not_in_the_default_test_run():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    targets = tool["hatch"]["build"]["targets"]
    assert "/study" in targets["sdist"]["exclude"]
    assert targets["wheel"]["packages"] == ["sphere_pl"]
    assert not any(path.startswith("study") for path in tool["pytest"]["ini_options"]["testpaths"])


@pytest.mark.parametrize("path", sorted((ROOT / "callbacks" / "sphere_callbacks").rglob("*.py")), ids=lambda p: p.name)
def test_the_callbacks_need_nothing_of_the_framework(path):
    heavy = {"sphere_pl", "transformers", "datasets", "wandb"}
    assert not {name.split(".")[0] for name in imports(path)} & heavy


@pytest.mark.parametrize("path", sorted((ROOT / "sphere_pl").rglob("*.py")), ids=module_name)
def test_no_module_names_a_device_or_prints(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            assert not (isinstance(node.func, ast.Attribute) and node.func.attr == "cuda")
            assert not (isinstance(node.func, ast.Name) and node.func.id == "print")
        assert not isinstance(node, ast.Global)
