"""What an edit costs on paper: `python -m benchmarks.cost_model` prints edits a second for models and machines.

A forward pass over some tokens takes its products' operations at the machine's product rate, the numbers that lie
between the products at a price for each, and a price for every block that is called. The prices of the CPU come from
`benchmarks.profile` of one batch, that of passes without gradients from the benchmark of evaluation; they stand in
`CORE`. `tests/benchmarks/test_cost_model.py` holds what follows from them to costs that were measured otherwise. Prices
of the GPU are its maker's figures and a guess: nothing has run there.
"""

import argparse
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

PER_HIDDEN, PER_WIDTH = 16, 5  # numbers between the products, as `editing/memory_estimate.py` counts those kept


class Shape(NamedTuple):
    """A model of LLaMA's kind."""

    layers: int
    hidden: int
    width: int
    key_value: int
    vocabulary: int

    @property
    def block(self) -> int:
        """Parameters of a block."""
        return self.hidden * (2 * self.hidden + 2 * self.key_value + 3 * self.width)

    @property
    def head(self) -> int:
        """Parameters of the head."""
        return self.hidden * self.vocabulary


class Machine(NamedTuple):
    """Prices.

    Attributes:
        rate: Operations a second of bfloat16 products.
        exact: Those of float32 products, for the solves.
        number: Seconds for a number between the products, forwards and backwards.
        call: Seconds for a block that is called, forwards and backwards.
        memory: Bytes a second: a pass cannot be faster than its weights are read.
        devices: How many share the requests of a batch; solves are done by each.
    """

    rate: float
    exact: float
    number: float
    call: float
    memory: float
    devices: int = 1


class Work(NamedTuple):
    """What a batch asks.

    Attributes:
        batch: Edits.
        contexts: Context templates, the empty one included.
        before: Columns before the subject's last token of a row that no other row shares.
        after: Columns from there to the target's last token but one.
        predicted: Tokens of a target.
        evaluations: Of the loss, mean over the edits.
        longest: Of the loss, of the edit that takes most.
        edited: How many matrices are edited.
        depth: Share of the blocks up to the target layer.
    """

    batch: int = 10
    contexts: int = 3
    before: float = 5.0
    after: float = 7.3
    predicted: float = 1.6
    evaluations: float = 11.4
    longest: int = 22
    edited: int = 5
    depth: float = 7 / 30


SHAPES = {
    "SmolLM2-135M": Shape(30, 576, 1536, 192, 49152),
    "Qwen2.5-0.5B": Shape(24, 896, 4864, 128, 151936),
    "LLaMA3.2-1B": Shape(16, 2048, 8192, 512, 128256),
    "LLaMA3-8B": Shape(32, 4096, 14336, 1024, 128256),
    "LLaMA3-70B": Shape(80, 8192, 28672, 1024, 128256),
}
# Measured on one core of an AMD EPYC (AVX512-BF16): `benchmarks.profile --steps 6`. Ten requests with 238 columns after
# their subjects went six times through 23 blocks: 1.2 s for attention, norms and element-wise work, 0.9 s for
# Python, which the profiler makes dearer than it is.
CORE = Machine(rate=200e9, exact=70e9, number=2.2e-9, call=6.3e-3, memory=15e9)
# An H100's data sheet, half of its product rate; three reads and writes of 2 bytes for a number; a millisecond a block.
GPU = Machine(rate=495e12, exact=40e12, number=12 / 3.35e12, call=1e-3, memory=3.35e12)
MACHINES = {"one CPU core": CORE, "one H100": GPU, "eight H100": GPU._replace(devices=8)}
FORWARD = 0.6  # of what a number costs in both directions; a third of what a call does


def forward(shape: Shape, machine: Machine, tokens: float, blocks: float, predicted: float = 0.0) -> float:
    """Seconds of a pass without a gradient over some tokens, `predicted` of them through the head."""
    spent = products(shape, tokens, blocks, predicted) / machine.rate
    spent += FORWARD * numbers(shape, tokens, blocks) * machine.number + blocks * machine.call / 3
    return max(spent, _reading(shape, machine, blocks, predicted))


