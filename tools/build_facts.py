"""Build facts.json from the table of facts and the templates.

Run ``python -m tools.build_facts`` after a change of ``facts/facts.tsv`` or ``facts/templates.toml``. Every choice is
made by ranking the candidates by a hash of their own text, so the result depends on neither the order of the table nor
the Python version, and a new fact leaves the choices of the others alone.
"""

import csv
import hashlib
import json
import logging
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from sphere_pl.data.builtin import facts_path

_log = logging.getLogger(__name__)

Record: TypeAlias = dict[str, Any]

SEED = "sphere_pl facts 1"
MIN_NEIGHBOURS = 5
MAX_NEIGHBOURS = 8
MAX_ATTRIBUTES = 4
NEIGHBOUR_SHARE = 0.4


@dataclass(frozen=True)
class Fact:
    """A true fact: ``subject`` has the relation ``relation`` to ``object``."""

    relation: str
    subject: str
    object: str


@dataclass(frozen=True)
class Templates:
    """The wordings of one relation; in each, ``{}`` is the subject's place."""

    label: str
    edit: tuple[str, ...]
    paraphrase: tuple[str, ...]
    neighbour: tuple[str, ...]
    generation: tuple[str, ...]


def read_facts(path: Path) -> list[Fact]:
    """Read the table of facts: tab separated relation, subject and object, below a header line."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [Fact(*row) for row in rows[1:]]


def read_templates(path: Path) -> dict[str, Templates]:
    """Read the templates of every relation."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        relation: Templates(
            label=table["label"],
            edit=tuple(table["edit"]),
            paraphrase=tuple(table["paraphrase"]),
            neighbour=tuple(table["neighbour"]),
            generation=tuple(table["generation"]),
        )
        for relation, table in tables.items()
    }


def mentions(text: str, name: str) -> bool:
    """Tell whether ``name`` occurs in ``text`` as a whole name.

    Example:
        >>> mentions("The map shows Guinea-Bissau", "Guinea"), mentions("a Nigerian", "Niger")
        (True, False)
    """
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def neighbour_subjects(facts: Sequence[Fact]) -> set[str]:
    """Set subjects aside that are only ever neighbours, at least five for each relation and object.

    A subject of several relations (a country, say) is set aside for all of them: its facts stay true throughout.
    """
    aside: set[str] = set()
    for group in sorted(_group_by_object(facts).values(), key=lambda group: (len(group), _rank(str(group[0])))):
        wanted = max(MIN_NEIGHBOURS, round(NEIGHBOUR_SHARE * len(group)))
        ranked = sorted(group, key=lambda fact: (fact.subject not in aside, _rank("aside", fact.subject)))
        aside.update(fact.subject for fact in ranked[:wanted])
    return aside


def make_records(facts: Sequence[Fact], templates: dict[str, Templates]) -> list[Record]:
    """Make one edit of every fact whose subject is not set aside.

    The relations are dealt out evenly: any stretch of the list holds them in the same proportions.
    """
    aside = neighbour_subjects(facts)
    pools = {
        key: [fact.subject for fact in group if fact.subject in aside] for key, group in _group_by_object(facts).items()
    }
    dealt: list[tuple[float, Record]] = []
    for relation, wordings in templates.items():
        edits = [fact for fact in facts if fact.relation == relation and fact.subject not in aside]
        edits.sort(key=lambda fact: _rank("order", fact.relation, fact.subject))
        for index, fact in enumerate(edits):
            place = (index + _unit("place", fact.relation, fact.subject)) / len(edits)
            dealt.append((place, _make_record(fact, wordings, pools)))
    dealt.sort(key=lambda pair: pair[0])
    return [{"case_id": case_id, **record} for case_id, (_, record) in enumerate(dealt)]


def check_sources(facts: Sequence[Fact], templates: dict[str, Templates]) -> None:
    """Refuse a table or templates from which no sound set can be made.

    Raises:
        ValueError: If a fact is listed twice, a subject gives its object away, an object has too few subjects, a
            relation lacks templates, or a template does not hold exactly one ``{}``.
    """
    if len({(fact.relation, fact.subject) for fact in facts}) < len(facts):
        raise ValueError("facts.tsv lists a subject twice under one relation. Keep one line.")
    for fact in facts:
        if fact.relation not in templates:
            raise ValueError(f"{fact} has a relation without templates. Add [{fact.relation}] to templates.toml.")
        if fact.object.lower() in fact.subject.lower():
            raise ValueError(f"{fact} gives its object away. Take it out of facts.tsv.")
    for (relation, value), group in _group_by_object(facts).items():
        if len(group) <= MIN_NEIGHBOURS:
            raise ValueError(f"{relation} {value!r} has {len(group)} subjects, {MIN_NEIGHBOURS + 1} are needed.")
    for wordings in templates.values():
        for template in (*wordings.edit, *wordings.paraphrase, *wordings.neighbour, *wordings.generation):
            if template.count("{}") != 1:
                raise ValueError(f"Template {template!r} must hold exactly one {{}}.")


