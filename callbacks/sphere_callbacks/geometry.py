"""Draw how the rows of the weights lie to each other, at the start of a fit and now."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from typing_extensions import override

from sphere_callbacks._base import StartCallback
from sphere_callbacks._weights import EditedWeight
from sphere_callbacks.functional import row_cosines, unit_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class WeightGeometry(StartCallback):
    """Draw a heat map of the cosines between rows and a t-SNE map of the rows, at the start and now.

    For each weight, evenly spaced rows are taken, always the same ones. The figure shows their cosines at the start,
    their cosines now (both on a scale from -1 to 1), and one t-SNE map of both sets of unit rows (paper, Fig. 4 and
    5). The figures go as the images ``geometry`` to every logger that has ``log_image``, and as PNG to ``output_dir``.

    Needs matplotlib and scikit-learn: ``pip install "sphere-callbacks[plots]"``.

    Cost of one figure: the t-SNE of ``2 * rows`` points; the chosen rows of the start are held in CPU memory.

    Args:
        every_n_batches: Batches between figures.
        rows: Rows to take from each weight, at least 4; all of them if it has fewer.
        output_dir: Folder for the figures, made if it is missing; ``None`` writes none.
        seed: Seed of the t-SNE.
        modules: Shell-style pattern for the names of the weights; ``None`` takes every floating matrix.

    Raises:
        ValueError: If an argument is out of range.
        MisconfigurationException: At the start of a fit, if matplotlib or scikit-learn is missing, or the figures have
            nowhere to go, or it resumes one with another count of rows.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> geometry = WeightGeometry(every_n_batches=10, rows=128, output_dir="figures", modules="*down_proj*")
        >>> trainer = Trainer(callbacks=[geometry], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(
        self,
        every_n_batches: int = 10,
        rows: int = 128,
        output_dir: str | None = None,
        seed: int = 0,
        modules: str | None = None,
    ) -> None:
        super().__init__(every_n_batches, modules)
        if rows < 4:
            raise ValueError(f"`WeightGeometry(rows={rows})` must be at least 4 for a map of the rows.")
        self.rows = rows
        self.output_dir = output_dir
        self.seed = seed

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Refuse to start without the libraries or without a place for the figures."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        missing = [name for name in ("matplotlib", "sklearn") if find_spec(name) is None]
        if missing:
            raise MisconfigurationException(
                f"`WeightGeometry` needs {' and '.join(missing)}. Install them with `pip install "
                "'sphere-callbacks[plots]'`."
            )
        if self.output_dir is None and not any(hasattr(logger, "log_image") for logger in trainer.loggers):
            raise MisconfigurationException(
                "`WeightGeometry` has nowhere to send its figures: no logger has `log_image` (WandbLogger does) and "
                "`output_dir` is None. Set one of them."
            )

    @override
    @torch.no_grad()
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Keep the rows of the start."""
        super().on_train_start(trainer, pl_module)
        self._record(trainer, pl_module)

    @override
    @torch.no_grad()
    def on_train_batch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", *_: Any, **__: Any) -> None:
        """Draw and send the figures."""
        if self._due() and trainer.is_global_zero:
            figures = {weight.name: self._draw(weight) for weight in self._weights}
            self._send(trainer, figures)
            self._save(figures)

    @override
    def _arguments(self) -> dict[str, Any]:
        return {"rows": self.rows}

    @override
    def _record(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        for weight in self._weights:
            if weight.name not in self._start:
                self._start[weight.name] = self._sample(weight)

    def _sample(self, weight: EditedWeight) -> Tensor:
        """Copy evenly spaced rows to CPU memory as float32."""
        n = weight.weight.shape[0]
        chosen = torch.linspace(0, n - 1, min(self.rows, n)).round().long()
        return weight.weight[chosen.to(weight.weight.device)].to("cpu", torch.float32, copy=True)

    def _draw(self, weight: EditedWeight) -> "Figure":
        figure = draw_geometry(self._start[weight.name], self._sample(weight), self.seed)
        figure.suptitle(f"{weight.name} after {self._batches} batches")
        return figure

    def _send(self, trainer: "pl.Trainer", figures: dict[str, "Figure"]) -> None:
        """Send all figures under one name, so that one panel of a dashboard shows them."""
        loggers = [logger for logger in trainer.loggers if hasattr(logger, "log_image")]
        if loggers:
            images = [figure_to_array(figure) for figure in figures.values()]
            for logger in loggers:
                logger.log_image(key="geometry", images=images)

    def _save(self, figures: dict[str, "Figure"]) -> None:
        if self.output_dir is not None:
            folder = Path(self.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            for name, figure in figures.items():
                figure.savefig(folder / f"{name.replace('/', '_')}-{self._batches:06d}.png")


def figure_to_array(figure: "Figure") -> Any:
    """Render a figure to an array of shape ``[height, width, 4]``, unsigned bytes."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba()).copy()  # type: ignore[no-untyped-call]


def draw_geometry(start: Tensor, now: Tensor, seed: int = 0) -> "Figure":
    """Draw the cosines between rows at the start and now, and one map of both.

    Args:
        start: Rows of shape ``[m, d]`` in CPU memory.
        now: The same rows later, of shape ``[m, d]``.
        seed: Seed of the t-SNE.

    Returns:
        A matplotlib figure with three panels; a map is left out where a row has NaN or infinity.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    everything = torch.arange(len(start))
    for panel, title, rows in zip(panels[:2], ("cosines at the start", "cosines now"), (start, now), strict=True):
        image = panel.imshow(row_cosines(rows, everything).numpy(), vmin=-1, vmax=1, cmap="RdBu_r")
        panel.set_title(title)
    figure.colorbar(image, ax=panels[:2])
    points = unit_rows(torch.cat([start, now]))  # [2 m, d]
    if bool(points.isfinite().all()):
        before, after = embed(points, seed).chunk(2)
        panels[2].scatter(*before.T, s=10, label="start")
        panels[2].scatter(*after.T, s=10, label="now")
        panels[2].legend()
    panels[2].set_title("t-SNE of unit rows")
    return figure


def embed(points: Tensor, seed: int = 0) -> Tensor:
    """Place points in the plane with t-SNE.

    Args:
        points: Tensor of shape ``[m, d]`` in CPU memory, at least 4 points.
        seed: Seed of the t-SNE.

    Returns:
        Tensor of shape ``[m, 2]``.
    """
    from sklearn.manifold import TSNE

    # The approximate method only pays off for more points, and its threads wait on each other when cores are shared.
    method = "exact" if len(points) <= 512 else "barnes_hut"
    perplexity = min(30.0, (len(points) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="random", method=method, random_state=seed)
    return torch.from_numpy(tsne.fit_transform(points.numpy()))
