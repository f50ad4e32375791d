"""The cells of the study: which runs there are, and what each preset takes of them."""

from typing import NamedTuple

from benchmarks.cells import Cell

STRENGTH = {"alphaedit": 0.5}  # the paper's α: 0.5 on AlphaEdit, 0.8 on every other method
SAMPLED = ("--model.evaluation.validation_records=400",)  # edits that a long run scores at most before its end
# Two tasks that the unedited model is good at; at the others it guesses.
ABILITIES = ("--abilities.tasks=[sst2,gsm8k_gold_hint]", "--abilities.limit=200")
MAPS = "--config=callbacks/geometry"
COST = {"rome": 1.5, "ft": 0.4, "ultraedit": 0.15}  # seconds an edit on one core, before anything was measured
CALLBACKS = {"rect": ("memit", "callbacks/rect"), "prune": ("memit", "callbacks/prune")}

# SPHERE's variants and their arguments. `plain` is the method alone, `anchored_plain` it with norm-anchored targets.
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": ("--projection.strength=0",),
    "current": ("--projection.basis=current",),
    "pretrained": ("--projection.basis=pretrained",),
    "after_loop": ("--projection.when=step",),
    "two_sided": ("--projection.sides=both", "--projection.strength=1", "--projection.basis=pretrained"),
    "anchored_plain": ("--projection.strength=0", "--model.targets.anchor=true"),
    "anchored_current": ("--model.targets.anchor=true",),
}


class Key(NamedTuple):
    """What a cell's name says.

    Attributes:
        data: `counterfact` or `zsre`.
        method: Name of the method's file in study/conf, `rect` or `prune`.
        variant: `plain`, one of SPHERE's variants, or a point of its sweep.
        label: The method's own settings where they are not the file's; empty otherwise.
        draw: Which records in which order; 0 are those for tuning.
        edits: How many edits.
    """

    data: str
    method: str
    variant: str
    label: str
    draw: int
    edits: int

    @property
    def name(self) -> str:
        """Name of the cell's files."""
        parts = (self.data, self.method, self.variant, self.label, f"draw{self.draw}", str(self.edits))
        return "-".join(part for part in parts if part)

    @property
    def settings(self) -> str:
        """What it shares with the runs that differ from it in SPHERE, draw and length alone."""
        return "-".join(part for part in (self.data, self.method, self.label) if part)

    @property
    def is_swept(self) -> bool:
        """Whether it is a point of the sweep of η and α."""
        return "_eta" in self.variant

    @property
    def partner(self) -> "Key":
        """The same run without SPHERE, whatever its length; itself if it is one."""
        return self._replace(variant="anchored_plain" if self.variant.startswith("anchored") else "plain", edits=0)


def papers_strength(method: str) -> float:
    """The paper's α for a method."""
    return STRENGTH.get(method, 0.8)


def swept(variant: str) -> tuple[str, float, float]:
    """Basis, η and α of a point of the sweep.

    Example:
        >>> swept("pretrained_eta0.3_alpha0.25")
        ('pretrained', 0.3, 0.25)
    """
    basis, ratio, strength = variant.split("_")
    return basis, float(ratio.removeprefix("eta")), float(strength.removeprefix("alpha"))


def parse(name: str) -> Key:
    """Read a cell's name.

    Example:
        >>> parse("counterfact-alphaedit-current-ridge1-draw2-800")
        Key(data='counterfact', method='alphaedit', variant='current', label='ridge1', draw=2, edits=800)
    """
    data, method, variant, *label, draw, edits = name.split("-")
    return Key(data, method, variant, "-".join(label), int(draw.removeprefix("draw")), int(edits))


def conf(name: str) -> str:
    """A file of the study's own configurations; its path is that from the top of a checkout."""
    return f"study/conf/{name}.yaml"


def cell(
    method: str,
    variant: str = "plain",
    *,
    data: str = "counterfact",
    draw: int = 1,
    edits: int = 800,
    label: str = "",
    more: tuple[str, ...] = (),
) -> Cell:
    """One cell; `more` are the arguments that its label stands for."""
    base, *callbacks = CALLBACKS.get(method, (method,))
    files = [conf("base"), conf(base), *callbacks]
    files += [] if data == "counterfact" else [conf(data)]
    arguments = [*(f"--config={name}" for name in files), *_sphere(method, variant), *more, f"--data.limit={edits}"]
    return Cell(Key(data, method, variant, label, draw, edits).name, tuple(arguments), edits, COST.get(method, 0.4))


