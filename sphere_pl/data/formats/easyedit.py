"""CounterFact in EasyEdit's flat form: one rephrasing and one neighbour a record, prompts filled in."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

from sphere_pl.data.records import Record
from sphere_pl.data.request import EditRequest
from sphere_pl.data.subject import mark_subject
from sphere_pl.text.numbers import counted

log = logging.getLogger(__name__)

# Two templates of one relation share objects (languages, cities): on the files of 11,919 facts, whose relations are
# known for most, all rephrasings kept at this share or above are of the edit's relation, and 93 % of them are found.
SHARED = 0.2


def read_easyedit(record: Record) -> list[EditRequest]:
    """Read a flat record; `keep_paraphrases` then sorts its rephrasing."""
    subject, neighbor = record.filled("subject"), record.optional("locality_prompt")
    true = record.optional("ground_truth")
    answer = record.optional("locality_ground_truth")
    rephrase = record.optional("rephrase_prompt")
    request = EditRequest(
        case_id=str(record.get("case_id", (int, str))),
        prompt=mark_subject(record.get("prompt"), subject),
        subject=subject,
        target_new=record.get("target_new"),
        target_true=true,
        paraphrases=(rephrase,) if rephrase and rephrase.strip() else (),
        neighbors=(neighbor,) if neighbor and neighbor.strip() else (),
        neighbor_answers=(answer or "",) if neighbor and neighbor.strip() else (),
        source=record.where,
    )
    return [request]


def keep_paraphrases(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """Keep as paraphrases only the rephrasings that ask for the edit's relation; say how many.

    Three quarters of the files' `rephrase_prompt` are beginnings for free text ("Where X is from, people speak the
    language of"). A paraphrase is some unrelated text, then a template of the same relation. Templates are the edits'
    own prompts, so this needs the whole file; two belong to one relation if enough of their objects are the same. A
    rephrasing that is a bare template ("X was born in" for a mother tongue) may be either, and does not count.
    The others become prompts for free text.
    """
    objects: defaultdict[str, set[str]] = defaultdict(set)
    for request in requests:
        objects[request.prompt] |= {request.target_new, request.target_true or request.target_new}
    endings: defaultdict[str, list[str]] = defaultdict(list)
    for template in objects:
        endings[template.partition("{}")[2]].append(template)
    done, kept = [], 0
    for request in requests:
        false = [text for text in request.paraphrases if not _asks_the_same(request, text, objects, endings)]
        true = tuple(text for text in request.paraphrases if text not in false)
        kept += len(true)
        done.append(request._replace(paraphrases=true, generation=(*request.generation, *false)))
    of = f"of {counted(len(requests), 'record')}"
    log.warning(
        "%s a rephrase_prompt that is a paraphrase and is used as one; the others' are taken as prompts for free text.",
        counted(kept, f"{of} has", f"{of} have"),
    )
    return done


def _asks_the_same(
    request: EditRequest, text: str, objects: Mapping[str, set[str]], endings: Mapping[str, list[str]]
) -> bool:
    """Whether a text is something in front of a template of the request's relation."""
    front, _, ending = text.rstrip().rpartition(request.subject)
    for template in endings.get(ending, ()):
        head, mine = template.partition("{}")[0], objects[request.prompt]
        shared = len(mine & objects[template]) / min(len(mine), len(objects[template]))
        if front.endswith(head) and front != head and shared >= SHARED:
            return True
    return False
