"""Do the examples work under real servers, as programs of their own and under the shim?

Each has a listener of its own, all of them one server for each version and way.
"""

from __future__ import annotations

import json
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from email.message import EmailMessage
from pathlib import Path

import pytest
import spf  # type: ignore[import-untyped]

from tests.live import places
from tests.live.bridged import message
from tests.live.world import Listener, OpenSMTPD, Reply, eventually
from tests.unit.sidecar import Sidecar

EXAMPLES = Path(__file__).parents[2] / "contrib/examples"
WAYS = {
    "in process": "/usr/bin/env {1} {{python}} {{dir}}/{0}.py",
    "under the shim": "/usr/bin/env PYTHONPATH={{dir}} {1} {{bridge}} run {0}:app",
}
SETTINGS = {
    "greylisting": "GREYLIST_DB={dir}/state/grey.db",
    "dnsbl": "DNSBL_ZONES=bl.example",
    "attachments": "",
    "subject_tag": "SUBJECT_TAG=TAG",
    "eventlog": "EVENTLOG={dir}/state/log",
    "rate_limit": "RATE_LIMIT=2",
    "spf_results": "",
}
ZONE = """
$PTR 127.5.5.5 good.example
5.5.5.127.bl.example A 127.0.0.2
spf.example TXT "v=spf1 ip4:127.5.0.0/16 -all"
"""
# Outgoing mail, which goes to the server's own last listener.
RELAY = """
action "end" maildir "{dir}/mail" virtual <anybody>
action "out" relay host smtp://{address}:2600 filter "eventlog"
match tag "END" from any for any action "end"
match from any for domain "relayed.example" action "out"
"""


@pytest.fixture(
    scope="module",
    params=[(version, way) for version in places.VERSIONS for way in WAYS],
    ids=", ".join,
)
def mta(request: pytest.FixtureRequest) -> Iterator[OpenSMTPD]:
    version, way = request.param
    files = {f"{name}.py": (EXAMPLES / f"{name}.py").read_bytes() for name in SETTINGS}
    filters = {name: WAYS[way].format(name, env) for name, env in SETTINGS.items()}
    if way == "in process":
        files["callbacks_2018.py"] = (EXAMPLES / "callbacks_2018.py").read_bytes()
        filters["callbacks_2018"] = "{python} {dir}/callbacks_2018.py"
    listeners = [
        Listener(name, 2500 + number, filters=(name,)) for number, name in enumerate(filters)
    ]
    server = OpenSMTPD(
        version,
        filters=filters,
        files=files | {"spf.py": Path(spf.__file__).read_bytes()},
        listeners=[*listeners, Listener("end", 2600, filters=(), options='tag "END"')],
        socket_filters=["rate_limit"],
        zone=ZONE,
        conf=RELAY,
    )
    (server.dir / "state").mkdir()
    (server.dir / "state").chmod(0o777)
    with server:
        yield server
        assert server.alive
    assert server.leftovers == []


def send(
    mta: OpenSMTPD, name: str, mail: bytes = message(), *, to: str = "rcpt@example.org",
    sender: str = "a@spf.example", source: str = "127.5.5.5",
) -> Reply:  # fmt: skip
    """A mail to the listener of that example."""
    return mta.send(mail, sender, [to], source=source, listener=name)


def arrived(mta: OpenSMTPD, recipient: str) -> bytes:
    """Wait for the mail to that recipient."""
    found = eventually(
        f"mail to {recipient}",
        lambda: [mail for mail in mta.mails() if mail.recipient == recipient],
        30,
    )
    return found[0].raw


def test_greylisting(mta: OpenSMTPD) -> None:
    assert send(mta, "greylisting").code == 450
    with closing(sqlite3.connect(mta.dir / "state/grey.db")) as db, db:
        assert db.execute("update seen set since = since - 300").rowcount == 1
    assert send(mta, "greylisting").code == 250
    assert send(mta, "greylisting", sender="other@spf.example").code == 450


def test_dnsbl(mta: OpenSMTPD) -> None:
    with mta.client("dnsbl", source="127.5.5.5", greet=False) as client:
        reply = client.read()
        assert (reply.code, "is listed by bl.example" in reply.lines[0]) == (554, True)
        assert client.closed_by_server()
    assert send(mta, "dnsbl", source="127.5.5.6").code == 250


