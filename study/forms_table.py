"""The table of `study.forms`: what is learnt beside a prompt, and what that does to a wording never seen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from study import forms
from study.marks import check_result
from study.paired import exchanged, share
from study.tables import apart, percent

NAMES = {
    "contexts2": "two contexts, the default",
    "contexts0": "no contexts",
    "wording": "a second wording",
    "questions": "two forms of a question",
    "chat": "the chat form",
    "all_forms": "all of these",
}
USUAL = "contexts2"


def read_forms(folder: Path = forms.RESULTS) -> dict[str, dict[str, Any]]:
    """The finished cells by name.

    Raises:
        UserError: If one does not belong with the others.
    """
    paths = {name: folder / f"{name}.json" for name in forms.CELLS}
    return {
        name: check_result(path, forms.cells()[name], forms.VERSION) for name, path in paths.items() if path.exists()
    }


def forms_section(found: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """The section of the page; empty before anything was run."""
    found = read_forms() if found is None else found
    if USUAL not in found:
        return ""
    lines = [
        "## Edits that generalize",
        "",
        f"{forms.FACTS} CounterFact facts on the default model, the default method and layers, batches of 20. "
        "Beside its prompt each fact is learnt in the forms named; one paraphrase that was never learnt is asked "
        "(`python -m study.forms`, settings in [study/conf/forms.yaml](../study/conf/forms.yaml)).",
        "",
        "| learnt beside it | holds | in unseen words | minus the default's | others as before | in chat form |",
        "|---|---|---|---|---|---|",
        *(_row(name, result, found[USUAL]) for name, result in found.items()),
        "",
        "A second wording is learnt with `--data.edit_paraphrases 1`, or from the field `wordings` ([Data](data.md)). "
        f"{_left(found)}".rstrip(),
        "",
    ]
    return "\n".join(lines)


def in_short(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What a second wording does, and the chat form, in a line each; of those that were run."""
    return "\n".join(line for line in (_of_wording(found), _of_chat(found)) if line)


def _of_chat(found: Mapping[str, Mapping[str, Any]]) -> str:
    if not {USUAL, "chat"} <= {*found}:
        return ""
    held = {name: share(found[name]["outcomes"]["written"]).value for name in (USUAL, "chat")}
    in_chat = {name: found[name]["after"]["chat/efficacy"] for name in (USUAL, "chat")}
    return (
        f"- **Do edits hold in a chat?** Asked in the chat template, teacher-forced, {in_chat[USUAL]:.0%} of them: "
        f"they were edited as plain text. Edited in both (`--data.chat both`) {in_chat['chat']:.0%} hold in a chat "
        f"and {held['chat']:.0%} as plain text, where {held[USUAL]:.0%} did."
    )


def _of_wording(found: Mapping[str, Mapping[str, Any]]) -> str:
    if not {USUAL, "wording"} <= {*found}:
        return ""
    usual, worded = (share(found[name]["outcomes"]["written_paraphrase"]) for name in (USUAL, "wording"))
    return (
        f"- **Do edits hold in words that were never learnt?** Of {forms.FACTS} facts on the default model "
        f"{usual.value:.0%}, and {worded.value:.0%} where one other wording was learnt beside the prompt "
        "(`--data.edit_paraphrases 1`)."
    )


def _left(found: Mapping[str, Any]) -> str:
    left = [NAMES[name] for name in forms.CELLS if name not in found]
    return f"Not run: {', '.join(left)}." if left else ""


def _row(name: str, result: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    signs = result["outcomes"]
    if not signs:
        return f"| {NAMES[name]} | broke off: {result['failed']} |" + " |" * 4
    kind = "written_paraphrase"
    against = "" if result is usual else apart(exchanged(usual["outcomes"][kind], signs[kind]))
    chat = result["after"].get("chat/efficacy")
    cells = [
        percent(share(signs["written"])),
        percent(share(signs[kind])),
        against,
        percent(share(signs["neighbor"])),
        "" if chat is None else f"{chat:.2f}",
    ]
    return f"| {NAMES[name]} | {' | '.join(cells)} |"
