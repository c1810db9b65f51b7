import json
from urllib.parse import parse_qs, urlsplit

import pytest

from llmtune.credentials import without_credentials
from llmtune.tracking.links import children_link, compare_link, experiment_link, run_link, ui_base

pytestmark = pytest.mark.fast
BASE = "http://127.0.0.1:5000"


def _query(link):
    return {key: values[0] for key, values in parse_qs(urlsplit(link).fragment.partition("?")[2]).items()}


def test_base_is_the_server_or_this_machine():
    assert ui_base("sqlite:////x/mlflow.db", 5001) == "http://127.0.0.1:5001"
    assert ui_base("https://me:pw@mlflow.example.org/", 5001) == "https://mlflow.example.org"


def test_compare_link_carries_json_lists():
    link = compare_link(BASE, "1", ["aa", "bb"])
    assert link.startswith(f"{BASE}/#/compare-runs?")
    assert json.loads(_query(link)["runs"]) == ["aa", "bb"]
    assert json.loads(_query(link)["experiments"]) == ["1"]
    assert not set(link) & set('" []')


def test_children_link_filters_and_sorts():
    query = _query(children_link(BASE, "1", "ff"))
    assert query["searchFilter"] == "tags.mlflow.parentRunId = 'ff'"
    assert query["orderByKey"] == "metrics.`evaluate/loss`"
    assert query["compareRunsMode"] == "CHART"


def test_links_are_shown_whole_where_secrets_are_masked():
    for link in (children_link(BASE, "1", "ff"), compare_link(BASE, "1", ["aa"]), run_link(BASE, "1", "ff")):
        assert without_credentials(link) == link
    assert without_credentials(f"{BASE}?access_key=abc") == f"{BASE}?access_key=***"


def test_pages_of_a_run_and_an_experiment():
    assert run_link(BASE, "1", "ff") == f"{BASE}/#/experiments/1/runs/ff"
    assert experiment_link(BASE, "1").startswith(f"{BASE}/#/experiments/1/runs?")