def evaluation(shape: Shape, machine: Machine, tokens: float, blocks: float, predicted: float) -> float:
    """Seconds of a pass with its gradient for the states."""
    spent = 2 * products(shape, tokens, blocks, predicted) / machine.rate
    spent += numbers(shape, tokens, blocks) * machine.number + blocks * machine.call
    return max(spent, 2 * _reading(shape, machine, blocks, predicted))


def products(shape: Shape, tokens: float, blocks: float, predicted: float) -> float:
    """Operations of the products of a pass in one direction."""
    return 2 * (tokens * blocks * shape.block + predicted * shape.head)


def numbers(shape: Shape, tokens: float, blocks: float) -> float:
    """Numbers between the products."""
    return tokens * blocks * (PER_HIDDEN * shape.hidden + PER_WIDTH * shape.width)


def _reading(shape: Shape, machine: Machine, blocks: float, predicted: float) -> float:
    return 2 * (blocks * shape.block + (shape.head if predicted else 0)) / machine.memory


def targets(shape: Shape, machine: Machine, work: Work) -> float:
    """Seconds an edit for its target value."""
    mine = work.batch / machine.devices
    below = round(work.depth * shape.layers)
    rows, predicted = mine * (work.contexts * work.after + 1), mine * (work.contexts * work.predicted + 1)
    spent = forward(shape, machine, mine * work.contexts * work.before, shape.layers)
    spent += forward(shape, machine, rows, below)
    left = work.evaluations / work.longest  # of the requests, mean over the evaluations that the last one takes
    above = shape.layers - below
    spent += work.longest * evaluation(shape, machine, left * rows, above, left * predicted)
    return spent / work.batch


def keys(shape: Shape, machine: Machine, work: Work, columns: float = 13.0) -> float:
    """Seconds an edit for keys and values, and the keys to remember."""
    blocks = round(work.depth * shape.layers) + work.edited
    return forward(shape, machine, work.batch / machine.devices * work.contexts * columns, blocks) / work.batch


def solves(shape: Shape, machine: Machine, work: Work) -> float:
    """Seconds an edit for AlphaEdit's solves and SPHERE's projections of all matrices.

    Ways into the null space and out of it, the system of the batch's keys, the product with the residuals; the Gram
    matrix of the rows, its decomposition (nine cubes), the projection on half of the directions.
    """
    n, rows, columns = work.batch, shape.hidden, shape.width
    solve = 2 * n * columns * (4 * columns + rows) + 4 * n * n * columns
    small = min(rows, columns)
    sphere = 2 * rows * columns * small + 9 * small**3 + 2 * rows * columns * small
    return work.edited * (solve + sphere) / machine.exact / n


def edit(shape: Shape, machine: Machine, work: Work) -> float:
    """Seconds an edit. Nothing in it depends on how many edits came before."""
    return targets(shape, machine, work) + keys(shape, machine, work) + solves(shape, machine, work)


def main() -> None:
    """Print edits a second by model and machine, by batch size, and where an 8B model's time would go."""
    argparse.ArgumentParser(prog="python -m benchmarks.cost_model", description=__doc__).parse_args()
    console = Console(width=120)
    table = Table("model", *MACHINES, title="edits a second, batches of 100, 6 contexts")
    work = Work(batch=100, contexts=6)
    for name, shape in SHAPES.items():
        table.add_row(name, *(f"{1 / edit(shape, machine, work):.3g}" for machine in MACHINES.values()))
    console.print(table)
    table = Table("batch", *MACHINES, title="edits a second of LLaMA3-8B by batch size, 6 contexts")
    for batch in (1, 10, 100, 1000):
        cells = (edit(SHAPES["LLaMA3-8B"], m, work._replace(batch=batch)) for m in MACHINES.values())
        table.add_row(str(batch), *(f"{1 / cell:.3g}" for cell in cells))
    console.print(table)
    table = Table("part", *MACHINES, title="milliseconds an edit of LLaMA3-8B, batches of 100, 6 contexts")
    for part in (targets, keys, solves):
        cells = (part(SHAPES["LLaMA3-8B"], machine, work) for machine in MACHINES.values())
        table.add_row(part.__name__, *(f"{1e3 * cell:.3g}" for cell in cells))
    console.print(table)


if __name__ == "__main__":
    main()
