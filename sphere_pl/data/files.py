"""Records of local files in every shape: JSON lists and lines, JSON under a key, CSV, TSV, Parquet, packed or not."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from sphere_pl.data.layouts import json_records, table
from sphere_pl.data.records import Record
from sphere_pl.errors import UserError
from sphere_pl.storage.files import expanded

_JSON, _TABLES = (".json", ".jsonl", ".ndjson"), (".csv", ".tsv")
_SHOWN = (*_JSON[:2], *_TABLES, ".parquet")
_SUFFIXES = (*_JSON, *_TABLES, ".parquet")
_PACKED: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    ".gz": (b"\x1f\x8b", gzip.decompress),
    ".bz2": (b"BZh", bz2.decompress),
    ".xz": (b"\xfd7zXZ\x00", lzma.decompress),
}
_MARKS = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def read_records(path: str | Path, file: str | None = None, key: str = "train") -> Iterator[Record]:
    """Read a file of records; its shape is told from what it holds.

    Args:
        path: A file, or a folder that holds it.
        file: Which file of the folder; needed where there are several.
        key: Which list of a JSON object, where it holds several.

    Raises:
        UserError: If the file is missing, empty, no text in UTF-8, or malformed; the line is named.
    """
    path = find_file(expanded(path), file)
    suffix = data_suffix(path)
    if suffix == ".parquet":
        yield from _parquet(path)
        return
    text = read_text(path)
    if suffix in _JSON or (suffix not in _TABLES and text.lstrip()[0] in "[{"):
        yield from json_records(path, text, key, lines=suffix != ".json")
    elif suffix in _TABLES or _looks_like_table(text):
        yield from table(path, text, tabs=suffix == ".tsv")
    else:
        raise UserError(
            f"--data.path={str(path)!r} must be a {', '.join(_SHOWN)} file: it begins with {text[:40]!r}, which is "
            "neither JSON nor a table."
        )


def data_suffix(path: Path) -> str:
    """A file's suffix, without the one that says how it is packed.

    Example:
        >>> data_suffix(Path("edits.jsonl.gz"))
        '.jsonl'
    """
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in _PACKED else suffix


def read_text(path: Path) -> str:
    """The text of a file of records, unpacked, with line ends as they are in Unix.

    Raises:
        UserError: If it cannot be read, is not UTF-8 or holds nothing.
    """
    content = _content(path)
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}). Convert it to UTF-8 and try again.") from error
    if not text.strip():
        raise UserError(f"{path} is empty. Expected records.")
    if "\0" in text:
        raise UserError(f"{path} holds NUL characters, as UTF-16 without its mark does. Save it as UTF-8.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}. Check the path.") from error
    if content.startswith(b"PK\x03\x04"):
        raise UserError(f"{path} is a zip archive (or a workbook). Unpack it, or save it as CSV, and name that file.")
    for mark, unpack in _PACKED.values():
        if content.startswith(mark):
            try:
                return unpack(content)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise UserError(f"{path} could not be unpacked ({error}): it seems cut off. Get it again.") from error
    return content


def find_file(path: Path, file: str | None = None) -> Path:
    """The data file that a path means: itself, or the one in a folder.

    Raises:
        UserError: If the folder holds none, or several of which none is named.
    """
    if not path.is_dir():
        if file is not None:
            raise UserError(f"--data.file={file!r} names a file of a folder, but --data.path={str(path)!r} is none.")
        return path
    if file is not None:
        return path / file
    found = sorted(entry.name for entry in path.iterdir() if data_suffix(entry) in _SUFFIXES)
    if len(found) != 1:
        held = f"{len(found)} data files ({', '.join(found[:8])})" if found else f"no {', '.join(_SHOWN)} file"
        raise UserError(f"--data.path={str(path)!r} is a folder with {held}. Name one: --data.file=<name>.")
    return path / found[0]


def _looks_like_table(text: str) -> bool:
    """Whether the first two rows are cut by the same sign into as many cells."""
    first, _, rest = text.lstrip().partition("\n")
    second = rest.partition("\n")[0]
    return any(0 < first.count(sign) <= second.count(sign) for sign in ",;\t|")


def _parquet(path: Path) -> Iterator[Record]:
    from pyarrow import ArrowException  # type: ignore[import-untyped]
    from pyarrow.parquet import read_table  # type: ignore[import-untyped]

    try:
        rows = read_table(path).to_pylist()
    except OSError as error:
        raise UserError(f"{path} could not be read: {error}. Check the path.") from error
    except ArrowException as error:
        raise UserError(f"{path} is no Parquet file: {str(error).splitlines()[0]} Get it again.") from error
    for index, row in enumerate(rows):
        yield Record(f"{path}, row {index}", index, row)
