"""A list of facts that the model reads where it is asked, in the place of edits: retrieval, confirmation, context."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from sphere_pl.data.chat import ChatSettings
from sphere_pl.data.request import EditRequest, Form, shorten
from sphere_pl.errors import UserError
from sphere_pl.evaluation.scoring import answer_as_given, last_hidden
from sphere_pl.methods.retrieval import FACT, QUESTION, Retrieval
from sphere_pl.model.batching import pad
from sphere_pl.model.language_model import LanguageModel
from sphere_pl.model.tokens import Prompt, encode
from sphere_pl.text.joining import joined
from sphere_pl.text.numbers import counted

log = logging.getLogger(__name__)
_PIECES = (2, 5)  # characters of the pieces that texts are compared by
PLAIN = ChatSettings()
_ROOM = 32  # tokens of an answer
_TOGETHER = 32  # texts whose states are looked at together


class FactList:
    """What `LanguageModel.reading` is for a method that edits no weight.

    Args:
        lm: The language model, as it answers without the list.
        requests: The facts. A later one takes the place of an earlier one with the same prompt.
        settings: How they are found and read.
        forms: What may stand around a question: a fact goes inside a chat template, before the question.
        earlier: A list of the same model that this one extends.

    Raises:
        UserError: If scikit-learn is not installed and texts are to be compared by it.

    Attributes:
        facts: The facts as they are read, sentences without an end.
    """

    def __init__(
        self,
        lm: LanguageModel,
        requests: Sequence[EditRequest],
        settings: Retrieval,
        forms: Sequence[Form] = (),
        earlier: "FactList | None" = None,
    ) -> None:
        newest = {request.question: request for request in requests}
        self.facts = [joined(each.question, each.target_new, each.joiner) for each in newest.values()]
        self.lm, self.settings = lm, settings
        self.forms = [form for form in forms if form.before]
        self._read: dict[str, str] = {}
        if self.facts:  # what cannot be asked is refused here, and not at a validation
            longest = max(self.facts, key=len)
            self._check_room(self._put(longest, longest))
        known = {} if earlier is None else earlier._states  # a list that has grown compares its new facts alone
        self._states: dict[str, Tensor] = known
        self._compare = _tfidf(self.facts) if settings.retriever == "tfidf" else _States(lm, self.facts, known)

    def __call__(self, questions: Sequence[str]) -> list[str]:
        """What the model reads for each question: with a fact in front of it, or as it is."""
        new = [each for each in dict.fromkeys(questions) if each not in self._read]
        found = self._applying([_question(each, self._form(each)) for each in new])
        whole = [self._with(each, fact) for each, fact in zip(new, found, strict=True)]
        fitting = [text if fits else each for each, text, fits in zip(new, whole, self._fit(whole), strict=True)]
        if fitting != whole:
            log.warning(
                "%s read without the fact in front: both do not fit into the model's context of %d tokens.",
                counted(sum(a != b for a, b in zip(fitting, whole, strict=True)), "question is", "questions are"),
                self.lm.context,
            )
        self._read |= dict(zip(new, fitting, strict=True))
        return [self._read[each] for each in questions]

    def _fit(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text leaves the model room for an answer."""
        most = self.lm.context - _ROOM
        return [len(each.ids) <= most for each in encode(self.lm.tokenizer, texts)]

    def _form(self, text: str) -> Form:
        return next((form for form in self.forms if text.startswith(form.before)), Form())

    def _with(self, text: str, fact: str | None) -> str:
        before = self._form(text).before
        return text if fact is None else before + self.settings.in_front.replace(FACT, fact) + text[len(before) :]

    def _applying(self, questions: Sequence[str]) -> list[str | None]:
        """The fact that applies to each question, if any."""
        found: list[str | None] = [None] * len(questions)
        if not questions or not self.facts:
            return found
        ranked = self._compare(questions)
        for place in range(min(self.settings.candidates, len(self.facts))):
            asked = [row for row, fact in enumerate(found) if fact is None]
            best = ranked[asked].topk(place + 1, dim=1)
            pairs = [
                (row, self.facts[index])
                for row, index, similarity in zip(
                    asked, best.indices[:, -1].tolist(), best.values[:, -1].tolist(), strict=True
                )
                if similarity >= self.settings.min_similarity
            ]
            for (row, fact), applies in zip(pairs, self._confirm([(f, questions[r]) for r, f in pairs]), strict=True):
                found[row] = fact if applies else None
        return found

    def _confirm(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Whether the model says that a fact applies to a question, for each pair of them."""
        if not self.settings.confirm or not pairs:
            return [True] * len(pairs)
        texts = [self._put(fact, question) for pair in pairs for fact, question in (pair, ("", pair[1]))]
        self._check_room(max(texts, key=len))
        said = answer_as_given(self.lm, [Prompt(text, word) for text in texts for word in ("Yes", "No")])
        scores = torch.tensor([each.log_probability for each in said], dtype=torch.float64).view(-1, 2, 2)
        leaning = scores[:, :, 0] - scores[:, :, 1]  # with the fact, and without one
        return list(map(bool, (leaning[:, 0] > leaning[:, 1]).tolist()))

    def _check_room(self, text: str) -> None:
        if self.settings.confirm and not all(self._fit([text])):
            raise UserError(
                f"SCR asks the model {shorten(text)}, which with its answer is too long for the model's context of "
                f"{self.lm.context} tokens. Set --model.method.init_args.confirm=false, or a "
                "shorter confirmation."
            )

    def _put(self, fact: str, question: str) -> str:
        # Not one after the other: a fact may hold the mark of the question.
        before, _, after = self.settings.confirmation.partition(QUESTION)
        return before.replace(FACT, fact) + question + after.replace(FACT, fact)


def _question(text: str, form: Form) -> str:
    return text.removeprefix(form.before).removesuffix(form.after) if form.before else text


def _tfidf(facts: Sequence[str]) -> Any:
    """Compares texts by TF-IDF vectors over pieces of their words: in scripts without spaces, too."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise UserError(
            "SCR finds facts with scikit-learn, which is not installed: pip install 'sphere-pl[retrieval]', or set "
            "--model.method.init_args.retriever=model, which compares texts by the model's own states."
        ) from error
    if not facts:
        return None
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=_PIECES, sublinear_tf=True)
    known = vectors.fit_transform(facts)
    return lambda texts: torch.from_numpy((vectors.transform(texts) @ known.T).toarray())


