"""Can the real rspamd of the harness be told what to say, and made to fail?"""

from __future__ import annotations

import subprocess
from typing import Any

import httpx
import pytest

from tests.live import processes
from tests.live.rspamd import GTUBE, Rspamd, verdict

MESSAGE = b"Message-ID: <1@client.example>\r\nSubject: hello\r\n\r\nhello\r\n"
HEADERS = {"IP": "192.0.2.1", "From": "a@client.example", "Flags": "milter,body_block"}


def post(rspamd: Rspamd, message: bytes, **headers: str) -> httpx.Response:
    # A list, because a client may repeat Rcpt.
    pairs = [*HEADERS.items(), ("Rcpt", "b@example.org"), ("Rcpt", "c@example.org")]
    return httpx.post(
        f"{rspamd.url}/checkv2", content=message, headers=[*pairs, *headers.items()], timeout=5
    )


def ask(rspamd: Rspamd, message: bytes) -> dict[str, Any]:
    reply: dict[str, Any] = post(rspamd, message).json()
    return reply


WANTED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "an action": ({"action": "soft reject"}, {"action": "soft reject", "messages": {}}),
    "an action with a message": (
        {"action": "reject", "message": "no"},
        {"action": "reject", "messages": {"smtp_message": "no"}},
    ),
    "a custom action": ({"action": "custom tag"}, {"action": "custom tag"}),
    "a custom action that discards": (
        {"action": "silent"},
        {"action": "silent", "reject": "discard"},
    ),
    "a custom action that quarantines": (
        {"action": "hold"},
        {"action": "hold", "reject": "quarantine"},
    ),
    "discard": ({"action": "discard"}, {"action": "discard"}),
    "quarantine": ({"action": "quarantine"}, {"action": "quarantine"}),
    "a score that decides": ({"score": 7.5}, {"action": "add header", "score": 7.5}),
    "a score for a new subject": (
        {"score": 9},
        {"action": "rewrite subject", "subject": "*** SPAM *** hello"},
    ),
    "a score in the band of greylist": ({"score": 4.5}, {"action": "greylist"}),
    "a negative score": ({"score": -3}, {"action": "no action", "score": -3.0}),
    "a subject": (
        {"action": "rewrite subject", "subject": "n\u00e9"},
        {"subject": "=?UTF-8?Q?n=C3=A9?="},
    ),
    "a milter block": (
        {"milter": {"add_headers": {"X-A": {"value": "v", "order": 1}}}},
        {"milter": {"add_headers": {"X-A": {"value": "v", "order": 1}}}, "action": "no action"},
    ),
    "edits by lua_mime": (
        {"modify_headers": {"remove": {"X-B": [2]}}},
        {"milter": {"remove_headers": {"X-B": [2]}}},
    ),
    "a long verdict": (
        {"milter": {"add_headers": {"X-A": "x" * 5000}}},
        {"milter": {"add_headers": {"X-A": "x" * 5000}}},
    ),
}


@pytest.mark.parametrize(("wanted", "expected"), WANTED.values(), ids=WANTED.keys())
def test_it_says_what_the_message_asks_for(
    rspamd: Rspamd, wanted: dict[str, Any], expected: dict[str, Any]
) -> None:
    reply = ask(rspamd, verdict(**wanted) + MESSAGE)
    assert {key: reply[key] for key in expected} == expected


def test_it_says_no_action_to_what_asks_for_nothing(rspamd: Rspamd) -> None:
    reply = ask(rspamd, MESSAGE)
    assert (reply["action"], reply["score"], "milter" in reply) == ("no action", 0.0, False)


def test_gtube_is_rspamds_own(rspamd: Rspamd) -> None:
    reply = ask(rspamd, MESSAGE + GTUBE + b"\r\n")
    assert (reply["action"], reply["messages"]) == ("reject", {"smtp_message": "Gtube pattern"})


def test_it_replaces_a_body(rspamd: Rspamd) -> None:
    reply = post(rspamd, verdict(body="other\r\n") + MESSAGE)
    assert reply.content[int(reply.headers["Message-Offset"]) :] == b"other\r\n"


def test_it_signs(rspamd: Rspamd) -> None:
    key = subprocess.run(
        ["openssl", "genrsa", "-traditional", "1024"], check=True, capture_output=True, text=True
    ).stdout
    keys = [{"domain": "client.example", "selector": s, "rawkey": key} for s in ("one", "two")]
    first, second = ask(rspamd, verdict(dkim=keys) + MESSAGE)["dkim-signature"]
    assert "s=one;" in first
    assert "s=two;" in second


def test_one_verdict_for_all_until_it_is_taken_back(rspamd: Rspamd) -> None:
    rspamd.always(action="reject")
    assert ask(rspamd, MESSAGE)["action"] == "reject"
    assert ask(rspamd, verdict(action="discard") + MESSAGE)["action"] == "discard"
    rspamd.always()
    assert ask(rspamd, MESSAGE)["action"] == "no action"


def test_it_remembers_what_it_was_asked(rspamd: Rspamd) -> None:
    before = len(rspamd.seen())
    post(rspamd, MESSAGE, **{"Queue-Id": "q1", "Helo": "client.example"})
    [seen] = rspamd.seen()[before:]
    assert (seen["from"], seen["message_id"]) == ("a@client.example", "1@client.example")
    assert seen["rcpts"] == ["b@example.org", "c@example.org"]
    assert (seen["request"]["Queue-Id"], seen["request"]["Helo"]) == ("q1", "client.example")
    assert "Hostname" not in seen["request"]


def test_the_other_doors(rspamd: Rspamd) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(rspamd.socket))) as client:
        assert client.get("http://localhost/ping").text.strip() == "pong"
    milter = httpx.get(f"http://{rspamd.milter_address}/ping")
    assert "milter mode" in milter.headers["Server"]


def test_it_hangs_and_goes_on(rspamd: Rspamd) -> None:
    rspamd.pause()
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(f"{rspamd.url}/ping", timeout=0.5)
    rspamd.resume()
    assert ask(rspamd, MESSAGE)["action"] == "no action"


def test_it_stops_and_comes_back_where_it_was(rspamd: Rspamd) -> None:
    rspamd.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{rspamd.url}/ping", timeout=5)
    rspamd.start()
    assert ask(rspamd, MESSAGE)["action"] == "no action"


def test_it_leaves_nothing_behind() -> None:
    with Rspamd() as rspamd:
        running = rspamd.processes()
    assert len(running) > 2
    assert not [process for process in running if processes.look(process.pid)]
    assert not rspamd.dir.exists()
