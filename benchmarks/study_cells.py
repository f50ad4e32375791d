"""The cells of the study: which runs there are, and what each preset takes of them."""

from benchmarks.cells import Cell

STRENGTH = {"alphaedit": 0.5}  # the paper's α: 0.5 on AlphaEdit, 0.8 on every other method
COST = {"rome": 2.0, "ft": 0.5, "ultraedit": 0.2}  # seconds an edit, before anything was measured
CALLBACKS = {"rect": ("memit", "callbacks/rect"), "prune": ("memit", "callbacks/prune")}

# SPHERE's variants: name and arguments. `plain` is the method alone.
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": ("--projection.strength=0",),
    "current": ("--projection.basis=current",),
    "pretrained": ("--projection.basis=pretrained",),
    "after_loop": ("--projection.when=step",),
    "two_sided": ("--projection.sides=both", "--projection.strength=1", "--projection.basis=pretrained"),
    "anchored_plain": ("--projection.strength=0", "--model.targets.anchor=true"),
    "anchored_current": ("--model.targets.anchor=true",),
}


def cell(
    method: str,
    variant: str = "plain",
    *,
    data: str = "counterfact",
    draw: int = 1,
    edits: int = 1000,
    label: str = "",
    more: tuple[str, ...] = (),
) -> Cell:
    """One cell; its name says all: data-method-variant-label-draw-edits."""
    base, *callbacks = CALLBACKS.get(method, (method,))
    sphere = _sphere(method, variant)
    files = ["experiment/study/base", f"experiment/study/{base}", *callbacks]
    files += [] if data == "counterfact" else [f"experiment/study/{data}"]
    arguments = [*(f"--config={name}" for name in files), *sphere, *more, f"--data.limit={edits}"]
    name = "-".join(part for part in (data, method, variant, label, f"draw{draw}", str(edits)) if part)
    return Cell(name, tuple(arguments), edits, COST.get(method, 0.5))


def _sphere(method: str, variant: str) -> list[str]:
    """The arguments of SPHERE; PRUNE projects the restrained change itself."""
    strength = STRENGTH.get(method, 0.8)
    if method == "prune":
        inner = 0.0 if variant == "plain" else strength
        return ["--projection.strength=0", f"--trainer.callbacks.init_args.project_strength={inner}"]
    return [f"--projection.strength={strength}", *VARIANTS[variant]]


def draw_of(one: Cell) -> tuple[str, int]:
    """Data and draw of a cell."""
    parts = one.name.split("-")
    return parts[0], int(parts[-2].removeprefix("draw"))


def ridge(value: float) -> dict[str, object]:
    """AlphaEdit's regulariser, where it is not the study's."""
    return {"label": f"ridge{value:g}", "more": (f"--model.method.init_args.ridge={value:g}",)}


def sweep(edits: int, basis: str) -> list[Cell]:
    """SPHERE's η and α on AlphaEdit with one basis; α = 0 is the plain method."""
    return [
        cell(
            "alphaedit",
            basis,
            edits=edits,
            label=f"eta{eta:g}_alpha{alpha:g}",
            more=(f"--projection.cumulative_ratio={eta}", f"--projection.strength={alpha}"),
        )
        for eta in (0.3, 0.5, 0.7, 0.9)
        for alpha in (0.25, 0.5, 0.8, 1.0)
    ]


QUICK = [
    cell("alphaedit", variant, draw=draw, edits=800, **ridge(1))
    for draw in (1, 2, 3)
    for variant in ("plain", "current")
]
FULL = [
    *QUICK,
]
PRESETS = {"quick": QUICK, "full": FULL}
