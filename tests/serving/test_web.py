"""The JSON API over a real socket."""

import errno
import random
import threading
import time

import httpx
import pytest
import torch

from tests.serving.conftest import FACT, OTHER, Served

pytestmark = pytest.mark.filterwarnings("ignore:The corpus")
ROUTES = ("read", "edit", "ask", "ask_all", "undo", "export")
ASK = {"prompts": ["The capital of France is"], "max_tokens": 4}


def test_a_fact_is_read_edited_asked_for_exported_and_taken_back(open_session):
    with Served(open_session()) as served:
        assert served.state()["edits"] == []
        assert "".join(served.post("read", FACT).json()["pieces"]).strip() == "Berlin"
        edited = served.post("edit", FACT).json()
        assert edited["case_id"] == "s1"
        assert edited["geometry"]["norm"] > 0
        assert edited["answers"][0].keys() == {"kind", "prompt", "unedited", "before", "after"}
        (asked,) = served.post("ask", ASK).json()
        assert asked.keys() == {"prompt", "unedited", "edited"}
        assert served.post("ask_all", {}).json().keys() == {"edits", "held", "scores"}
        assert served.post("export", {"kind": "delta"}).json()["folder"].endswith("delta-1")
        assert [each["subject"] for each in served.state()["edits"]] == ["France"]
        assert served.post("undo", {"edit": "France"}).json()["exact"] is True
        assert served.state()["edits"] == []


GOOD = b'"prompt": "{} is", "subject": "b", "target": "x"'
# Bodies that no route takes.
MALFORMED = [
    b"", b"{", b"null", b"[]", b"7", b'"text"', b"\xff\xfe", b"[" * 5000, b'{"prompt": NaN}',
    b'{"prompts": ["\\ud800"]}',
    b'{"kind": "model/../.."}', b'{"kind": null}', b'{"prompts": []}', b'{"prompts": [""]}', b'{"prompts": 3}',
    b'{"prompts": ["a"], "max_tokens": 0}', b'{"prompts": ["a"], "max_tokens": 1e9}', b'{"edit": ["s1"]}',
    b'{"prompts": ["a"], "max_tokens": true}', b'{"prompts": ["a"], "chat": "yes"}', b'{"edit": "nobody"}',
    b'{"prompt": "{} is", "target": "x"}', b'{"prompt": "{} is", "subject": "", "target": "x"}', b'{"edit": ""}',
    b'{"prompt": "{} is", "subject": " ", "target": "x"}', b'{"prompt": "a", "subject": "b", "target": "x"}',
    b"{" + GOOD + b', "case_id": "s1"}', b"{" + GOOD + b', "paraphrases": "no list"}', b'{"edit": "\\ud800"}',
    b'{"prompt": "{} is", "subject": "b", "target": "' + b"x" * 201 + b'"}', b'{"\\ud800": Infinity}',
    b'{"prompt": "' + b"x" * 1001 + b'", "subject": "b", "target": "x"}', b'{"edit": "' + b"x" * 70_000 + b'"}',
]  # fmt: skip


def spoiled(draw):
    """A body with some bytes changed, which is no JSON any more or holds an unknown field."""
    body = bytearray(b"{" + GOOD + b', "unknown": "' + draw.randbytes(8).hex().encode() + b'"}')
    for _ in range(draw.randrange(4)):
        body[draw.randrange(len(body))] = draw.randrange(256)
    return bytes(body)


def test_malformed_requests_are_refused_in_one_message_each_and_change_nothing(open_session, caplog):
    refuse(open_session(), [(route, body) for route in ROUTES for body in MALFORMED], caplog)


@pytest.mark.slow
def test_a_thousand_spoiled_requests_are_refused_too(open_session, caplog):
    draw = random.Random(0)
    refuse(open_session(), [(draw.choice(ROUTES), spoiled(draw)) for _ in range(1000)], caplog)


