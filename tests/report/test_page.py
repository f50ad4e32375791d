import json
import re
from html.parser import HTMLParser

import pytest

from sphere_pl.errors import UserError
from sphere_pl.report import write_report
from sphere_pl.report.facts import FAILED_SHOWN
from sphere_pl.report.page import REFRESH

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;"


class Tags(HTMLParser):
    """All start tags with their attributes, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"

    def handle_data(self, data):
        if self._inside:
            self.scripts.append(data)
            self._inside = False


@pytest.fixture
def report(make_run):
    def write(**options):
        return write_report(make_run(**options)).read_text(encoding="utf-8")

    return write


def words(text):
    """What a reader reads, without scripts and tags."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


def test_report_of_a_finished_run_stands_in_its_folder(make_run):
    folder = make_run()
    path = write_report(folder)
    assert path == folder / "report.html"
    text = words(path.read_text(encoding="utf-8"))
    assert "AlphaEdit + SPHERE finished" in text
    assert "1,500 edits" in text
    assert "before: 57.4" in text
    assert "0.87 s" in text
    assert "3.07 GiB" in text
    assert re.search(r"specificity neighbouring facts still answered truthfully 21\.0 ± 1\.1 4\.6 ± 0\.5 −16\.4", text)
    assert "−0.74 to +0.29" in text
    assert [path.name for path in folder.iterdir() if path.suffix == ".part"] == []


def test_nothing_is_loaded_from_outside(report):
    text = report()
    outside = [
        (tag, attributes) for tag, attributes in Tags(text).tags for name in ("src", "href") if name in attributes
    ]
    assert outside == []
    assert "url(" not in text.split("</style>")[0]
    assert "default-src 'none'" in text


def test_plotly_is_in_the_page_once_and_every_figure_has_data(report):
    found = Tags(report())
    assert sum("plotly.js v" in script[:200] for script in found.scripts) == 1
    holders = [each["id"] for _, each in found.tags if each.get("class") == "figure"]
    assert holders == ["accuracy", "energy", "trends"] + [
        f"change-{name}"
        for name in ("efficacy", "generalization", "specificity", "neighborhood_agreement", "perplexity")
    ] + ["projection", "seconds", "target", "other-0", "other-1"]
    data = [each["id"] for tag, each in found.tags if tag == "script" and "id" in each]
    assert data == [f"{name}-data" for name in holders] + ["palette"]


def test_only_a_run_that_goes_on_loads_itself_again(report, make_run):
    refresh = f'<body data-refresh="{REFRESH}">'
    assert refresh not in report()
    text = report(name="live", finished=False, batches=3)
    assert text.count(refresh) == 1
    assert "live running" in words(text)
    assert "The table appears when the run has finished." in words(text)
    assert "at least four validations" in words(text)
    stopped = write_report(make_run("stopped", finished=False), live=False).read_text(encoding="utf-8")
    assert refresh not in stopped
    assert "stopped stopped" in words(stopped)


def test_a_collapsed_run_says_when(report):
    assert "collapsed at 900 edits: efficacy below 60%" in words(report())
    assert "collapsed" not in words(report(name="held", collapse=9000.0))


def test_tables_of_abilities_cases_and_failures_appear_when_they_were_measured(report):
    abilities = {"sst2": {"before": 0.8, "after": 0.75, "standard_error": 0.04, "items": 100}}
    cases = [{"prompt": "Berlin is the capital of", "before": "Germany", "after": "France", "wanted": "France"}]
    failed = [{"case_id": 7, "subject": "Oslo", "prompt": "Oslo lies in", "wanted": "Japan", "given": "Norway"}]
    after = {"efficacy": 0.9, "probability/efficacy": 0.97, "probability/efficacy_standard_error": 0.01}
    text = words(report(changes={"abilities": abilities, "cases": cases, "failed": failed, "after": after}))
    assert "General abilities" in text
    assert "sst2 80.0 75.0 ± 4.0 −5.0 100" in text
    assert "Berlin is the capital of Germany France France" in text
    assert "Oslo Oslo lies in Japan Norway" in text
    assert re.search(r"probability, efficacy – 97\.0 ± 1\.0", text)


def test_a_run_that_has_just_begun_has_a_report(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1\n")
    assert "no edits logged yet" in words(write_report(tmp_path).read_text(encoding="utf-8"))


def test_text_from_data_cannot_become_markup(make_run):
    folder = make_run(
        method=EVIL,
        changes={
            "model": EVIL,
            "versions": {EVIL: EVIL},
            "hyperspherical_energy": {EVIL: {"before": 1.0, "after": 2.0}},
            "failed": [{"prompt": EVIL, "wanted": EVIL, "given": EVIL}],
            "spearman": {EVIL: {"levels": {"rho": 0.1}, "differences": {"rho": 0.1}}},
        },
    )
    csv = folder / "metrics.csv"
    csv.write_text(csv.read_text().replace("model.layers.4.mlp.down_proj.weight", EVIL))
    (folder / "config.yaml").write_text(f"name: {EVIL}\n")
    found = Tags(write_report(folder).read_text(encoding="utf-8"))
    assert all(tag != "img" and "onerror" not in attributes for tag, attributes in found.tags)
    assert not any(script.startswith("alert") for script in found.scripts)
    energy = json.loads(next(script for script in found.scripts if "mean over matrices" in script))
    names = [trace["name"] for trace in energy["data"]]
    assert any("&lt;img" in name for name in names)
    assert not any("<" in name for name in names)


def test_first_fifty_failed_edits_are_listed(report):
    text = report()
    assert f"the first {FAILED_SHOWN} of 63" in words(text)
    assert text.count("The mother tongue of person") == FAILED_SHOWN
    assert "Failed edits" not in report(name="clean", changes={"failed": []})


def test_columns_and_results_that_were_not_measured_are_left_out(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,edits,val/efficacy\n0,100,0.9\n")
    (tmp_path / "results.json").write_text(json.dumps({"edits": 100, "after": {"efficacy": 0.9}, "spearman": {}}))
    text = words(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "Energy and metrics have not both been logged yet." in text
    assert "Updates and principal directions" not in text
    assert "generalization" not in text


def test_missing_folder_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        write_report(tmp_path / "runs" / "nothing")
