"""The report of a resumed run, in a real browser: it loads itself again, shows what is new, rests at the end."""

import html
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from sphere_pl.report import page
from sphere_pl.run.live import LiveReport

# Tells the frame around the page, at each load, what a reader would see.
PROBE = """
<script>
let error = "";
addEventListener("error", (event) => error = event.message);
addEventListener("load", () => setTimeout(() => parent.postMessage({
  error, state: document.querySelector(".state").textContent, facts: document.querySelector(".facts").textContent,
  drawn: document.querySelectorAll(".js-plotly-plot").length, holders: document.querySelectorAll(".figure").length,
}, "*"), 500));
</script>
"""
FRAME = """<!doctype html><body><pre></pre>
<script>const seen = [];
addEventListener("message", (event) => {
  seen.push(event.data);
  document.querySelector("pre").textContent = JSON.stringify(seen); });</script>
<iframe src="report.html" style="width:1100px;height:2400px"></iframe></body>"""
TRAINER = SimpleNamespace(is_global_zero=True, sanity_checking=False)


@pytest.fixture
def serve():
    """Serve pages from functions: `serve({"/name": function})` returns the address."""
    servers = []

    def start(pages):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                found = pages.get(self.path, lambda: "")()
                self.send_response(200 if self.path in pages else 204)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.end_headers()
                self.wfile.write(found.encode())

            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def growing(make_run, monkeypatch):
    """A run whose report is further on each time it is asked for: two that go on, then the finished one."""
    monkeypatch.setattr(page, "REFRESH", 2)
    states = iter([("first", False, 5), ("second", False, 9), ("last", True, 15), ("more", True, 15)])

    def report():
        name, finished, batches = next(states)
        folder = make_run(name, finished=finished, batches=batches)
        LiveReport(str(folder)).on_validation_end(TRAINER, None)
        return (folder / "report.html").read_text(encoding="utf-8").replace("<title>", PROBE + "<title>", 1)

    return report


def test_the_page_of_a_run_that_goes_on_loads_itself_again_until_the_end(browser, serve, growing):
    address = serve({"/frame.html": lambda: FRAME, "/report.html": growing})
    done = browser(f"{address}/frame.html", "--dump-dom", "--virtual-time-budget=20000")
    seen = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)[1]))
    assert [each["state"] for each in seen] == ["running", "running", "finished"]
    assert [re.search(r"([\d,]+) edits", each["facts"])[1] for each in seen] == ["500", "900", "1,500"]
    for each in seen:
        assert each["error"] == ""
        assert each["drawn"] == each["holders"] >= 5
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