class _States:
    """Compares texts by the mean of the model's last states, away from what all facts have in common."""

    def __init__(self, lm: LanguageModel, facts: Sequence[str], known: dict[str, Tensor]) -> None:
        self.lm = lm
        new = [fact for fact in facts if fact not in known]
        known |= dict(zip(new, self._states(new), strict=True)) if new else {}
        states = torch.stack([known[fact] for fact in facts]) if facts else torch.zeros(0, 1, dtype=torch.float64)
        self.center = states.mean(0) if len(facts) > 1 else torch.zeros_like(states[:1].sum(0))
        self.known = torch.nn.functional.normalize(states - self.center)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.nn.functional.normalize(self._states(texts) - self.center) @ self.known.T

    @torch.no_grad()
    def _states(self, texts: Sequence[str]) -> Tensor:
        most, parts = self.lm.context, []
        for start in range(0, len(texts), _TOGETHER):
            rows = [each.ids[:most] for each in encode(self.lm.tokenizer, texts[start : start + _TOGETHER])]
            ids, mask = pad(rows, self.lm.pad_id, self.lm.device)
            hidden = last_hidden(self.lm, ids, mask).double().cpu()
            weights = mask.cpu()[:, :, None].double()
            parts.append((hidden * weights).sum(1) / weights.sum(1))
        return torch.cat(parts)


def give_facts(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    settings: Retrieval | None,
    chat: ChatSettings = PLAIN,
) -> None:
    """Let a model read facts where it is asked; a method that edits weights (None) takes them away.

    The model must be the unedited one: what it says of a question must not depend on an earlier list.
    """
    before, lm.reading = lm.reading, None
    if settings is not None and requests:
        systems = dict.fromkeys((chat, PLAIN))
        forms = [form for each in systems if (form := each.scored(lm.tokenizer)) is not None]
        earlier = before if isinstance(before, FactList) and before.lm is lm else None
        lm.reading = FactList(lm, requests, settings, forms, earlier)


def to_header(settings: Retrieval | None) -> dict[str, Any] | None:
    """What a run's log keeps of how its facts are read."""
    return None if settings is None else asdict(settings)


def from_header(kept: Mapping[str, Any] | None) -> Retrieval | None:
    """The settings that a run's log holds.

    Raises:
        UserError: If they are not what a run writes.
    """
    if kept is None:
        return None
    if set(kept) != {each.name for each in fields(Retrieval)}:
        raise UserError(
            f"The log's settings of its list of facts, {sorted(kept)}, are not what this version writes. Read the run "
            "with the version that wrote it."
        )
    return Retrieval(**kept)
