"""A model that is edited, asked and put back by hand, with the log of a run underneath.

An edit is the run of `fit --from`, an undo that of `undo`, an export that of `export`: what is new here is only that
the model stays in memory between them.
"""

import gc
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from sphere_pl.api.fit import Given, GivenFit
from sphere_pl.api.settings import Asked, command_line
from sphere_pl.api.surroundings import as_python_does, borrowed, left_as_they_were
from sphere_pl.commands.asking_again import ask_again
from sphere_pl.commands.export_folders import Form, choose, write_form, write_whole
from sphere_pl.commands.fit import run as run_fit
from sphere_pl.commands.log import edits_of
from sphere_pl.commands.predict import Ask, Case, Question, continue_prompts
from sphere_pl.commands.sides import Sides, load_named
from sphere_pl.commands.undo import take_back
from sphere_pl.commands.validate import evaluation_settings
from sphere_pl.commands.which_run import read_edits
from sphere_pl.data.request import EditRequest
from sphere_pl.editing.prepared import Prepared
from sphere_pl.errors import UserError
from sphere_pl.history.continuation import Earlier, earlier_of, open_earlier
from sphere_pl.history.left_out import check_without
from sphere_pl.history.saved import BaseModel, LoadOptions, SavedRun
from sphere_pl.history.undo import is_exact
from sphere_pl.model.files import lasting_name
from sphere_pl.model.generation import answer_tokens
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.loading import OpenedModel, model_in_memory
from sphere_pl.model.products import fast_products
from sphere_pl.process.failures import DiskFullError, MemoryShortageError
from sphere_pl.serving.changes import Answer, Edited, Geometry, TakenBack, geometry_of
from sphere_pl.serving.facts import Reading, neighbors_of, read_closely, read_fact
from sphere_pl.serving.states import States
from sphere_pl.text.joining import asked as without_space
from sphere_pl.text.matching import begins_with

TOKENS = 8  # of an answer that is shown beside an edit, at least
AGAIN = 20  # earlier edits that are asked again after every change, at most: the same few as long as they are there


@dataclass(frozen=True)
class Start:
    """What a session begins with, in a folder that holds no edits yet.

    Attributes:
        name: The model, as `fit --model.name` takes it.
        dtype: In which type it is edited.
        settings: Further settings of `fit`, by their dotted names.
    """

    name: str
    dtype: str
    settings: Mapping[str, Any]


