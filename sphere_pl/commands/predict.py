"""`python -m sphere_pl predict --run_dir R --prompt "..."`: answers from before and after, side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sphere_pl.commands.parsers import Parser
from sphere_pl.commands.which_run import State, add_state_arguments, load_state
from sphere_pl.data.records import read_records
from sphere_pl.data.request import EditRequest, shorten
from sphere_pl.errors import UserError
from sphere_pl.evaluation.metrics.texts import begins_with
from sphere_pl.model.generation import continue_texts, likeliest, text_until_end
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.process.console import as_shown, say
from sphere_pl.storage.files import write_text


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
    """Answer prompts, show both answers and write them as JSON.

    Raises:
        UserError: If the run, the checkpoint or a prompt is not what it must be.
    """
    given = _parser().parse_args(args)
    if given.max_tokens < 1 or given.limit < 1:
        raise UserError(f"--max_tokens={given.max_tokens} and --limit={given.limit} must be at least 1.")
    asked = [Question(prompt) for prompt in given.prompt or ()]
    if given.prompts is not None:
        asked += [Question(prompt) for prompt in read_prompts(given.prompts)]
    state = load_state(given)
    asked = asked or [_own(request) for request in state.requests[: given.limit]]
    if not asked:
        raise UserError(f'{state.run.folder} has no edits yet to ask for. Ask with --prompt "..." or --prompts FILE.')
    cases = answer_both(state, asked, given.max_tokens)
    out = given.out or state.run.folder / "predictions.json"
    write_text(out, json.dumps([case._asdict() for case in cases], indent=1, ensure_ascii=False))
    show(cases, out, Console())


def _own(request: EditRequest) -> Question:
    return Question(request.question, request.target_new, (request.target_new, *request.aliases))


def _parser() -> Parser:
    parser = Parser(
        "predict",
        description="Answer prompts with the unedited and the edited model. Without prompts, the run's own edits are "
        "asked for.",
    )
    add_state_arguments(parser)
    parser.add_argument("--prompt", action="append", help="a prompt to continue; can be given several times")
    parser.add_argument(
        "--prompts", type=Path, help="a text file with a prompt a line, or .json or .jsonl with `prompt`"
    )
    parser.add_argument("--max_tokens", type=int, default=20, help="tokens of each answer (default: 20)")
    parser.add_argument(
        "--limit", type=int, default=10, help="how many of the run's own edits to ask for (default: 10)"
    )
    parser.add_argument("--out", type=Path, help="JSON file; predictions.json in the run folder if left out")
    return parser


def read_prompts(path: Path) -> list[str]:
    """Read prompts from a text file, one a line, or the field `prompt` of JSON records.

    Raises:
        UserError: If the file cannot be read or holds none.
    """
    if path.suffix.lower() in {".json", ".jsonl"}:
        prompts = [str(record.get("prompt")) for record in read_records(str(path))]
    else:
        try:
            lines = path.expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts={path} could not be read as UTF-8 text: {error}.") from error
        prompts = [line.rstrip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompts={path} holds no prompt. Write one a line.")
    return prompts


def answer_both(state: State, asked: Sequence[Question], max_tokens: int) -> list[Case]:
    """Continue prompts greedily before and after; the model is the edited one afterwards.

    Raises:
        UserError: If a prompt is empty, or leaves no room for an answer in the model's context.
    """
    prompts = [question.prompt for question in asked]
    before = _continue(state.lm, prompts, max_tokens)
    state.edit()
    after = _continue(state.lm, prompts, max_tokens)
    return [
        Case(q.prompt, b, a, q.wanted, begins_with(a.strip(), q.accepted) if q.accepted else None)
        for q, b, a in zip(asked, before, after, strict=True)
    ]


def _continue(lm: LanguageModel, prompts: Sequence[str], max_tokens: int, rows: int = 16) -> list[str]:
    room = lm.config.max_position_embeddings - max_tokens
    for prompt in prompts:
        length = len(lm.tokenizer(prompt, return_attention_mask=False, verbose=False)["input_ids"])
        if not 1 <= length <= room:
            raise UserError(f"The prompt {shorten(prompt)} has {length} tokens, expected 1 to {room}.")
    answers: list[str] = []
    for start in range(0, len(prompts), rows):
        found = continue_texts(lm, prompts[start : start + rows], max_tokens, likeliest)
        answers += [text_until_end(lm, tokens) for tokens in found]
    return answers


def _mark(case: Case, console: Console) -> str:
    """A tick or a cross; nothing where nothing was wanted."""
    return "" if case.right is None else as_shown("✓" if case.right else "✗", console)


def show(cases: Sequence[Case], out: Path, console: Console) -> None:
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
        say(f"{sum(judged):,} of {len(judged):,} facts that were asked hold.", console)
    say(f"Written to {out}", console)