def refuse(session, requests, caplog):
    session.edit(FACT)
    before = {name: value.clone() for name, value in session.lm.model.state_dict().items()}
    with Served(session) as served, httpx.Client(base_url=served.address, timeout=60) as client:
        state = served.state()
        for route, body in requests:
            answer = client.post(f"/api/{route}", content=body, headers={"Content-Type": "application/json"})
            assert 400 <= answer.status_code < 500, (route, body[:80], answer.text)
            assert answer.json().keys() == {"error"}, (route, body[:80], answer.text)
            assert "Traceback" not in answer.text
        for method, path in (("GET", "/api/edit"), ("PUT", "/api/state"), ("GET", "/api/../etc/passwd"), ("GET", "/x")):
            assert 400 <= client.request(method, path).status_code < 500
        assert served.state() == state
    assert all(torch.equal(value, before[name]) for name, value in session.lm.model.state_dict().items())
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


@pytest.mark.parametrize(
    ("number", "status", "said"), [(errno.ENOSPC, 507, "The disk is full"), (errno.EIO, 500, "could not be used")]
)
def test_a_disk_that_fails_is_one_message_and_changes_nothing(open_session, monkeypatch, number, status, said):
    session = open_session()
    session.edit(FACT)

    def fails(*_):
        raise OSError(number, "no luck")

    with Served(session) as served:
        state = served.state()
        monkeypatch.setattr("sphere_pl.serving.states.write_text", fails)
        answer = served.post("edit", OTHER)
        assert (answer.status_code, said in answer.json()["error"]) == (status, True)
        assert served.state() == state


def test_a_disk_that_fills_up_in_an_edit_is_one_message_without_advice_for_a_run(open_session, monkeypatch):
    session = open_session()

    def fails(*_, **__):
        raise OSError(errno.ENOSPC, "no luck")

    with Served(session) as served:
        monkeypatch.setattr("sphere_pl.run.results.write_atomically", fails)
        answer = served.post("edit", FACT)
        assert answer.status_code == 507
        assert answer.json()["error"].startswith("The disk is full")
        assert answer.json()["error"].endswith("no luck. Nothing was changed.")
        assert (served.state()["edits"], session.states.current) == ([], None)
        assert not list(session.states.folder.glob("0*"))


def test_one_request_at_a_time_has_the_model_and_one_that_waits_too_long_is_told(open_session, monkeypatch):
    session, inside, most = open_session(), [], []

    def slow(prompts, *_):
        inside.append(prompts)
        most.append(len(inside))
        time.sleep(0.6)
        inside.pop()
        return []

    monkeypatch.setattr(session, "ask", slow)
    found = []
    with Served(session, patience=0.2) as served:
        threads = [threading.Thread(target=lambda: found.append(served.post("ask", ASK).status_code)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == [200, 409, 409]
    assert max(most) == 1


def test_beyond_this_machine_every_request_brings_the_token(open_session):
    with Served(open_session(), token="right") as served:
        get = lambda **headers: httpx.get(f"{served.address}/api/state", headers=headers).status_code  # noqa: E731
        assert [get(), get(Authorization="Bearer wrong"), get(Authorization="Bearer right")] == [401, 401, 200]
        assert httpx.get(served.address).status_code == 200  # the page, which asks for it
        assert served.post("edit", FACT).status_code == 401


def test_a_page_of_another_site_reaches_nothing(open_session):
    with Served(open_session()) as served:
        assert served.post("ask", ASK, Host="evil.example:80").status_code == 403
        content = {"content": b'{"prompts": ["a"]}', "headers": {"Content-Type": "text/plain"}}
        assert httpx.post(f"{served.address}/api/ask", **content).status_code == 422
        assert served.post("ask", ASK, Origin="https://evil.example").status_code == 403


def test_what_was_edited_through_the_api_is_there_for_the_next_server(open_session):
    with Served(open_session()) as served:
        served.post("edit", FACT)
        served.post("edit", OTHER)
        asked = served.post("ask", ASK).json()
    with Served(open_session()) as served:
        assert [each["case_id"] for each in served.state()["edits"]] == ["s1", "s2"]
        assert served.post("ask", ASK).json() == asked