class EditingSession:
    """A loaded model and the chain of runs that its edits are in.

    Args:
        states: Where the runs are.
        lm: The unedited model.
        start: How it was named, if no run says so.

    Attributes:
        lm: The model, edited but for moments inside a call.
        geometry: How far its edited matrices are from the unedited ones.
    """

    def __init__(self, states: States, lm: LanguageModel, start: Start | None = None) -> None:
        self.states, self.lm, self.start = states, lm, start
        self.geometry = Geometry()
        self.run: SavedRun | None = None
        self._base: BaseModel | None = None
        self._sides = Sides(lm, {}, {})
        self._prepared = Prepared()
        self._held: tuple[OpenedModel, LanguageModel] | None = None
        # What the run of the last edit left for the next one; None if that is to be read from its folder.
        self._kept: dict[str, Any] | None = None
        self._weights: dict[str, Tensor] = {}
        self._products = ExitStack()  # of matrices that no edit changes
        if states.current is not None:
            self._settle(states.current)

    @classmethod
    def open(cls, run_dir: Path, options: LoadOptions, start: Start | None = None) -> "EditingSession":
        """Load the run in a folder with what was edited by hand since.

        Raises:
            UserError: If it is no finished run, or its model cannot be loaded.
        """
        states = States(run_dir)
        if states.current is not None:
            open_earlier(states.current, "--run_dir")
            run = SavedRun.open(states.current)
            if start is not None and lasting_name(start.name) != run.history.header.model:
                raise UserError(
                    f"--model.name={start.name}: {run_dir} holds edits of {run.history.header.model}. Leave "
                    "--model.name out, or name another --run_dir."
                )
            return cls(states, run.load_base(options).lm, start)
        if start is None:
            raise UserError(f"--run_dir={run_dir} holds no run. Name the model to edit with --model.name.")
        return cls(states, load_start(start, options), start)

    def close(self) -> None:
        """Leave the model's blocks as they were."""
        self._products.close()

    @property
    def requests(self) -> list[EditRequest]:
        """The edits that the model holds."""
        return [] if self.run is None else self.run.history.requests

    def overview(self) -> dict[str, Any]:
        """Model, edits and what was taken back, as plain values."""
        header = None if self.run is None else self.run.history.header
        return {
            "model": self.start.name if header is None and self.start else getattr(header, "model", ""),
            "method": getattr(header, "method", None),
            "edits": [] if self.run is None else list(edits_of(self.run)),
            **self.geometry._asdict(),
            "run_dir": None if self.run is None else str(self.run.folder),
        }

    def read(self, fact: Mapping[str, Any]) -> Reading:
        """How a fact joins and what its tokens are; nothing is edited.

        Raises:
            UserError: If it cannot be edited.
        """
        return read_closely(self.lm.tokenizer, read_fact(fact), self.requests)

    def ask(self, prompts: Sequence[str], max_tokens: int = 20, chat: bool = False) -> list[Case]:
        """Answer prompts with the unedited and the edited model.

        Raises:
            UserError: If a prompt is empty or too long, or there is no chat template.
        """
        questions = [Question(prompt) for prompt in prompts]
        if self.run is not None:
            return Ask(self._sides, max_tokens, chat).both(questions)
        # Without any edits the two are one: asked twice, they could differ by rounding where two tokens are as likely.
        cases = Ask(Sides(self.lm, None, {}), max_tokens, chat).both(questions)
        return [case._replace(before=case.after) for case in cases]

    def edit(self, fact: Mapping[str, Any]) -> Edited:
        """Edit one fact into the model; it is in the log when this returns.

        Raises:
            UserError: If it cannot be edited. The model is then as it was.
        """
        started, request = time.monotonic(), read_fact(fact)
        reading = read_closely(self.lm.tokenizer, request, self.requests)
        request = request._replace(case_id=self._free_id())
        kinds = [("fact", request.question), *(("paraphrase", each) for each in request.paraphrases)]
        kinds += [("neighbor", each) for each in neighbors_of(request, self.requests)]
        asked = [without_space(prompt) for _, prompt in kinds]
        wanted = (request.target_new, *request.aliases)
        room = answer_tokens(self.lm, wanted, TOKENS)  # of one that is cut off nobody knows whether it is right
        cases = self.ask(asked, room)  # a prompt that is too long ends here
        with self._change() as folder, borrowed(self.lm.model):
            kept = self._fit(request, folder)
        self._kept = kept
        after = continue_prompts(self.lm, asked, room, [case.after for case in cases])
        answers = [
            Answer(kind, prompt, case.before, case.after, now)
            for (kind, prompt), case, now in zip(kinds, cases, after, strict=True)
        ]
        learned = begins_with(after[0].strip(), wanted)
        seconds = time.monotonic() - started
        return Edited(request.case_id, learned, reading, answers, self.geometry, seconds)

    def undo(self, case: str) -> TakenBack:
        """Take an edit back, by case id or subject.

        Raises:
            UserError: If there is none, or it cannot be taken back. The model is then as it was.
        """
        run, base = self._edited("take back")
        (case_id, *others) = check_without(run, [case], len(run.history.entries))
        if others:
            raise UserError(f"{case!r} names {1 + len(others)} edits. Give a case id: {', '.join([case_id, *others])}.")
        (request,) = (each for each in run.history.requests if each.case_id == case_id)
        ((_, unedited, before, *_),) = self.ask([request.question], TOKENS)
        exact = is_exact(run.history, [case_id])
        if len(run.history.requests) == 1:
            self._forget()
        else:
            with self._change() as folder:
                take_back(folder, run, base, [case_id], evaluation_settings(run).lean(AGAIN), quiet=True)
            self._kept = None
        (after,) = continue_prompts(self.lm, [without_space(request.question)], TOKENS, [unedited])
        return TakenBack(case_id, request.question, unedited, before, after, exact, self.geometry)

    def ask_all(self) -> dict[str, Any]:
        """Ask all edits again, those too that no change has asked for a while; the results of the run say it then.

        Returns:
            `edits`, how many of them `held`, and the `scores`.

        Raises:
            UserError: If there is no edit.
        """
        run, base = self._edited("ask")
        self._sides.turn(edited=False)
        try:
            results = ask_again(run, base, self._weights, evaluation_settings(run).lean(None))
        finally:
            self._sides.turn(edited=True)
        return {"edits": results["edits"], "held": results["held"], "scores": results["after"]}

    def export(self, form: Form) -> tuple[Path, list[str]]:
        """Write the edited model, its adapter or its delta into a new folder beside the states.

        Args:
            form: `model`, `adapter` or `delta`; a session whose facts are in a list writes that, whatever is asked.

        Returns:
            The folder, and what is to be said about it.

        Raises:
            UserError: If there is nothing to export, or it cannot be written in that form.
        """
        run, base = self._edited("export")
        if run.results.get("scored") is not None and run.folder.parent == self.states.folder:
            self.ask_all()  # the card tells how many hold
        number = 1 + len(list(self.states.folder.glob(f"{form}-*")))
        target = self.states.folder / f"{form}-{number}"
        self._sides.turn(edited=False)
        try:
            chosen = choose(run, base)
            notes = write_whole(target, lambda folder: write_form(folder, run, base, chosen, form))
        finally:
            self._sides.turn(edited=True)
        return target, notes

    def _edited(self, what: str) -> tuple[SavedRun, BaseModel]:
        if self.run is None or self._base is None:
            raise UserError(f"There is no edit to {what} yet. Edit a fact first.")
        return self.run, self._base

    @contextmanager
    def _change(self) -> Iterator[Path]:
        """A folder for a change of the unedited model, which is that of the folder afterwards, or as it was."""
        self._sides.turn(edited=False)
        try:
            with self.states.new() as folder, as_python_does(), left_as_they_were():
                yield folder
        except BaseException as error:
            self._sides.turn(edited=True)
            if isinstance(error, DiskFullError | MemoryShortageError):  # what it advises is for a run that stays
                raise type(error)(f"{str(error).splitlines()[0]} Nothing was changed.") from error
            raise
        self._sides.turn(edited=False)
        self._settle(folder)

    def _fit(self, request: EditRequest, folder: Path) -> dict[str, Any]:
        """Continue the chain by one fact; the model is unedited afterwards.

        Returns:
            What the run leaves for the next one, all that the method remembers included.
        """
        named = self._named()
        if self._held is None:
            architecture = None if self.run is None else self.run.history.header.architecture
            self._held = model_in_memory(named["model.name"], self.lm.model, self.lm.tokenizer, architecture)
        known, again = (self._held, self._earlier(), self._prepared), None if self._is_watched() else AGAIN
        given = Given([request], None, folder, *known, again=again)
        asked = Asked(None, None, None, None, (), self._settings(), folder, quiet=True)
        cli = run_fit(command_line(asked, named), partial(GivenFit, given))
        # Which matrices are edited is known from here on, if this is the first edit.
        Sides(self.lm, cli.in_memory.unedited, {}).turn(edited=False)
        kept = cli.in_memory.kept
        cli.release()
        del cli
        gc.collect()  # a trainer and what it holds know one another
        return kept

    def _earlier(self) -> Earlier | None:
        """The edits so far as the last one has left them in memory; None if they are to be read from the folder."""
        if self.run is None or self._kept is None:
            return None
        return earlier_of(self.run, self._kept.get("live", self._weights), self._kept)

    def _named(self) -> dict[str, str]:
        dtype = {"model.dtype": str(self.lm.dtype).removeprefix("torch.")}
        if self.run is not None:
            return {"model.name": self.run.history.header.model, "from": str(self.run.folder), **dtype}
        assert self.start is not None  # noqa: S101 (an empty session has been given a model)
        return {"model.name": self.start.name, **dtype}

    def _settings(self) -> dict[str, Any]:
        return dict(self.start.settings) if self.start is not None and self.run is None else {}

    def _is_watched(self) -> bool:
        """Whether a callback goes by scores, so that all of them are to be taken."""
        return self.run is not None and "monitor" in json.dumps(self.run.recipe, default=str)

    def _forget(self) -> None:
        """Become the unedited model, of which no run says anything.

        Raises:
            UserError: If the session began with a run, and what would be left is no run.
        """
        if self.states.origin is not None:
            raise UserError(
                "That would take back the run's only edit: what is left is its base model. Serve that "
                "with --model.name."
            )
        self._sides.turn(edited=False)
        self.states.clear()
        self.close()
        self.run, self._base, self._sides, self.geometry = None, None, Sides(self.lm, {}, {}), Geometry()
        self._kept, self._weights = None, {}

    def _settle(self, folder: Path) -> None:
        """From the unedited model to that of a run folder, which counts from now on."""
        run = SavedRun.open(folder)
        if self._base is None:
            self._base = BaseModel(self.lm, run.history.header.layers)
            self._products.enter_context(fast_products(self.lm, [site.module for site in self._base.sites]))
        names = [site.name for site in self._base.sites]
        unedited, weights = _copies(self.lm, names), run.weights(self._base)
        self._base.write(weights)
        self._weights = weights
        read_edits(self.lm, run, run.history.requests)
        self.run, self._sides = run, Sides(self.lm, unedited, _copies(self.lm, names))
        self.geometry = geometry_of(self._base.weights, weights)

    def _free_id(self) -> str:
        """A case id that no edit has or had."""
        run = self.run
        taken = {str(each["case_id"]) for each in edits_of(run)} if run is not None else set()
        number = len(taken) + 1
        while f"s{number}" in taken:
            number += 1
        return f"s{number}"


def load_start(start: Start, options: LoadOptions) -> LanguageModel:
    """Load the model that a session begins with."""
    return load_named(start.name, options, start.dtype)


def _copies(lm: LanguageModel, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: lm.model.get_parameter(name).detach().clone() for name in names}
