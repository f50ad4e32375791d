"""`python -m sphere_pl predict --run_dir R --prompt "..."`: answers from before and after, side by side."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sphere_pl.commands.arguments import load_options
from sphere_pl.commands.parsers import Parser
from sphere_pl.commands.sides import Sides, listed_edits, load_exported, sides_of_run
from sphere_pl.commands.which_run import add_state_arguments, load_state
from sphere_pl.data.chat import chat_form
from sphere_pl.data.files import read_records
from sphere_pl.data.request import EditRequest, shorten
from sphere_pl.errors import UserError
from sphere_pl.model.generation import answer_tokens, continue_texts, likeliest, text_until_end
from sphere_pl.model.guesses import continue_guessed
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import encode
from sphere_pl.process.console import as_shown, say
from sphere_pl.storage.files import expanded, write_text
from sphere_pl.text.joining import asked as without_space
from sphere_pl.text.matching import begins_with
from sphere_pl.text.numbers import counted


class Question(NamedTuple):
    """A prompt to answer.

    Attributes:
        prompt: The prompt.
        wanted: What the edit asked for, if the prompt is an edit's own.
        accepted: All answers that count as right then.
    """

    prompt: str
    wanted: str | None = None
    accepted: tuple[str, ...] = ()


class Case(NamedTuple):
    """A prompt with both answers.

    Attributes:
        prompt: The prompt.
        before: The unedited model's continuation.
        after: The edited model's.
        wanted: What the edit asked for, if the prompt is an edit's own.
        right: Whether the edited model's continuation begins with it; None if nothing was asked for.
    """

    prompt: str
    before: str
    after: str
    wanted: str | None
    right: bool | None = None


def main(args: Sequence[str]) -> None:
    """Answer prompts, show both answers and write them as JSON; or answer them as they are typed.

    Raises:
        UserError: If the run, the checkpoint, the folder or a prompt is not what it must be.
    """
    given = _parser().parse_args(args)
    if given.max_tokens < 1 or given.limit < 1:
        raise UserError(f"--max_tokens={given.max_tokens} and --limit={given.limit} must be at least 1.")
    asked = [Question(prompt) for prompt in given.prompt or ()]
    if given.prompts is not None:
        asked += [Question(prompt) for prompt in read_prompts(given.prompts)]
    subject = load_subject(given)
    ask = Ask(subject.sides, given.max_tokens, given.chat)
    if given.loop:
        converse(ask, asked, Console())
        return
    asked = asked or [_own(request) for request in subject.requests[: given.limit]]
    if not asked:
        raise UserError(f'{subject.name} has no edits yet to ask for. Ask with --prompt "..." or --prompts FILE.')
    cases = ask.both(asked)
    show(cases, Console())
    out = given.out or subject.out
    if out is not None:  # after they are shown: a full disk does not lose them
        write_text(out, json.dumps([case._asdict() for case in cases], indent=1, ensure_ascii=False))
        say(f"Written to {out}")


def _own(request: EditRequest) -> Question:
    return Question(request.question, request.target_new, (request.target_new, *request.aliases))


def _parser() -> Parser:
    parser = Parser(
        "predict",
        description="Answer prompts with the unedited and the edited model. Without prompts, the run's own edits are "
        "asked for.",
    )
    add_state_arguments(parser)
    parser.add_argument("--folder", type=Path, help="an exported model or adapter, in place of a run")
    parser.add_argument("--prompt", action="append", help="a prompt to continue; can be given several times")
    parser.add_argument(
        "--prompts", type=Path, help="a text file with a prompt a line, or .json or .jsonl with `prompt`"
    )
    parser.add_argument("--loop", action="store_true", help="answer prompts as they are typed, until the input ends")
    parser.add_argument("--chat", action="store_true", help="put each prompt into the model's chat template")
    parser.add_argument(
        "--max_tokens", type=int, default=20, help="tokens of each answer, more if the wanted one has (default: 20)"
    )
    parser.add_argument(
        "--limit", type=int, default=10, help="how many of the run's own edits to ask for (default: 10)"
    )
    parser.add_argument("--out", type=Path, help="JSON file; predictions.json in the run folder if left out")
    return parser


class Subject(NamedTuple):
    """What is asked.

    Attributes:
        name: How to call it.
        sides: The model before and after.
        requests: The edits that are known to be in it.
        out: Where answers are kept; nowhere if None.
    """

    name: str
    sides: Sides
    requests: list[EditRequest]
    out: Path | None


def load_subject(given: argparse.Namespace) -> Subject:
    """Load a run's state, or the exported model or adapter of a folder.

    Raises:
        UserError: If both are named, or what is named cannot be loaded.
    """
    if given.folder is None:
        state = load_state(given)
        folder = state.run.folder
        return Subject(str(folder), sides_of_run(state), state.requests, folder / "predictions.json")
    if given.run_dir is not None or given.ckpt_path is not None or given.at is not None:
        raise UserError("--folder names an exported model, the other arguments a run. Give one of them.")
    sides = load_exported(given.folder, load_options(given))
    return Subject(str(given.folder), sides, listed_edits(given.folder), None)


class Ask:
    """Puts questions to a model before and after its edits.

    Args:
        sides: The two.
        max_tokens: Tokens of each answer.
        chat: Whether prompts go into the chat template.

    Raises:
        UserError: If the tokenizer has no chat template.
    """

    def __init__(self, sides: Sides, max_tokens: int, chat: bool = False) -> None:
        self.sides, self.max_tokens, self.chat = sides, max_tokens, chat
        if chat and not sides.lm.tokenizer.chat_template:
            raise UserError("--chat: the model's tokenizer has no chat template. Leave --chat out.")

    def both(self, asked: Sequence[Question]) -> list[Case]:
        """Answer greedily before and after; the model is the edited one afterwards.

        Raises:
            UserError: If a prompt is empty, or leaves no room for an answer in the model's context.
        """
        lm, prompts = self.sides.lm, [self._text(question.prompt) for question in asked]
        # An answer that is cut off before the wanted one ends would be taken for another one.
        room = answer_tokens(lm, [text for each in asked for text in each.accepted], self.max_tokens)
        before = [""] * len(prompts)
        if self.sides.has_unedited:
            self.sides.turn(edited=False)
            before = continue_prompts(lm, prompts, room)
        self.sides.turn(edited=True)
        after = continue_prompts(lm, prompts, room, before if self.sides.has_unedited else ())
        return [
            Case(q.prompt, b, a, q.wanted, begins_with(a.strip(), q.accepted) if q.accepted else None)
            for q, b, a in zip(asked, before, after, strict=True)
        ]

    def _text(self, prompt: str) -> str:
        if not self.chat:
            return without_space(prompt)
        return chat_form(self.sides.lm.tokenizer).around(prompt)


def converse(ask: Ask, asked: Sequence[Question], console: Console) -> None:
    """Answer prompts as they are typed, until the input ends."""
    for question in chain(asked, map(Question, _typed(console))):
        try:
            (case,) = ask.both([question])
        except UserError as error:
            say(str(error), console)
            continue
        if ask.sides.has_unedited:
            say(f"unedited: {case.before.strip()}", console)
        say(f"edited:   {case.after.strip()}", console)


def _typed(console: Console) -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            console.print("> ", end="")
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\r\n")


def read_prompts(path: Path) -> list[str]:
    """Read prompts from a text file, one a line, or the field `prompt` of JSON records.

    Raises:
        UserError: If the file cannot be read or holds none.
    """
    if path.suffix.lower() in {".json", ".jsonl"}:
        prompts = [str(record.get("prompt")) for record in read_records(str(path))]
    else:
        try:
            lines = expanded(path).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--prompts={path} could not be read as UTF-8 text: {error}. Write one prompt a line."
            ) from error
        prompts = [line.rstrip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompts={path} holds no prompt. Write one a line.")
    return prompts


def continue_prompts(
    lm: LanguageModel, prompts: Sequence[str], max_tokens: int, guesses: Sequence[str] = (), rows: int = 16
) -> list[str]:
    """Continue prompts greedily, until the end of the text at the latest.

    Args:
        lm: The language model.
        prompts: The prompts.
        max_tokens: Tokens of each answer.
        guesses: What each answer might be, such as the unedited model's: the nearer, the sooner it is there.
        rows: How many are answered together.

    Raises:
        UserError: If a prompt is empty, or leaves no room for an answer in the model's context.
    """
    room = lm.context - max_tokens
    for prompt in prompts:
        length = len(encode(lm.tokenizer, [prompt])[0].ids)
        if not 1 <= length <= room:
            raise UserError(
                f"The prompt {shorten(prompt)} has {length} tokens, expected 1 to {room}. Give one of that length."
            )
    answers: list[str] = []
    for start in range(0, len(prompts), rows):
        some, guessed = prompts[start : start + rows], guesses[start : start + rows]
        continued = partial(continue_guessed, guesses=guessed) if guessed else partial(continue_texts, pick=likeliest)
        answers += [text_until_end(lm, tokens) for tokens in continued(lm, some, new_tokens=max_tokens)]
    return answers


def _mark(case: Case, console: Console) -> str:
    """A tick or a cross; nothing where nothing was wanted."""
    return "" if case.right is None else as_shown("✓" if case.right else "✗", console)


def show(cases: Sequence[Case], console: Console) -> None:
    """Print the answers side by side."""
    wanted = any(case.wanted is not None for case in cases)
    table = Table(show_lines=True)
    for column in (*(("",) if wanted else ()), "prompt", *(("wanted",) if wanted else ()), "before", "after"):
        table.add_column(column, overflow="fold", min_width=1 if not column else None)
    for case in cases:
        answers = [text.strip() or "(nothing)" for text in (case.before, case.after)]
        cells = [_mark(case, console), case.prompt, case.wanted or "-"] if wanted else [case.prompt]
        table.add_row(*map(Text, (*cells, *answers)))  # as Text: brackets in an answer are no markup
    console.print(table)
    judged = [case.right for case in cases if case.right is not None]
    if judged:
        of = f"of {counted(len(judged), 'fact')} that {'was' if len(judged) == 1 else 'were'} asked"
        say(f"{counted(sum(judged), f'{of} holds', f'{of} hold')}.", console)
