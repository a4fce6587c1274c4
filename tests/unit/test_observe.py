"""Do the alerts, the dashboard and the table of contrib/docs/metrics.md speak of the metrics that
there are, with the labels and values that they have?
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.metrics import BOUNDS, METRICS, LinkUse, Metrics, ServerUse
from bridge.policy import COUNTED

ROOT = Path(__file__).parents[2]
RULES = ROOT / "contrib/observe/rules.yml"
DASHBOARD = ROOT / "contrib/observe/dashboard.json"
TABLE = ROOT / "contrib/docs/metrics.md"
BOARD = json.loads(DASHBOARD.read_text())
ENDS = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
# Of Prometheus's own making.
EVERYWHERE = {"job", "instance", "le"}
SELECTOR = re.compile(r"\bfilter_bridge_(\w+?)(_bucket|_sum|_count)?\{([^}]*)\}")
BY = re.compile(r"by \(([^)]*)\)")


def sample() -> str:
    """The text of a bridge."""
    metrics = Metrics("1.0")
    metrics.begin(COUNTED)
    metrics.answered("rcpt-to", "reject", 1.0)
    metrics.answered("message", "proceed", 1.0)
    metrics.answered("message", "failed", 1.0)
    metrics.asked("rspamd", "ok", 1.0)
    server = ServerUse("rspamd", "http://127.0.0.1:11333", up=True)
    return metrics.text([LinkUse("shim", 1, 1, 1)], [server])


def labels() -> dict[str, set[str]]:
    """By metric, as the bridge tells them."""
    found: dict[str, set[str]] = {name: set() for name in METRICS}
    for line in sample().splitlines():
        if match := SELECTOR.match(line):
            found[match[1]] |= set(re.findall(r'(\w+)="', match[3]))
    return found


def panels() -> Iterator[tuple[str, str]]:
    """Title and expression of each line of the dashboard."""
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def alerts() -> Iterator[tuple[str, str]]:
    """Name and text of each alert; no YAML parser is needed for a file of ours."""
    for text in RULES.read_text().split("- alert: ")[1:]:
        yield text.split("\n", 1)[0], text


EXPRESSIONS = [*panels(), *alerts()]


@pytest.mark.parametrize(("name", "text"), EXPRESSIONS, ids=[name for name, _ in EXPRESSIONS])
def test_an_expression_asks_for_what_there_is(name: str, text: str) -> None:
    known, told = labels(), sample()
    used = set(EVERYWHERE)
    for metric, end, matchers in SELECTOR.findall(text):
        assert end in ENDS[METRICS[metric][0]], f"{metric} is a {METRICS[metric][0]}"
        used |= known[metric]
        for label, operator, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', matchers):
            assert label in known[metric] | EVERYWHERE, f"{metric} has no {label}"
            if label not in EVERYWHERE:
                wanted = value if operator == "=~" else re.escape(value)
                one = re.compile(rf'^filter_bridge_{metric}\w*{{[^}}]*{label}="{wanted}"', re.M)
                assert one.search(told), f"no {label} is ever {value}"
    assert "filter_bridge_" in text.replace("{{", "") or "up{" in text
    for group in BY.findall(text):
        assert set(group.split(", ")) <= used, f"by ({group})"


def test_a_number_of_now_is_asked_for_now() -> None:
    """The last one of a range would be shown long after its bridge is gone."""
    numbers = [each for each in BOARD["panels"] if each["type"] == "stat"]
    targets = [target for panel in numbers for target in panel["targets"]]
    assert targets
    assert {(target.get("instant"), target.get("range")) for target in targets} == {(True, False)}


def test_the_variable_stands_for_our_jobs_only() -> None:
    [job] = [each for each in BOARD["templating"]["list"] if each["name"] == "job"]
    assert "allValue" not in job
    assert "filter_bridge_" in job["query"]["query"]


def test_a_quantile_is_compared_with_a_bound_of_the_histogram() -> None:
    """Between two bounds it is a guess."""
    [text] = [text for _, text in alerts() if "histogram_quantile(" in text]
    limit = re.search(r"> (\d+)$", text, re.M)
    assert limit
    assert float(limit[1]) in BOUNDS


def test_every_metric_is_in_the_dashboard_or_known_to_be_left_out() -> None:
    shown = {match[0] for _, text in panels() for match in SELECTOR.findall(text)}
    assert set(METRICS) - shown == {
        "build_info",
        "link_requests_total",
        "config_reload_success_timestamp_seconds",
    }


def test_the_table_has_every_metric_with_its_type_and_labels() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\|", TABLE.read_text(), re.M)
    told = {name: (kind, set(re.findall(r"\w+", names))) for name, kind, names in rows}
    assert told == {
        name: (METRICS[name][0], names - EVERYWHERE) for name, names in labels().items()
    }
