"""Where a batch's time goes: `python -m benchmarks.profile`, as JSON with `--json FILE`.

One batch is edited with the default run's settings under PyTorch's profiler. Each operation's own time counts for the
part of the program that called it, forwards or (by autograd's sequence numbers) backwards. The profiler makes small
operations dearer than they are: seconds are each part's share of the time of the same batch without it. Beside each
stands its floor: operations at the machine's product rate, or bytes that must be read and written at its copying rate.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import profile, record_function

from benchmarks import whole_run
from benchmarks.algebra import made_moment
from benchmarks.language_models import DEFAULT, SHAPES, contexts_of, fitting_model, model_of
from benchmarks.measure import device_name, matmul_rate, seconds
from sphere_pl.data.datamodule import EditDataModule
from sphere_pl.editing import objective, target_rows, walks
from sphere_pl.methods import AlphaEdit
from sphere_pl.model import attention, products
from sphere_pl.model.language_model import LanguageModel

PRODUCTS, ATTENTION, NORMS = "products", "attention", "norms and rotary embeddings"
VOCABULARY, REST, PYTHON = "log-softmax over the vocabulary", "activations, sums and copies", "Python and dispatch"
PACKING, OPTIMIZER, SOLVE = "packing and masks", "optimizer", "solves and SPHERE"
PARTS = (PRODUCTS, ATTENTION, NORMS, VOCABULARY, REST, PYTHON, PACKING, OPTIMIZER, SOLVE)
_MARK, _BACKWARD = "part: ", "autograd::engine::evaluate_function: "
_PRODUCTS = {"aten::mm", "aten::addmm", "mkldnn::_linear_pointwise"}
_VIEWS = {
    f"aten::{name}"
    for name in (
        *("view", "transpose", "t", "as_strided", "slice", "select", "expand", "unsqueeze", "squeeze", "split"),
        *("split_with_sizes", "unflatten", "flatten", "reshape", "_unsafe_view", "_reshape_alias", "detach", "narrow"),
        *("matmul", "linear", "to", "unbind", "permute", "alias", "resolve_conj", "view_as", "result_type", "empty"),
        *("empty_strided", "empty_like"),
    )
}


class Part(NamedTuple):
    """One part of a batch's time.

    Attributes:
        share: Of the batch.
        seconds: Of the batch without the profiler.
        floor: Seconds that it must take on this machine.
    """

    share: float
    seconds: float
    floor: float


class Event(NamedTuple):
    """An operation as the profiler saw it; times in nanoseconds."""

    name: str
    start: int
    duration: int
    sequence: int
    shapes: list[list[int]]


def matrix_units(flags: str | None = None) -> bool:
    """Whether the processor has matrix units for bfloat16 (AMX), by what Linux says of it.

    Example:
        >>> matrix_units("avx512f amx_bf16"), matrix_units("avx512f")
        (True, False)
    """
    known = Path("/proc/cpuinfo")
    text = (known.read_text(encoding="utf-8") if known.exists() else "") if flags is None else flags
    return "amx_bf16" in text.split()


def profiled(batch: int = 10, model: str = DEFAULT, steps: int | None = None) -> dict[str, Part]:
    """Edit one batch three times: to warm up, against the clock, under the profiler.

    Args:
        batch: Edits.
        model: `DEFAULT` or a key of `SHAPES`.
        steps: Evaluations of the targets at most; the default run's if None.
    """
    problem, states = _problem(batch, model)
    settings = whole_run.SETTINGS if steps is None else replace(whole_run.SETTINGS, steps=steps)
    with mock.patch.object(whole_run, "SETTINGS", settings), whole_run.frozen(problem):
        whole_run.edit(problem, states)
        whole = seconds(lambda: whole_run.edit(problem, states))
        moved: Counter[str] = Counter()
        with _marked(problem.lm, moved), profile(record_shapes=True) as seen, record_function(_MARK + PYTHON):
            whole_run.edit(problem, states)
    own, operations = times([_event(each) for each in seen.profiler.kineto_results.events()])
    return _parts(own, operations, moved, whole, problem.lm.dtype)


def _problem(batch: int, model: str) -> tuple[whole_run._Problem, list[Any]]:
    """A batch of the default run; second moments are made up, which no time depends on."""
    data = EditDataModule(offset=300, limit=batch)
    data.setup("fit")
    lm = model_of(model, "bfloat16")
    sites = lm.sites(whole_run.LAYERS)
    moments = [made_moment(site.read().shape[1]) for site in sites]
    contexts = contexts_of("", lm, 2)
    problem = whole_run._Problem(lm, [data.requests], contexts, [site.read() for site in sites], moments)
    return problem, whole_run.prepare(problem)


def _event(each: Any) -> Event:
    return Event(each.name(), each.start_ns(), each.duration_ns(), each.sequence_nr(), each.shapes())


@contextmanager
def _marked(lm: LanguageModel, moved: Counter[str]) -> Iterator[None]:
    """Let every part say its name to the profiler, and count the bytes that it is given and gives."""
    places: list[tuple[Any, str, str]] = [
        (attention, "grouped_attention", ATTENTION),
        (objective.Objective, "_by_parts", VOCABULARY),
        (LanguageModel, "logits", VOCABULARY),
        *((objective, name, PACKING) for name in ("one_pass", "select")),
        (target_rows, "pad", PACKING),
        (products, "_reordered", PACKING),
        (LanguageModel, "block_calls", PACKING),
        *((walk, "step", OPTIMIZER) for walk in (walks.AdamWalk, walks.PolyakWalk)),
        *((AlphaEdit, name, SOLVE) for name in ("update", "remember")),
        *((whole_run, name, SOLVE) for name in ("principal_directions", "project_out")),
    ]
    of_blocks = sys.modules[type(lm.block(0)).__module__]
    if hasattr(of_blocks, "apply_rotary_pos_emb"):
        places.append((of_blocks, "apply_rotary_pos_emb", NORMS))
    norms = [each for each in lm.model.modules() if "norm" in type(each).__name__.lower()]
    with ExitStack() as stack:
        for owner, name, part in [*places, *((each, "forward", NORMS) for each in norms)]:
            stack.enter_context(mock.patch.object(owner, name, _marking(getattr(owner, name), part, moved)))
        stack.enter_context(mock.patch.object(LanguageModel, "run", _counting(LanguageModel.run, moved)))
        yield


def _marking(call: Callable[..., Any], part: str, moved: Counter[str]) -> Callable[..., Any]:
    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(_MARK + part):
            found = call(*args, **kwargs)
        moved[part] += _passes() * sum(each.nbytes for each in _tensors((args, kwargs, found)))
        return found

    return marked


def _counting(run: Callable[..., Tensor], moved: Counter[str]) -> Callable[..., Tensor]:
    """What lies between the products of blocks: two sums of the stream, the MLP's gate, values and activation."""

    def counted(lm: LanguageModel, hidden: Tensor, calls: Any, start: int, stop: int) -> Tensor:
        width = getattr(lm.config, "intermediate_size", 4 * hidden.shape[-1]) / hidden.shape[-1]
        moved[REST] += int(_passes() * (stop - start) * hidden.nbytes * (4 + 3 * width))
        return run(lm, hidden, calls, start, stop)

    return counted


