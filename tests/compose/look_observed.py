"""Does the profile observe show what it should?  Asks the Prometheus at 127.0.0.1:PORT.

look_observed.py PORT              targets, rules, and every line of the dashboard
look_observed.py PORT NAME...      these alerts are pending or firing, within a minute
"""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parents[2] / "contrib/observe/dashboard.json"
PATIENCE = 60.0  # seconds
# What Grafana puts in the place of its variables.
VARIABLES = {"$job": "filter-bridge", "$__rate_interval": "1m"}
# Shows nothing as long as nothing failed.
EMPTY = {"What failures led to"}


def get(port: str, path: str, **query: str) -> Any:
    """What Prometheus answers."""
    url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=10) as reply:
        answer = json.load(reply)
    assert answer["status"] == "success", answer
    return answer["data"]


def look(port: str) -> list[str]:
    """What is wrong."""
    wrong = []
    targets = get(port, "targets", state="active")["activeTargets"]
    wrong += [f"{each['scrapeUrl']}: {each['lastError']}" for each in targets if each["lastError"]]
    if not any(each["health"] == "up" for each in targets):
        wrong.append("no bridge is up")
    rules = [rule for group in get(port, "rules")["groups"] for rule in group["rules"]]
    wrong += [f"{rule['name']}: {rule['lastError']}" for rule in rules if rule.get("lastError")]
    if not rules:
        wrong.append("there are no rules")
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            values = [each["value"][1] for each in get(port, "query", query=expression)["result"]]
            if panel["title"] not in EMPTY and all(value == "NaN" for value in values):
                wrong.append(f"{panel['title']}: nothing to show")
    return wrong


def look_for_alerts(port: str, wanted: set[str]) -> list[str]:
    """What is wrong."""
    there = {each["labels"]["alertname"] for each in get(port, "alerts")["alerts"]}
    return [f"{name}: no such alert" for name in sorted(wanted - there)]


def main() -> int:
    """0 as soon as all is well, 1 after PATIENCE."""
    port, *names = sys.argv[1:]
    assert re.fullmatch(r"\d+", port)
    until = time.monotonic() + PATIENCE
    while True:
        try:
            wrong = look_for_alerts(port, set(names)) if names else look(port)
        except OSError as error:
            wrong = [str(error)]
        if not wrong or time.monotonic() > until:
            break
        time.sleep(1.0)
    for each in wrong:
        print(f"FAIL  {each}")
    if not wrong:
        print(f"ok    {' '.join(names) or 'targets, rules, and every line of the dashboard'}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
