"""The examples in contrib/smtpd are good, as far as `smtpd -n` can tell, and so is what they say
that bridge.toml should have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge import config
from tests.live import places
from tests.live.documented import reader, verdict_on
from tests.live.world import OpenSMTPD

EXAMPLES = {
    path.name: path.read_text()
    for path in sorted((Path(__file__).parents[2] / "contrib/smtpd").glob("*.conf"))
}


@pytest.fixture(scope="module", params=places.VERSIONS)
def mta(request: pytest.FixtureRequest) -> Iterator[OpenSMTPD]:
    with reader(request.param) as server:
        yield server


def test_there_are_examples() -> None:
    assert [*EXAMPLES] == ["behind-filter.conf", "mx-submission.conf", "relay.conf", "small.conf"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_smtpd_takes_it(mta: OpenSMTPD, name: str) -> None:
    assert verdict_on(mta, EXAMPLES[name]) == "0 configuration OK"


@pytest.mark.parametrize("name", EXAMPLES)
def test_smtpd_would_notice_a_missing_filter(mta: OpenSMTPD, name: str) -> None:
    text = EXAMPLES[name].replace('filter "bridge" proc-exec', 'filter "other" proc-exec', 1)
    assert verdict_on(mta, text).startswith("1 ")


@pytest.mark.parametrize("name", ["mx-submission.conf", "relay.conf"])
def test_what_it_says_of_bridge_toml_is_good(name: str) -> None:
    lines = re.findall(r"^#     (.*)$", EXAMPLES[name], re.MULTILINE)
    text = "\n".join(lines)
    if "dkim.enabled" in text:
        text = '[dkim]\nservers = ["unix:/run/dkim-signer/sock"]\n' + text
    parsed = config.parse(text, strict=True)
    assert parsed.warnings == ()
    assert len(parsed.profiles) == 1