def _passes() -> int:
    """How often something is gone through: once, and twice as much for its gradient."""
    return 3 if torch.is_grad_enabled() else 1


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


def times(events: list[Event]) -> tuple[Counter[str], Counter[str]]:
    """Nanoseconds of each part, and operations of its matrix products."""
    own, operations = Counter[str](), Counter[str]()
    forward: dict[int, str] = {}
    stack: list[tuple[int, str]] = []  # where each of the open events ends, and its label
    charged: list[str] = []  # the part that each open event's time counts for
    for event in sorted(events, key=lambda each: (each.start, -each.duration)):
        while stack and stack[-1][0] <= event.start:
            stack.pop()
            charged.pop()
        label = _label(event, stack[-1][1] if stack else PYTHON, forward)
        part = _part(event.name, label)
        if charged:
            own[charged[-1]] -= event.duration
        own[part] += event.duration
        operations[part] += _operations(event)
        stack.append((event.start + event.duration, label))
        charged.append(part)
    return own, operations


def _label(event: Event, around: str, forward: dict[int, str]) -> str:
    """The part that called an operation."""
    if event.name.startswith(_MARK):
        return event.name.removeprefix(_MARK)
    if event.name.startswith(_BACKWARD):
        return forward.get(event.sequence, REST)
    if event.sequence >= 0 and "Backward" not in event.name:
        forward.setdefault(event.sequence, around)
    return around


