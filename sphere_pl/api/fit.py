"""The run of `sphere_pl.edit`: the command line's own, on a model and facts that a program holds."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import lightning as L
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import Logger
from typing_extensions import override

from sphere_pl.api.checks import check_edits_weights
from sphere_pl.api.settings import FACTS_FILE
from sphere_pl.commands.fit import EditingCLI
from sphere_pl.data.datamodule import Fact, FactList
from sphere_pl.data.formats.jsonl import write_jsonl
from sphere_pl.editing.prepared import Prepared
from sphere_pl.history.continuation import Earlier
from sphere_pl.methods import Method
from sphere_pl.model.families import EditSite
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.loading import OpenedModel
from sphere_pl.run.checkpoints import RunCheckpoints
from sphere_pl.run.evaluated_weights import evaluated_weights
from sphere_pl.run.handover import Handover
from sphere_pl.run.loggers import MetricsFile
from sphere_pl.run.preflight import MemoryPreflight
from sphere_pl.run.results import Results, RunResults
from sphere_pl.run.target_table import TargetTable
from sphere_pl.storage.files import write_text


class Given(NamedTuple):
    """What a program gives that no command line can.

    Attributes:
        facts: The facts.
        method: The method, if it is an object.
        run_dir: The run folder; nothing is written if None.
        held: The model, if it is in memory.
        earlier: The edits that it holds, if they are not to be read from a run folder.
        prepared: What earlier calls have found out about the unedited model, if that is kept.
        alone: Whether the caller gets the model alone, without the program that puts facts in front of questions.
        again: Of the earlier edits so many are asked again, and little else is measured, since somebody waits; None
            measures what the settings say.
    """

    facts: Sequence[Fact]
    method: Method | None
    run_dir: str | Path | None
    held: tuple[OpenedModel, LanguageModel] | None = None
    earlier: Earlier | None = None
    prepared: Prepared | None = None
    alone: bool = False
    again: int | None = None


class GivenFit(EditingCLI):
    """`fit` on what is given.

    Args:
        given: What is given.
        *args: Those of `EditingCLI`.
        **kwargs: Those of `EditingCLI`.
    """

    def __init__(self, given: Given, *args: Any, **kwargs: Any) -> None:
        self.given = given
        super().__init__(*args, **kwargs)

    @property
    def results(self) -> dict[str, Any]:
        """What results.json says."""
        return self._results.results

    @property
    def in_memory(self) -> "InMemory":
        """What a further call needs."""
        return self._in_memory if self.given.run_dir is not None else cast(InMemory, self._handover)

    def release(self) -> None:
        """Let go of trainer, model and data: the parser, which jsonargparse keeps, knows this object."""
        vars(self).clear()

    @override
    def follow(self) -> None:
        """Come after the edits of an earlier call, as far as they are in memory."""
        if self.given.earlier is None:
            super().follow()
        else:
            self.model.earlier = self.given.earlier
            self.datamodule.follow(self.given.earlier.requests)

    @override
    def before_instantiate_classes(self) -> None:
        """Name the folder of a run that has one."""
        if self.given.run_dir is not None:
            super().before_instantiate_classes()
        else:
            self.save_config_callback = None

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Put what is given in the place of what the configuration names."""
        given, data = self.given, self._get(self.config, "data")
        self.datamodule = FactList(given.facts, **data.as_dict())
        self.model.prepared = given.prepared
        if given.again is not None:
            self._measure_little(given.again)
        if given.method is not None:
            self.model.method = given.method
        if given.alone:
            check_edits_weights(self.model.method)
        if given.held is not None:
            opened, self.model.lm = given.held
            self.model.source.adopt(opened)
        if given.run_dir is not None:
            trainer = super().instantiate_trainer(**kwargs)
            self._in_memory.depend_on(self.stream_settings())
            return trainer
        self._results, self._handover = Results(), InMemory(None)
        after = [self._results, self._handover, self._get(self.config_init, "abilities")]
        own = [MemoryPreflight(), TargetTable(None), *after]
        self.trainer_defaults["callbacks"] = [*self.progress(), *own]
        self.read_inputs()
        self.find_settings()
        self._dump_config()
        self._handover.depend_on(self.stream_settings())
        return LightningCLI.instantiate_trainer(self, logger=False, **self.placement(), **kwargs)

    def _measure_little(self, again: int) -> None:
        """Measure less than the settings say, which stay what a later run goes by."""
        self.model.measure(self.model.evaluation.lean(again))
        self._get(self.config_init, "drift").tokens = 0

    @override
    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        kept = self.given.run_dir is not None
        return super()._instantiate_trainer(
            config, [each for each in callbacks if kept or not isinstance(each, RunCheckpoints)]
        )

    @override
    def run_callbacks(self, run_dir: str) -> list[Callback]:
        """Those of every run, and the facts in its folder; the table is the caller's to print."""
        self._in_memory = InMemory(None)
        callbacks = [*super().run_callbacks(run_dir), KeptFacts(Path(run_dir) / FACTS_FILE), self._in_memory]
        self._results = RunResults(run_dir, shown=False)
        return [self._results if isinstance(each, RunResults) else each for each in callbacks]

    @override
    def loggers(self, run_dir: str, resumed: bool) -> list[Logger]:
        """The curves' file alone."""
        return [MetricsFile(run_dir)]

    @override
    def placement(self) -> dict[str, Any]:
        """Where the model is, if it is in memory."""
        if self.given.held is None:
            return super().placement()
        device = self.given.held[1].device
        if device.type == "cpu":
            return {"accelerator": "cpu"}
        return {"accelerator": device.type, "devices": [device.index or 0]}

    @override
    def _resume_advice(self) -> str:
        held = "A model that was given is as it was before the call."
        return held if self.given.run_dir is None else f"{held} {super()._resume_advice()}"

    @override
    def fit(self, model: LightningModule, **kwargs: Any) -> None:
        """Run the fit; a model in memory is edited or left as it was."""
        sites = [] if self.given.held is None else self.given.held[1].sites(self.model.layers)
        with all_or_nothing(sites):
            super().fit(model, **kwargs)
            self._settle()

    def _settle(self) -> None:
        """Leave the weights that were scored in the model, where a callback keeps others for editing on."""
        with evaluated_weights(self.trainer, self.model):
            scored = [site.stored.detach().clone() for site in self.model.sites]
        _put(self.model.sites, scored)


