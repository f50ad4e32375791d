"""Reports in a real browser: every figure is drawn, the console stays silent, a phone sees no sideways scrolling."""

import html
import json
import re

import pytest
from matplotlib.image import imread

from sphere_pl.report import write_comparison, write_report

# Tells the frame around the page what only a laid-out page knows.
PROBE = """
<script>
let error = "";
addEventListener("error", (event) => error = event.message);
addEventListener("securitypolicyviolation", (event) => error = event.blockedURI);
setTimeout(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const figures = all(".js-plotly-plot").map((figure) => {
    const box = figure.querySelector("svg.main-svg").getBoundingClientRect();
    const marks = all(".scatterlayer path, .barlayer path", figure).length;
    return { id: figure.id, width: box.width, height: box.height, room: figure.clientWidth, marks };
  });
  const overflow = document.documentElement.scrollWidth - innerWidth;
  parent.postMessage({ error, figures, overflow, holders: all(".figure").length, width: innerWidth,
    cloud: all("[data-title*=loud]").length }, "*");
}, 2500);
</script>
"""
FRAME = """<!doctype html><body style="margin:0"><pre></pre>
<script>addEventListener("message", (event) => {
  document.querySelector("pre").textContent = JSON.stringify(event.data); });</script>
<iframe src="{name}" style="border:0;width:{width}px;height:2400px"></iframe></body>"""


@pytest.fixture
def pages(make_run, tmp_path):
    folders = [make_run("plain", method="AlphaEdit", collapse=600.0), make_run("sphere", seed=2)]
    live = make_run("live", finished=False, batches=6)
    return [write_report(folders[0]), write_report(live), write_comparison(folders, tmp_path / "both")]


def look(browser, page, width=1100, spoil=""):
    """Open a page in a frame of some width; headless windows themselves are never as narrow as a phone."""
    # A page that loads itself again would never come to rest; folds are opened, as a reader would.
    text = re.sub(r' data-refresh="\d+"', "", page.read_text(encoding="utf-8")).replace("<details>", "<details open>")
    page.with_name("probed.html").write_text(
        text.replace("<title>", PROBE + "<title>", 1).replace("<main", spoil + "<main")
    )
    frame = page.with_name("frame.html")
    frame.write_text(FRAME.replace("{name}", "probed.html").replace("{width}", str(width)))
    done = browser(frame, "--dump-dom")
    found = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)[1]))
    return found, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("width", [1100, 390])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_every_figure_is_drawn_in_its_place_without_a_console_message(browser, pages, which, width):
    found, console = look(browser, pages[which], width)
    assert console == []
    assert found["error"] == ""
    assert found["width"] == width
    assert len(found["figures"]) == found["holders"] >= 10
    for figure in found["figures"]:
        assert figure["height"] > 200, figure
        assert 200 < figure["width"] < figure["room"] + 1, figure
        assert figure["marks"] > 0, figure
    assert found["overflow"] <= 0, "the page scrolls sideways"
    assert found["cloud"] == 0, "plotly offers to send the data to a server"


def test_browser_refuses_what_would_come_from_the_network(browser, pages):
    found, console = look(browser, pages[0], spoil='<img src="https://example.org/picture.png" alt="">')
    assert found["error"].startswith("https://example.org")
    assert any("Content Security Policy" in line for line in console)


def test_screenshot_shows_the_curves(browser, pages):
    picture = pages[0].with_suffix(".png")
    browser(pages[0], f"--screenshot={picture}", width=1200, height=2400)
    pixels = (imread(picture)[:, :, :3] * 255).round().astype(int)
    assert pixels.shape == (2400, 1200, 3)
    for color in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73), (0xB1, 0x57, 0x8D)):
        assert (abs(pixels - color).max(axis=2) < 8).sum() > 200, f"no curve in {color}"