def _part(name: str, label: str) -> str:
    """The part that an operation's own time counts for."""
    if label == SOLVE:
        return SOLVE
    if name in _PRODUCTS:
        return PRODUCTS
    if "scaled_dot_product" in name or name == "aten::bmm":
        return ATTENTION
    if name in _VIEWS or name.startswith((_BACKWARD, _MARK)) or name.endswith("Backward0"):
        return label if label == PACKING else PYTHON
    return REST if label == PYTHON else label


def _operations(event: Event) -> int:
    """Floating-point operations of a matrix product; the batched ones are attention's.

    Example:
        >>> _operations(Event("aten::mm", 0, 1, 0, [[2, 3], [3, 4]]))
        48
    """
    if event.name == "mkldnn::_linear_pointwise":
        return 2 * _size(event.shapes[0]) * event.shapes[1][0]
    if event.name in {"aten::mm", "aten::bmm", "aten::addmm"}:
        left, right = event.shapes[-2:] if event.name != "aten::addmm" else event.shapes[1:3]
        return 2 * _size(left) * right[-1]
    return 0


def _size(shape: list[int]) -> int:
    return int(torch.Size(shape).numel())


def _parts(
    own: Counter[str], operations: Counter[str], moved: Counter[str], whole: float, dtype: torch.dtype
) -> dict[str, Part]:
    """Shares, seconds and floors."""
    copying, exact = copying_rate(), matmul_rate(torch.float32, 512)
    floors = {part: moved[part] / copying for part in (NORMS, VOCABULARY, REST)} | {
        PRODUCTS: operations[PRODUCTS] / matmul_rate(dtype),
        ATTENTION: max(operations[ATTENTION] / exact, moved[ATTENTION] / copying),
        SOLVE: operations[SOLVE] / exact,
    }
    total = sum(own.values())
    return {p: Part(own[p] / total, own[p] / total * whole, floors.get(p, 0.0)) for p in PARTS}


def copying_rate(numbers: int = 2**18) -> float:
    """Bytes read and written a second while a tensor of a pass's size is copied: the best of five."""
    source, target = torch.ones(numbers), torch.empty(numbers)
    rounds = 50

    def copy() -> None:
        for _ in range(rounds):
            target.copy_(source)

    return 2 * source.nbytes * rounds / min(seconds(copy) for _ in range(5))


def show(parts: dict[str, Part]) -> None:
    """Print the parts, those that take most first."""
    table = Table("part", "share", "seconds", "floor, s", title=f"{device_name()}, {machine()}")
    for name, part in sorted(parts.items(), key=lambda entry: -entry[1].seconds):
        table.add_row(name, f"{part.share:.1%}", f"{part.seconds:.3f}", f"{part.floor:.3f}")
    table.add_row(
        "all", "", f"{sum(p.seconds for p in parts.values()):.3f}", f"{sum(p.floor for p in parts.values()):.3f}"
    )
    Console(width=110).print(table)


def machine() -> str:
    """Whether there are matrix units, for people."""
    return "with matrix units (AMX)" if matrix_units() else "without matrix units (AMX)"


def main() -> None:
    """Profile, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=10, help="edits in the batch")
    parser.add_argument("--steps", type=int, help="evaluations of the targets at most")
    parser.add_argument("--model", choices=[DEFAULT, *SHAPES], default=fitting_model())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    parts = profiled(args.batch, args.model, args.steps)
    show(parts)
    if args.json:
        found = {"device": device_name(), "amx": matrix_units(), "batch": args.batch, "steps": args.steps}
        found["parts"] = {name: part._asdict() for name, part in parts.items()}
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
