"""The page in a real browser, from a typed fact to an undo."""

import html
import json
import re
from pathlib import Path

import pytest
from fastapi.responses import HTMLResponse
from matplotlib.image import imread

from sphere_pl.serving import web
from tests.report.conftest import browser  # noqa: F401 (a fixture)
from tests.serving.conftest import Served

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The corpus")]

PAGE = Path(web.__file__).with_name("page.html")
# What a person does, one thing after the other; what is seen in between goes into the title.
PERSON = """
<script>
const seen = [];
addEventListener("error", (event) => seen.push("error: " + event.message));
addEventListener("securitypolicyviolation", (event) => seen.push("blocked: " + event.blockedURI));
const rested = async () => { do { await new Promise((go) => setTimeout(go, 20)); }
  while (document.querySelector("button").disabled); };
const type = (form, name, text) => { document.getElementById(form).elements[name].value = text; };
const see = (...ids) => seen.push(ids.map((id) => document.getElementById(id).innerText).join(" | "));
(async () => {
  await rested(); see("model", "about");
  type("fact", "prompt", "The capital of {} is"); type("fact", "subject", "France");
  type("fact", "target", "<b>Berlin</b>");
  document.getElementById("read").click(); await rested(); see("reading");
  document.getElementById("fact").requestSubmit(); await rested(); see("summary", "answers", "edits");
  type("ask", "prompt", "The capital of France is");
  document.getElementById("ask").requestSubmit(); await rested(); see("asked");
  document.getElementById("export").requestSubmit(); await rested(); see("exported");
  document.getElementById("askall").click(); await rested(); see("exported", "edits");
  type("fact", "prompt", "no subject here");
  document.getElementById("fact").requestSubmit(); await rested(); see("error");
  if (location.search === "?undo") {
    document.querySelector("#edits button").click(); await rested(); see("summary", "edits");
  }
  seen.push(document.documentElement.scrollWidth - innerWidth);
  document.title = JSON.stringify(seen);
})();
</script>
"""


def test_a_person_edits_asks_exports_and_undoes_in_the_page(browser, open_session, tmp_path):  # noqa: F811
    with Served(open_session()) as served:
        served.app.get("/person")(lambda: HTMLResponse(PAGE.read_text(encoding="utf-8") + PERSON))
        picture = tmp_path / "page.png"
        browser(f"{served.address}/person", f"--screenshot={picture}", width=1200, height=1500)
        assert imread(picture).std() > 0.05, "an empty page"
        assert [each["case_id"] for each in served.state()["edits"]] == ["s1"]
        served.session.undo("s1")

        done = browser(f"{served.address}/person?undo", "--dump-dom")
        seen = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]))
        assert served.state()["edits"] == []
    first, reading, edited, asked, exported, again, error, undone, overflow = seen
    assert "0 edits" in first
    assert "then a space, then" in reading
    assert "<b>Berlin</b>" in edited
    assert "norm of all changes" in edited
    assert "Undo" in edited
    assert "unedited" in asked
    assert exported.startswith("Written to ")
    assert "of 1 edit hold" in again
    assert "does not contain the subject" in error
    assert "is taken back" in undone
    assert overflow <= 0, "the page scrolls sideways"
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert all("422" in line for line in said), said  # the refused fact
