"""Tasks of lm-evaluation-harness (EleutherAI) on a model in memory. An optional extra."""

import importlib.util
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sphere_pl.abilities.evaluate import Score
from sphere_pl.abilities.metrics import Estimate
from sphere_pl.errors import UserError
from sphere_pl.model.language_model import LanguageModel


def find_tasks(names: Sequence[str]) -> Any:
    """Look for tasks before any model is loaded.

    Args:
        names: Tasks, groups, or paths of tasks' YAML files.

    Returns:
        The harness's index of tasks, which `evaluate` takes: it is slow to build.

    Raises:
        UserError: If the extra is missing, a task is unknown, or its data cannot be had.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            f"--abilities.lm_eval_tasks={list(names)} needs lm-evaluation-harness, which is not installed. Install it "
            "with `pip install 'sphere-pl[lm-eval]'` (in a checkout: `pip install -e '.[lm-eval]'`)."
        )
    from lm_eval.tasks import TaskManager

    named = [name for name in names if not Path(name).is_file()]
    manager = TaskManager(include_defaults=bool(named))
    unknown = sorted(set(named) - set(manager.all_tasks))
    if unknown:
        raise UserError(
            f"--abilities.lm_eval_tasks: {', '.join(unknown)} is neither a task of lm-evaluation-harness nor a YAML "
            "file. `lm_eval ls tasks` lists them."
        )
    _load(manager, names)
    return manager


def _load(manager: Any, names: Sequence[str]) -> None:
    """Fetch the tasks' data sets: `evaluate` reads them again from where the hub's client keeps them."""
    from datasets.exceptions import DatasetsError

    try:
        manager.load(list(names))
    except (OSError, ValueError, RuntimeError, ImportError, DatasetsError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--abilities.lm_eval_tasks={list(names)}: the harness could not load them: {said}. Their data sets come "
            "from the Hugging Face hub: fetch them where it can be reached and bring its cache along (HF_HOME), or "
            "name tasks as YAML files over data that is here."
        ) from error


def evaluate(
    lm: LanguageModel, names: Sequence[str], manager: Any, limit: int | None, max_tokens: int = 8192
) -> dict[str, Score]:
    """Score a model in memory on tasks of lm-evaluation-harness.

    Args:
        lm: The language model.
        names: The tasks.
        manager: What `find_tasks` found.
        limit: Items of each task, the first ones; all if None.
        max_tokens: Tokens in one forward pass, at most; the batch size follows from the context length.

    Returns:
        The score of each task that was run, as `lm_eval_<task>`.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    rows = max(1, max_tokens // lm.context)
    wrapped = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, backend="causal", batch_size=rows)
    # It sets all seeds again: the caller keeps its random state to itself. Without bootstrap no error is estimated.
    found = simple_evaluate(
        wrapped, tasks=list(names), task_manager=manager, limit=limit, bootstrap_iters=1000, log_samples=False
    )
    results: dict[str, dict[str, Any]] = found["results"]
    samples: dict[str, dict[str, int]] = found["n-samples"]
    return {
        f"lm_eval_{task}": Score(_metrics(fields), samples[task]["effective"])
        for task, fields in results.items()
        if task in samples
    }


def _metrics(fields: dict[str, Any]) -> dict[str, Estimate]:
    """Metrics and standard errors from the harness's flat table, such as `acc,none` beside `acc_stderr,none`."""
    metrics = {}
    for key, value in fields.items():
        name, _, filtered = key.partition(",")
        if not filtered or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = fields.get(f"{name}_stderr,{filtered}")
        shown = name if filtered == "none" else f"{name}_{filtered}"
        metrics[shown] = Estimate(float(value), float(error) if isinstance(error, int | float) else math.nan)
    return metrics