@contextmanager
def all_or_nothing(sites: Sequence[EditSite]) -> Iterator[None]:
    """Put the matrices back if what is done inside does not end well."""
    before = [site.stored.detach().to("cpu", copy=True) for site in sites]
    try:
        yield
    except BaseException:
        _put(sites, before)
        raise


@torch.no_grad()
def _put(sites: Sequence[EditSite], tensors: Sequence[torch.Tensor]) -> None:
    for site, tensor in zip(sites, tensors, strict=True):
        site.stored.copy_(tensor)


class InMemory(Handover):
    """Keep in memory what a further call needs, the unedited matrices among it."""

    def __init__(self, run_dir: str | None) -> None:
        super().__init__(run_dir)
        self.unedited: dict[str, torch.Tensor] = {}
        self.weights: dict[str, torch.Tensor] = {}

    @override
    def on_fit_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Copy the unedited matrices."""
        super().on_fit_start(trainer, pl_module)
        self.unedited = {site.name: site.stored.detach().to("cpu", copy=True) for site in self.editor.sites}

    @override
    def on_fit_end(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Copy those that editing would continue with."""
        super().on_fit_end(trainer, pl_module)
        self.weights = {name: matrix.to("cpu", copy=True) for name, matrix in self.editor.matrices.items()}


class KeptFacts(L.Callback):
    """Write the facts of a run where its configuration says that they are, in format `jsonl`.

    That format has no place for a `target_id` and for several right answers to one portability question.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @override
    def on_fit_start(self, trainer: "L.Trainer", pl_module: "L.LightningModule") -> None:
        """Write them, on the first rank."""
        if trainer.is_global_zero:
            requests = trainer.datamodule.everything()  # type: ignore[attr-defined]
            lines = (json.dumps(write_jsonl(request), ensure_ascii=False) for request in requests)
            write_text(self.path, "".join(f"{line}\n" for line in lines))