def check_records(records: Sequence[Record]) -> None:
    """Refuse a set in which a neighbour names the subject of an edit.

    Raises:
        ValueError: If a neighbourhood or attribute prompt mentions an edited subject.
    """
    edited = sorted({record["requested_rewrite"]["subject"] for record in records})
    prompts = {
        prompt for record in records for prompt in (*record["neighborhood_prompts"], *record["attribute_prompts"])
    }
    clashes = [(prompt, name) for prompt in sorted(prompts) for name in edited if name in prompt]
    clashes = [(prompt, name) for prompt, name in clashes if mentions(prompt, name)]
    if clashes:
        raise ValueError(f"Neighbours must not be edited, but prompts mention edited subjects: {clashes}")


def build(folder: Path) -> str:
    """Return the text of facts.json, one record a line, made from the two source files in ``folder``."""
    facts = read_facts(folder / "facts.tsv")
    templates = read_templates(folder / "templates.toml")
    check_sources(facts, templates)
    records = make_records(facts, templates)
    check_records(records)
    lines = (json.dumps(record, ensure_ascii=False) for record in records)
    return "[\n" + ",\n".join(lines) + "\n]\n"


def main() -> None:
    """Write facts.json into the package."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    path = facts_path()
    text = build(Path(__file__).parent / "facts")
    path.write_text(text, encoding="utf-8", newline="\n")
    _log.info("%d records, %d bytes: %s", len(json.loads(text)), len(text.encode()), path)


def _make_record(fact: Fact, wordings: Templates, pools: dict[tuple[str, str], list[str]]) -> Record:
    """Make the record of one edit, without its number."""
    key = (fact.relation, fact.subject)
    edit = _ranked(wordings.edit, "edit", *key)[0]
    target = _counterfactual(fact, edit, pools)
    neighbours = _ranked(pools[fact.relation, fact.object], "neighbours", *key)[:MAX_NEIGHBOURS]
    attributes = _ranked(pools[fact.relation, target], "attributes", *key)[:MAX_ATTRIBUTES]
    probes = (edit, *_ranked([t for t in wordings.neighbour if t != edit], "probes", *key))
    return {
        "requested_rewrite": {
            "prompt": edit,
            "relation_id": fact.relation,
            "subject": fact.subject,
            "target_new": {"str": target},
            "target_true": {"str": fact.object},
        },
        "paraphrase_prompts": _fill(_ranked(wordings.paraphrase, "paraphrases", *key)[:2], [fact.subject]),
        "neighborhood_prompts": _fill(probes, neighbours),
        "attribute_prompts": _fill(probes, attributes),
        "generation_prompts": [t.replace("{}", fact.subject) for t in wordings.generation],
    }


def _counterfactual(fact: Fact, prompt: str, pools: dict[tuple[str, str], list[str]]) -> str:
    """Choose another object of the relation that neither the subject nor the prompt already names."""
    text = prompt.replace("{}", fact.subject).lower()
    objects = [value for relation, value in pools if relation == fact.relation]
    eligible = [value for value in objects if value != fact.object and value.lower() not in text]
    return _ranked(eligible, "target", fact.relation, fact.subject)[0]


def _fill(templates: Sequence[str], subjects: Sequence[str]) -> list[str]:
    """Put as many subjects into the templates as there are of the more numerous, taking the others in turn."""
    turns = range(max(len(templates), len(subjects)))
    return [templates[i % len(templates)].replace("{}", subjects[i % len(subjects)]) for i in turns]


def _group_by_object(facts: Iterable[Fact]) -> dict[tuple[str, str], list[Fact]]:
    """Group facts by relation and object."""
    groups: defaultdict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact in facts:
        groups[fact.relation, fact.object].append(fact)
    return dict(groups)


def _ranked(candidates: Iterable[str], *key: str) -> list[str]:
    """Shuffle candidates in an order that depends only on them and on ``key``."""
    return sorted(candidates, key=lambda candidate: _rank(*key, candidate))


def _rank(*key: str) -> int:
    """Return a number that is as good as random but always the same for the same key."""
    return int.from_bytes(hashlib.sha256("\x1f".join((SEED, *key)).encode()).digest()[:8], "big")


def _unit(*key: str) -> float:
    """Return a number in [0, 1) that is as good as random but always the same for the same key."""
    return _rank(*key) / 2**64


if __name__ == "__main__":
    main()
