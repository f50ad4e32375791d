"""The house itself: imports go one way, and the callbacks stand alone."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A module may import from its own layer and the ones above it in this list.
LAYERS = [
    {"errors", "trainers"},
    {"files", "architectures", "configs", "data.builtin", "embedded", "data.request", "methods.functional",
     "methods.memory", "metrics.functional", "metrics.records", "evaluation.settings", "evaluation.sample",
     "evaluation.forest", "tracing", "tracing.functional"},
    {"checkpoint_file", "distributed", "fingerprints", "guard", "interrupts", "randomness",
     "run_lock"},
    {"checkpoints", "data.records", "data.review", "language_model", "methods.base", "metrics.accuracy",
     "metrics.probability", "metrics.texts"},
    {"data.formats", *(f"data.formats.{name}" for name in
       ("counterfact", "easyedit", "jsonl", "knowedit", "known", "mquake", "wikibigedit", "zsre")),
     "methods.alphaedit", "methods.memit", "metrics", "prompts", "optim", "abilities", "abilities.task",
     "abilities.metrics", "attention"},
    {"compiling", "lending", "methods.descent", "methods.emmet", "methods.rome", "methods.ultraedit", "packing"},
    {"methods.ft", "methods.locft_bf"},
    {"methods", "representations", "sampling", "data.datamodule", "progress", "evaluation"},
    {"statistics", "targets", "needs", "evaluation.scoring", "abilities.sources",
     "abilities.answering", *(f"abilities.tasks.{name}" for name in
        ("boolq", "cola", "gsm8k", "mmlu", "mrpc", "natural_questions", "rte", "sst2"))},
    {"evaluation.editing", "evaluation.generation", "abilities.tasks"},
    {"evaluation.cases"},
    {"evaluation.protocols", "abilities.evaluate"},
    {"evaluation.texts"},
    {"evaluation.evaluator"},
    {"likelihood", "tracing.trace"},
    {"tracing.summary"},
    {"editor", "report", "runs", "runs.low_rank"},
    {"evaluated_weights", "drift", "abilities.journal", "abilities.harness"},
    {"abilities.callback", "target_table"},
    {"tracing.picture"},
    {"results", "loggers", "live", "tracking", "compare", "preflight", "locate", "resuming", "runs.log"},
    {"dashboard"},
    {"edit_log", "runs.rebuild", "runs.delta", "runs.card"},
    {"runs.saved"},
    {"runs.arguments", "runs.solve"},
    {"runs.states", "runs.export", "runs.diff"},
    {"runs.validate", "runs.predict"},
    {"cli"},
    {"commands"},
    {"__main__"},
]  # fmt: skip


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
    for index, layer in enumerate(LAYERS):
        if name in layer or any(name.startswith(f"{member}.") and member in {"report"} for member in layer):
            return index
    return None


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