def _sphere(method: str, variant: str) -> list[str]:
    """The arguments of SPHERE; PRUNE projects the restrained change itself."""
    strength = papers_strength(method)
    if method == "prune":
        inner = 0.0 if variant == "plain" else strength
        return ["--projection.strength=0", f"--trainer.callbacks.init_args.project_strength={inner}"]
    if variant in VARIANTS:
        return [f"--projection.strength={strength}", *VARIANTS[variant]]
    basis, ratio, alpha = swept(variant)
    return [
        f"--projection.cumulative_ratio={ratio:g}",
        f"--projection.strength={alpha:g}",
        f"--projection.basis={basis}",
    ]


def maps(batches: int) -> tuple[str, ...]:
    """Draw heat maps of the weights' rows after so many batches."""
    return MAPS, f"--trainer.callbacks.init_args.every_n_batches={batches}"


def alphaedit(variant: str, ridge: float, draw: int = 1, edits: int = 800, data: str = "counterfact") -> Cell:
    """AlphaEdit with a ridge of its own; a long run scores a sample, and general abilities, on its way."""
    more: tuple[str, ...] = (f"--model.method.init_args.ridge={ridge:g}",)
    if edits > 800:
        more += (*SAMPLED, *ABILITIES, "--abilities.every=4")
    if edits > 800 and draw == 1:
        more += maps(edits // 100)
    return cell("alphaedit", variant, data=data, draw=draw, edits=edits, label=f"ridge{ridge:g}", more=more)


def small_batches(
    method: str,
    variant: str,
    *,
    data: str = "counterfact",
    draw: int = 1,
    edits: int = 800,
    label: str = "batch10",
    every: int = 10,
    more: tuple[str, ...] = (),
) -> Cell:
    """A cell in batches of ten, scored after every so many of them."""
    batches = ("--data.batch_size=10", f"--trainer.val_check_interval={every}")
    return cell(method, variant, data=data, draw=draw, edits=edits, label=label, more=(*more, *batches))


def tuning(method: str, label: str, *more: str) -> Cell:
    """A candidate of a method's own settings, on all records for tuning, scored when all are edited."""
    return cell(method, draw=0, edits=400, label=f"tune_{label}", more=(*more, "--trainer.val_check_interval=4"))


RIDGE_10 = ("--model.method.init_args.ridge=10",)
LAYERS = "--model.layers=[2,3,4,5,6]"
RATE = "--model.method.init_args.learning_rate="
WEIGHT = "--model.method.init_args.second_moment_weight="
# The default run's settings, six times as dear as the study's, and what they were before the study.
DEARER = (
    *RIDGE_10,
    LAYERS,
    "--model.contexts=2",
    "--model.targets.steps=25",
    "--model.targets.learning_rate=0.5",
    "--model.targets.kl_weight=0.3",
)
DEFAULT = {
    "default": (*DEARER, "--model.targets.stop_loss=0.4", "--model.targets.anchor=false"),
    "default-stop0.3": (*DEARER, "--model.targets.stop_loss=0.3", "--model.targets.anchor=false"),
    "default-stop0.3-anchored": (*DEARER, "--model.targets.stop_loss=0.3", "--model.targets.anchor=true"),
}
PAIR = ("plain", "current")
MEMORY = "memory"  # begins the label of a method that was given a memory of earlier keys
QUICK = [alphaedit(variant, 1, draw) for draw in (1, 2, 3) for variant in PAIR]
# The paper's ridge, which the tuning found too, to 1.04 edits for each input dimension, as its 15,000 on LLaMA3-8B.
LONG = [alphaedit(variant, 10, draw, 1600) for draw in (1, 2, 3) for variant in PAIR]
# Past what a method bears: AlphaEdit to 3.3 edits an input dimension, in 50 updates; the others wear out sooner.
FAR = [
    cell(
        "alphaedit",
        variant,
        draw=4,
        edits=5000,
        label="ridge10-far",
        more=(*RIDGE_10, *SAMPLED, *ABILITIES, "--abilities.every=10", "--trainer.val_check_interval=5"),
    )
    for variant in PAIR
]
FAR += [
    cell(method, variant, draw=4, edits=2000, label="far", more=(*SAMPLED, "--trainer.val_check_interval=2"))
    for method in ("memit", "rect", "prune")
    for variant in PAIR
]
OTHERS = [
    cell(method, variant, edits=200 if method == "rome" else 800)
    for method in ("ultraedit", "memit", "rect", "prune", "ft", "rome")
    for variant in PAIR
]
# Settings that the tuning preferred to those of OTHERS.
TUNED = [
    cell(method, variant, label="tuned", more=more)
    for method, more in (("ultraedit", (f"{RATE}0.0001",)), ("ft", ("--model.layers=[6]",)))
    for variant in PAIR
]
ROME = [
    cell("rome", variant, draw=draw, edits=200, more=maps(200) if draw == 2 else ())
    for draw in (2, 3)
    for variant in PAIR
]
# Many small updates: the paper's 15,000 edits are 150 of them, eight hundred in batches of ten are 80.
STEPS = [small_batches("memit", variant, draw=draw) for draw in (1, 2, 3) for variant in PAIR]
STEPS += [small_batches("alphaedit", variant, label="ridge10-batch10", more=RIDGE_10) for variant in PAIR]
STEPS += [small_batches(method, variant, edits=600) for method in ("rect", "prune") for variant in PAIR]
# AlphaEdit beside the long plain run, at the ridge that the tuning found.
WHY = [
    alphaedit(variant, 10, edits=edits)
    for variant, edits in (
        ("anchored_plain", 800),
        ("anchored_current", 800),
        ("current_eta0.9_alpha1", 400),  # all that SPHERE can remove
        ("pretrained", 800),
        ("after_loop", 800),
        ("two_sided", 800),
    )
]
# SPHERE's variants and its η and α where it does most: MEMIT in small batches. The run without SPHERE is α = 0.
WHY += [
    small_batches("memit", variant, edits=600)
    for variant in ("pretrained", "after_loop", "two_sided", "anchored_plain", "anchored_current")
]
# Is it the memory of earlier keys that leaves SPHERE nothing to do on AlphaEdit? The same memory, given to MEMIT.
WHY += [
    small_batches(
        "memit", variant, edits=600, label="memory-batch10", more=("--model.method.init_args.remember_past=true",)
    )
    for variant in PAIR
]
WHY += [cell("alphaedit", "plain", label="default", more=DEFAULT["default"])]
WHY += [cell("alphaedit", "current", label=label, more=more) for label, more in DEFAULT.items()]
SWEEP = [
    small_batches("memit", f"{basis}_eta{eta:g}_alpha{alpha:g}", edits=600, every=30)
    for basis in ("current", "pretrained")
    for alpha in (1.0, 0.5, 0.8, 0.25)
    for eta in (0.5, 0.9, 0.3, 0.7)
    if (eta, alpha) != (0.5, 0.8)  # a variant of its own
]
ZSRE = [
    *(small_batches("memit", variant, data="zsre", edits=600) for variant in PAIR),
    *(alphaedit(variant, 10, edits=600, data="zsre") for variant in PAIR),
    *(cell(method, variant, data="zsre", edits=600) for method in ("memit", "ultraedit", "ft") for variant in PAIR),
    *(cell("rome", variant, data="zsre", edits=200) for variant in PAIR),
    *(small_batches(method, variant, data="zsre", edits=600) for method in ("rect", "prune") for variant in PAIR),
]
TUNING = [
    *(tuning("alphaedit", f"ridge{r:g}", f"--model.method.init_args.ridge={r:g}") for r in (1, 10, 100)),
    tuning("alphaedit", "early", LAYERS),
    *(tuning("memit", f"weight{w}", f"{WEIGHT}{w}") for w in (100, 1000, 15000)),
    tuning("memit", "early", LAYERS),
    *(tuning("ft", f"rate{r}", f"{RATE}{r}") for r in (0.00005, 0.0005, 0.002)),
    tuning("ft", "early", "--model.layers=[6]"),
    *(tuning("ultraedit", f"rate{r}", f"{RATE}{r}") for r in (0.000001, 0.00001, 0.0001)),
    tuning("ultraedit", "early", LAYERS),
]
GROUPS = (QUICK, WHY, OTHERS, TUNED, ROME, STEPS, LONG, FAR, ZSRE, SWEEP, TUNING)
FULL = list({cell.name: cell for group in GROUPS for cell in group}.values())
PRESETS = {
    "quick": QUICK,
    "why": WHY,
    "others": OTHERS,
    "tuned": TUNED,
    "rome": ROME,
    "steps": STEPS,
    "long": LONG,
    "far": FAR,
    "zsre": ZSRE,
    "sweep": SWEEP,
    "tune": TUNING,
    "full": FULL,
}