def test_attachments(mta: OpenSMTPD) -> None:
    mail = EmailMessage()
    mail.set_content("hello")
    mail.add_attachment(b"MZ", maintype="application", subtype="x", filename="a.exe")
    reply = send(mta, "attachments", mail.as_bytes().replace(b"\n", b"\r\n"))
    assert (reply.code, "type .exe" in reply.lines[0]) == (554, True)
    assert send(mta, "attachments").code == 250


def test_subject_tag(mta: OpenSMTPD) -> None:
    assert send(mta, "subject_tag", message("tagged"), to="tag@example.org").code == 250
    assert b"\nSubject: TAG tagged\n" in arrived(mta, "tag@example.org")


def test_eventlog(mta: OpenSMTPD) -> None:
    assert send(mta, "eventlog", to="bo@relayed.example", sender="log@spf.example").code == 250
    arrived(mta, "bo@relayed.example")
    path = mta.dir / "state/log"

    def both_ended() -> list[dict[str, str]]:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        ends = {line["direction"] for line in lines if line["event"] == "tx-commit"}
        return lines if ends == {"smtp-in", "smtp-out"} else []

    lines = eventually("a commit each way", both_ended, 20)
    for direction in ("smtp-in", "smtp-out"):
        mails = [x for x in lines if (x["event"], x["direction"]) == ("tx-mail", direction)]
        assert [(mail["address"], mail["result"]) for mail in mails] == [("log@spf.example", "ok")]


def test_rate_limit(mta: OpenSMTPD) -> None:
    mail = b"Subject: hi\n\nhello\n"
    assert [mta.sendmail(mail).returncode for _ in range(2)] == [0, 0]
    assert mta.sendmail(mail).returncode != 0
    mta.wait_log(r"rate_limit: deferred .*reply=.450 4.7.1 You have sent to too many")
    assert send(mta, "rate_limit").code == 250  # from outside


def test_spf_results(mta: OpenSMTPD) -> None:
    send(mta, "spf_results", to="pass@example.org")
    send(mta, "spf_results", to="fail@example.org", source="127.6.6.6")
    for result in ("pass", "fail"):
        content = arrived(mta, f"{result}@example.org")
        field = f"Authentication-Results: mx.example.org; spf={result} smtp.mailfrom=spf.example\n"
        assert field.encode() in content


# It makes its filter only as a program.
@pytest.mark.parametrize(
    "mta", [(version, "in process") for version in places.VERSIONS], indirect=True, ids=", ".join
)
def test_callbacks_2018(mta: OpenSMTPD) -> None:
    assert send(mta, "callbacks_2018", to="old@example.org").code == 250
    mta.wait_log(r"callbacks_2018: [0-9a-f]{16} connect \S+ \S+ 127\.5\.5\.5:\d+ \S+:2507$")
    mta.wait_log(r"callbacks_2018: [0-9a-f]{16} mail [0-9a-f]{8} a@spf\.example ok$")
    mta.wait_log(r"callbacks_2018: [0-9a-f]{16} rcpt [0-9a-f]{8} old@example\.org ok$")
    mta.wait_log(r"callbacks_2018: [0-9a-f]{16} ended [0-9a-f]{8} \d+$")
    mta.wait_log(r"callbacks_2018: [0-9a-f]{16} disconnect 0$")


@pytest.mark.parametrize("version", places.VERSIONS)
def test_one_that_runs_elsewhere(version: str, tmp_path: Path) -> None:
    """`filter-bridge serve --app`, and `run ... --connect` under smtpd."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"tcp:127.0.0.1:{free.getsockname()[1]}"
    path = f"{EXAMPLES}:{EXAMPLES.parents[1]}"
    env = {"PYTHONPATH": path, "SUBJECT_TAG": "TAG"}
    command = f"{{bridge}} run subject_tag:app --connect {endpoint}"
    with (
        Sidecar(tmp_path, endpoint, app="subject_tag:app", env=env),
        OpenSMTPD(version, filters={"tag": command}) as server,
    ):
        assert server.send(message("tagged")).code == 250
        [mail] = server.wait_delivered(1)
        assert b"\nSubject: TAG tagged\n" in mail.raw
