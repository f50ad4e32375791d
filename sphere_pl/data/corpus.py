"""Ordinary text, document after document: a file's, or a data set's."""

from collections.abc import Iterable, Iterator

from sphere_pl.data.hub import hub_rows
from sphere_pl.errors import UserError
from sphere_pl.storage.files import expanded


def read_corpus(corpus: str) -> Iterator[str]:
    """Documents of a text file (split at blank lines) or of a hub data set.

    Args:
        corpus: A path, or `id`, `id:config`, `id:config:column`.

    Raises:
        UserError: If it is neither a file nor to be had from the hub.
    """
    path = expanded(corpus)
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"The corpus {corpus!r} is not UTF-8 text ({error}). Convert it and try again.") from error
        yield from (part.strip() for part in text.split("\n\n") if part.strip())
        return
    yield from _hub_corpus(corpus)


def _hub_corpus(corpus: str) -> Iterator[str]:
    identifier, config, column = (*corpus.split(":"), "", "")[:3]

    def refusal(reason: str) -> str:
        return (
            f"The corpus {corpus!r} is no file, and the hub did not give it: {reason} Give a text file, a data set as "
            "id:config:column, or leave it out to sample text from the model itself."
        )

    for row in hub_rows(refusal, identifier, config or None, split="train", streaming=True):
        if (column or "text") not in row:
            raise UserError(
                f"The corpus {corpus!r} has no column {column or 'text'!r}, found {', '.join(row)}. Name the one that "
                "holds the text: id:config:column."
            )
        yield str(row[column or "text"])


def beginning(documents: Iterable[str], characters: int) -> str:
    """The first documents, until there are enough characters."""
    chosen: list[str] = []
    for document in documents:
        chosen.append(document[:characters])
        if sum(map(len, chosen)) >= characters:
            break
    return "\n\n".join(chosen)
