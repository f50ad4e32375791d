"""The stream of edit requests, read, checked and cut into batches; nothing here needs torch or Lightning."""

import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal, get_args

from sphere_pl.data.builtin import facts_path
from sphere_pl.data.chat import Chat, ChatSettings
from sphere_pl.data.columns import check_columns, rename_columns
from sphere_pl.data.files import read_records
from sphere_pl.data.formats import FORMATS, Format
from sphere_pl.data.hub import hub_records, is_saved_set
from sphere_pl.data.recognition import OWN, formats_of
from sphere_pl.data.records import Record
from sphere_pl.data.request import EditBatch, EditRequest
from sphere_pl.data.request_checks import check_request, learn_paraphrases
from sphere_pl.data.review import (
    Conflicts,
    refuse_contradictions,
    report_edited_neighbors,
    report_repeated_ids,
    settle_conflicts,
    unlike,
)
from sphere_pl.errors import UserError
from sphere_pl.storage.files import expanded, is_local
from sphere_pl.text.numbers import counted

log = logging.getLogger(__name__)

BUILT_IN, HUB = "facts", "hf"
BUILT_IN_LIMIT = 100  # of the built-in facts: a run of minutes
Invalid = Literal["refuse", "skip"]


class EditLoader:
    """The edit batches of a stream, in order; a resumed run continues where it was.

    Args:
        requests: The stream.
        batch_size: Edits in a batch.
        chat: In which form they are edited and scored; plain if None.
        retry: How many failed edits to edit again at most, after all others; below 1 a share of the requests. The
            batches that this takes come in any case; without enough failed edits they are empty.
        earlier: Edits that an earlier run has made, in whose stream this one's come next.

    Attributes:
        failing: Says which edits have failed, by place in the stream; asked once, after the last of the others.
    """

    def __init__(
        self,
        requests: Sequence[EditRequest],
        batch_size: int,
        chat: ChatSettings | None = None,
        retry: float = 0,
        earlier: Sequence[EditRequest] = (),
    ) -> None:
        self.requests, self.earlier = list(requests), list(earlier)
        self.batch_size, self.chat = batch_size, chat or ChatSettings()
        # A share is rounded down, but for what floating point takes off: of a single fact nothing is edited again.
        self.retry = math.floor(retry * len(self.requests) + 1e-9) if retry < 1 else int(retry)
        self.failing: Callable[[], Sequence[int]] = tuple
        self._again: list[int] | None = None
        self._done = 0
        self._resumed = False

    def __len__(self) -> int:
        return math.ceil(len(self.requests) / self.batch_size) + math.ceil(self.retry / self.batch_size)

    def __iter__(self) -> Iterator[EditBatch]:
        first, self._resumed = self._done if self._resumed else 0, False
        for index in range(first, len(self)):
            self._done = index + 1
            start = index * self.batch_size
            if start < len(self.requests):
                yield EditBatch(tuple(self.requests[start : start + self.batch_size]), len(self.earlier) + start)
            else:
                yield self._failed_again(index - math.ceil(len(self.requests) / self.batch_size))

    @property
    def edited_again(self) -> Sequence[int]:
        """Places of the edits that were edited again."""
        return tuple(self._again or ())

    def _failed_again(self, index: int) -> EditBatch:
        if self._again is None:
            self._again = list(self.failing())[: self.retry]
        places = self._again[index * self.batch_size : (index + 1) * self.batch_size]
        stream = [*self.earlier, *self.requests]
        return EditBatch(tuple(stream[place] for place in places), len(stream), tuple(places))

    def state_dict(self) -> dict[str, Any]:
        """How many batches have been handed out, and what is edited again."""
        return {"done": self._done} | ({} if self._again is None else {"again": self._again})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin the next pass after the batches that were handed out."""
        self._done, self._resumed = state_dict["done"], True
        self._again = state_dict.get("again")


class EditStream:
    """Edit requests from the built-in fact set, a local file or the hub.

    Args:
        name: `facts` (built in), or the format of `path`: counterfact (the ROME and MEMIT JSON, MultiCounterFact too),
            zsre (the MEND JSON), knowedit (its ZsRE, WikiData_counterfact and WikiData_recent), easyedit (CounterFact
            in EasyEdit's flat form), mquake, wikibigedit, uniedit, craft, known (ROME's known facts, for tracing),
            jsonl and csv for your own `prompt, subject, target`, or hf for those of a hub data set. With a path it may
            be left out: the records tell.
        path: A .json, .jsonl, .csv, .tsv or .parquet file, packed or not, a folder that holds it, or the id of a hub
            data set. The built-in set needs none.
        limit: How many edits to read, all if null; auto is 100 of the built-in facts, and all of any other data.
        offset: How many edits to leave out at the beginning.
        batch_size: Edits in a batch, that is in one step (100 in the paper).
        shuffle_seed: Shuffle the edits with this seed before `offset` and `limit`; in the file's order if None.
        file: Which file of the folder or hub data set `path`; needed where there are several.
        split: Which split of a hub data set, or which list of a JSON file that holds several.
        conflicts: What to do about edits that a later one contradicts: `ask` if both are in one batch and report the
            others, `report` all, `refuse` to run, or `keep_last`.
        invalid: What to do about a record that cannot be edited: `refuse` to run, or `skip` it and say how many.
        columns: What columns of the file mean, such as `{queries: paraphrases}`; null leaves one out.
        chat: In which form facts are edited: `plain`, as they stand; `chat`, as the user's turn of the tokenizer's chat
            template; `both`, with one target for the two. All are scored in both forms where there is a template.
        system: The system prompt of the chat form; the template's own if None.
        edit_paraphrases: How many paraphrases of each record are edited with it, as its `wordings` are, and not scored.

    Raises:
        UserError: If a number is out of range, the name or a field is unknown, or a path is missing.
    """

    def __init__(
        self,
        name: str = BUILT_IN,
        path: str | None = None,
        limit: int | Literal["auto"] | None = "auto",
        offset: int = 0,
        batch_size: int = 10,
        shuffle_seed: int | None = None,
        file: str | None = None,
        split: str = "train",
        conflicts: Conflicts = "ask",
        invalid: Invalid = "refuse",
        columns: dict[str, str | None] | None = None,
        chat: Chat = "plain",
        system: str | None = None,
        edit_paraphrases: int = 0,
    ) -> None:
        super().__init__()
        _check_source(name, path, file)
        if batch_size < 1:
            raise UserError(f"--data.batch_size={batch_size} must be at least 1.")
        if limit == "auto":
            limit = BUILT_IN_LIMIT if name == BUILT_IN and path is None else None
        if offset < 0 or (limit is not None and limit < 1):
            raise UserError(f"--data.offset={offset} must be at least 0 and --data.limit={limit} at least 1.")
        _check_choice("conflicts", conflicts, get_args(Conflicts))
        _check_choice("invalid", invalid, get_args(Invalid))
        check_columns(columns or {})
        _check_choice("chat", chat, get_args(Chat))
        if edit_paraphrases < 0:
            raise UserError(f"--data.edit_paraphrases={edit_paraphrases} must be at least 0.")
        self.chat, self.edit_paraphrases = ChatSettings(chat, system), edit_paraphrases
        self.name, self.path, self.file, self.split = name, path, file, split
        self.columns = columns or {}
        self.limit, self.offset = limit, offset
        self.batch_size, self.shuffle_seed = batch_size, shuffle_seed
        self.conflicts, self.invalid = conflicts, invalid
        self.requests: list[EditRequest] = []
        self.earlier: list[EditRequest] = []
        self.retry: float = 0  # failed edits to edit again, or a share below 1 of all
        self.available, self.format = 0, name

    @property
    def extent(self) -> str:
        """How much of the data is edited, and which argument leaves out the rest.

        Example:
            >>> data = EditStream(limit=3)
            >>> data.setup("fit")
            >>> data.extent
            '3 of 812 edits (--data.limit)'
        """
        cut = [name for name in ("offset", "limit") if self._cuts(name)]
        if not cut:
            return counted(len(self.requests), "edit")
        arguments = ", ".join(f"--data.{name}" for name in cut)
        return f"{len(self.requests):,} of {self.available:,} edits ({arguments})"

    def _cuts(self, name: str) -> bool:
        if name == "offset":
            return self.offset > 0
        return self.limit is not None and self.offset + self.limit < self.available

    def setup(self, stage: str) -> None:
        """Read and check the records, and report what is odd about them, once."""
        if not self.requests:
            self.requests = self._read()

    def follow(self, earlier: Sequence[EditRequest]) -> None:
        """Come after the edits of an earlier run; case ids that they have taken are changed."""
        self.earlier = list(earlier)
        self.requests = unlike(self.requests, [request.case_id for request in earlier])

    def everything(self) -> list[EditRequest]:
        """Read and check every edit that there is, those that `offset` and `limit` leave out among them."""
        requests, refused = self.readable(stop=self.invalid == "refuse")
        if refused:
            several = "records cannot be edited and are left out"
            left_out = counted(len(refused), "record cannot be edited and is left out", several)
            log.warning("%s. The first: %s", left_out, refused[0])
        if not requests:
            raise UserError(f"There is no record to edit in {self.path}. Give a file with at least one.")
        return requests

    def readable(self, stop: bool = False) -> tuple[list[EditRequest], list[UserError]]:
        """All edits that can be made, and why the records of the others cannot; or, with `stop`, raise the first."""
        self.format, records = self.name or BUILT_IN, self._records()
        if self.path is not None and self.format in (BUILT_IN, HUB):
            self.format, records = self._recognised(records)
            self.name = HUB if self.name == HUB else self.format
        form = FORMATS.get(self.format, FORMATS["counterfact"])  # the built-in facts are in that schema
        requests, refused = edits_of(records, form, stop)
        return form.complete(requests), refused

    def _read(self) -> list[EditRequest]:
        requests = self.everything()
        if self.offset >= len(requests):
            raise UserError(
                f"--data.offset={self.offset} leaves nothing of the {counted(len(requests), 'edit')}. Lower it."
            )
        self.available = len(requests)
        if self.shuffle_seed is not None:
            random.Random(self.shuffle_seed).shuffle(requests)  # noqa: S311 (an order, not a secret)
        stop = None if self.limit is None else self.offset + self.limit
        chosen = settle_conflicts(requests[self.offset : stop], self.conflicts)
        report_repeated_ids(chosen)
        report_edited_neighbors(chosen)
        return self._learned(chosen)

    def _learned(self, requests: Sequence[EditRequest]) -> list[EditRequest]:
        """The requests with the paraphrases that are edited among their wordings."""
        learned = [learn_paraphrases(request, self.edit_paraphrases) for request in requests]
        gained = [len(new.wordings) - len(old.wordings) for new, old in zip(learned, requests, strict=True)]
        few = sum(count < self.edit_paraphrases for count in gained)
        if few:
            of = f"of {counted(len(requests), 'edit')}"
            log.warning(
                "%s fewer than %s that name the subject: --data.edit_paraphrases edits those that there are.",
                counted(few, f"{of} has", f"{of} have"), counted(self.edit_paraphrases, "paraphrase"),
            )  # fmt: skip
        return learned

    def _records(self) -> Iterator[Record]:
        if self.path is None:
            return read_records(facts_path())
        saved = is_saved_set(self.path) or (self.name == HUB and expanded(self.path).is_dir())
        if is_local(self.path) and not saved:
            records = read_records(self.path, self.file, self.split)
        else:
            records = hub_records(self.path, self.file, self.split)
        return rename_columns(records, self.columns) if self.columns else records

    def _recognised(self, records: Iterator[Record]) -> tuple[str, Iterator[Record]]:
        """The format of some records, told from the first, and the records."""
        first = next(records, None)
        if first is None:
            return OWN, iter(())
        found = [OWN] if self.columns else formats_of(first.fields) or [OWN]
        if len(found) > 1:
            raise UserError(
                f"{first.where}: the record fits several formats, which differ in what they make of it: "
                f"{', '.join(found)}. Name one: --data.name={found[-1]} takes every field for what it is called, "
                f"--data.name={found[0]} sorts its rephrasings."
            )
        return found[0], chain([first], records)

    def train_dataloader(self) -> EditLoader:
        """One item an edit batch; the order of the stream is the order of the edits."""
        self.check_batches()
        return EditLoader(self.requests, self.batch_size, self.chat, self.retry, self.earlier)

    def check_batches(self) -> None:
        """Refuse two edits in one batch that contradict each other, unless something else is to be done about them.

        Raises:
            UserError: Naming both records.
        """
        if self.conflicts == "ask":
            refuse_contradictions(EditLoader(self.requests, self.batch_size))


def _check_source(name: str, path: str | None, file: str | None) -> None:
    """Refuse a format that nobody reads, and a path where none belongs or none where one does."""
    if name != BUILT_IN and name not in FORMATS:
        raise UserError(f"--data.name={name!r} is unknown. Known: {', '.join([BUILT_IN, *FORMATS])}.")
    if name == BUILT_IN and path is None and file is not None:
        raise UserError(f"--data.file={file!r} names a file of a folder or a data set: add --data.path.")
    if name != BUILT_IN and path is None:
        raise UserError(f"--data.name={name} needs --data.path=<file, folder or hub data set>.")


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"--data.{option}={value!r} is unknown. Known: {', '.join(choices)}.")


def edits_of(records: Iterator[Record], form: Format, stop: bool) -> tuple[list[EditRequest], list[UserError]]:
    """Read and check every record: the edits, and what is wrong with the records that cannot be edited."""
    requests: list[EditRequest] = []
    refused: list[UserError] = []
    for record in records:
        try:
            requests += [check_request(request) for request in form.read(record)]
        except UserError as error:
            if stop:
                raise
            refused.append(error)
    return requests, refused
