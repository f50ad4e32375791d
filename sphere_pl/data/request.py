"""One fact to edit, whatever format it came from, and a batch of them."""

from typing import NamedTuple


class Form(NamedTuple):
    """What stands around a question when it is asked: nothing, or what a chat template puts there.

    Attributes:
        before: In front of the question and of any context.
        after: After it.
        joiner: What stands between that and the answer, where the template has put a question: mostly nothing.
        keeps: Whether the template keeps white space that ends a question, which many leave out.
    """

    before: str = ""
    after: str = ""
    joiner: str = ""
    keeps: bool = False

    def around(self, question: str) -> str:
        r"""A question as it is asked in this form.

        Example:
            >>> Form("[user]", "[assistant]").around("Where is Rome?\n")
            '[user]Where is Rome?[assistant]'
        """
        return self.before + (question if self.keeps or not self.after else question.rstrip()) + self.after


class EditRequest(NamedTuple):
    """A fact "(subject, relation, new object)" and the prompts that test it.

    Attributes:
        case_id: The record's own identifier.
        prompt: The relation, with `{}` where the subject goes.
        subject: What the fact is about.
        target_new: What the model shall say after the edit.
        target_true: What it should say before, if known.
        relation_id: Identifier of the relation, if known.
        paraphrases: Other wordings of the same question, subject filled in (generalization).
        neighbors: Prompts about other subjects whose answer must not change (specificity).
        neighbor_answers: The right answer of each neighbour, empty if unknown.
        generation: Prompts for free text about the subject.
        source: File and line the record came from, for messages.
        target_id: Identifier of the new object, if known; reference texts are found by it.
        aliases: Other answers that say the same as `target_new`.
        portability: Questions whose answer follows from the edit (reasoning, other names of the subject).
        portability_answers: What counts as right for each of them, the reference answer first.
        joiner: White space or nothing that stands between each prompt and its answer; what the scripts demand if None.
        wordings: Further prompts, with `{}` where the subject goes, that are edited together with `prompt`.
        form: What stands around the question; nothing in the stream, a chat template where it is asked in one.
    """

    case_id: str
    prompt: str
    subject: str
    target_new: str
    target_true: str | None = None
    relation_id: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighbors: tuple[str, ...] = ()
    neighbor_answers: tuple[str, ...] = ()
    generation: tuple[str, ...] = ()
    source: str = ""
    target_id: str | None = None
    aliases: tuple[str, ...] = ()
    portability: tuple[str, ...] = ()
    portability_answers: tuple[tuple[str, ...], ...] = ()
    joiner: str | None = None
    wordings: tuple[str, ...] = ()
    form: Form = Form()

    @property
    def question(self) -> str:
        """The prompt with the subject filled in."""
        return self.prompt.replace("{}", self.subject, 1) if self.subject else self.prompt

    @property
    def subject_span(self) -> tuple[int, int]:
        """Where in `question` the subject begins and ends; both 0 in a request without a subject."""
        start = self.prompt.index("{}") if self.subject else 0
        return start, start + len(self.subject)

    @property
    def asked(self) -> str:
        """The question in its form, as the model is asked it."""
        return self.form.around(self.question)

    @property
    def subject_end(self) -> int:
        """Number of characters of `question` up to and including the subject."""
        return self.subject_span[1]


class EditBatch(NamedTuple):
    """The requests that one step edits together.

    Attributes:
        requests: In the order of the stream.
        start: How many requests of the stream come before them.
        again: Where in the stream they are, if they have been edited before and are edited again.
    """

    requests: tuple[EditRequest, ...]
    start: int = 0
    again: tuple[int, ...] = ()

    @property
    def places(self) -> tuple[int, ...]:
        """Where each request is in the stream."""
        return self.again or tuple(range(self.start, self.start + len(self.requests)))

    @property
    def edits(self) -> int:
        """How many requests of the stream have been edited when the batch is done."""
        return self.start if self.again else self.start + len(self.requests)


def shorten(value: object, width: int = 80) -> str:
    """Quote what the user gave, cut where it would fill the screen.

    Example:
        >>> shorten("Paris"), shorten("a" * 100, width=5)
        ("'Paris'", "'aaaaa'... (100 characters)")
    """
    text = value if isinstance(value, str) else str(value)
    return repr(text) if len(text) <= width else f"{text[:width]!r}... ({len(text)} characters)"
