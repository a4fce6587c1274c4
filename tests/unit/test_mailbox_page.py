"""The page of contrib/docker/mailbox: what it shows of mail, and that mail can't harm it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "contrib/docker/mailbox/maildir_page.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("maildir_page", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


PAGE = load()
EVIL = "<script>alert(1)</script>"


def deliver(root: Path, mailbox: str, name: str, text: str) -> None:
    folder = root / mailbox / "new"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def get(root: Path, target: str, host: str = "127.0.0.1:8025") -> tuple[int, str]:
    status, _, text = PAGE.answer(root, host, target)
    return status, text


VERDICTS = {
    "nothing was added": ("Subject: a\n\n", "a@example.org", "clean"),
    "X-Spam": ("X-Spam: Yes\nX-Spam-Score: 7.0 / 15\n\n", "a@example.org", "spam, 7.0 / 15"),
    "it is in Junk": ("Subject: a\n\n", "a@example.org/.Junk", "spam, in Junk"),
    "X-Unscanned": ("X-Unscanned: rspamd: timeout\n\n", "a@b", "not scanned (rspamd: timeout)"),
}


@pytest.mark.parametrize(("text", "folder", "verdict"), VERDICTS.values(), ids=VERDICTS)
def test_the_list_shows_the_verdict(tmp_path: Path, text: str, folder: str, verdict: str) -> None:
    deliver(tmp_path, folder, "1", text)
    status, shown = get(tmp_path, "/")
    assert status == 200
    assert f">{verdict}</td>" in shown


def test_an_empty_directory_is_no_error(tmp_path: Path) -> None:
    assert "Nothing yet" in get(tmp_path, "/")[1]


def test_a_message_is_shown_with_the_added_fields_and_its_source(tmp_path: Path) -> None:
    text = "DKIM-Signature: v=1;\n b=abc\nFrom: me\nSubject: hello\n\nthe body\n"
    deliver(tmp_path, "a@example.org", "1700000000.abc", text)
    status, shown = get(tmp_path, "/message/a%40example.org/new/1700000000.abc")
    assert status == 200
    assert "<tr><th>DKIM-Signature</th><td>v=1; b=abc</td></tr>" in shown
    assert "<th>From</th>" not in shown
    assert "the body" in shown


@pytest.mark.parametrize("target", ["/", "/message/x/new/1"])
def test_mail_is_shown_as_text(tmp_path: Path, target: str) -> None:
    fields = ("Subject", "From", "X-Spam-Score", "DKIM-Signature", "X-Unscanned")
    deliver(tmp_path, "x", "1", "".join(f"{name}: {EVIL}\n" for name in fields) + f"\n{EVIL}\n")
    shown = get(tmp_path, target)[1]
    assert "&lt;script&gt;" in shown
    assert "<script" not in shown


OUTSIDE = {
    "above the directory": "/message/../secret",
    "above it, encoded": "/message/%2e%2e/secret",
    "an absolute path": "/message//etc/passwd",
    "no message": "/message/",
    "a symbolic link": "/message/a/new/link",
    "another page": "/secret",
}


@pytest.mark.parametrize("target", OUTSIDE.values(), ids=OUTSIDE)
def test_only_messages_are_shown(tmp_path: Path, target: str) -> None:
    root = tmp_path / "mail"
    (tmp_path / "secret").write_text("secret")
    deliver(root, "a", "1", "Subject: a\n\n")
    (root / "a/new/link").symlink_to(tmp_path / "secret")
    assert get(root, target)[0] == 404


HOSTS = {
    "127.0.0.1:8025": 200,
    "localhost:8025": 200,
    "localhost": 200,
    "mailbox:8025": 200,
    "evil.example": 403,
    "evil.example:8025": 403,
    "": 403,
}


@pytest.mark.parametrize(
    ("host", "status"), HOSTS.items(), ids=[name or "no name" for name in HOSTS]
)
def test_it_answers_under_its_own_names_only(tmp_path: Path, host: str, status: int) -> None:
    assert get(tmp_path, "/", host)[0] == status


def test_damaged_mail_is_shown_too(tmp_path: Path) -> None:
    deliver(tmp_path, "a", "1", "")
    (tmp_path / "a/new/2").write_bytes(b"Subject: =?utf-8?q?=ff?= \xff\xfe\r\n\r\n\x00\xff")
    assert get(tmp_path, "/")[1].count("<a href=") == 2
    assert get(tmp_path, "/message/a/new/2")[0] == 200
