"""Metrics as tables and as JSON."""

import json

from mask2former.evaluation.common.report import distinct_names, metrics_json, metrics_table

RESULTS = {"AP": 12.3456, "n": 2, "AP-a": 1.0, "AP-stop-sign": float("nan"), "RQ-a": 3.0}


def test_table_has_the_metrics_and_one_row_for_each_class():
    rows = [line.split() for line in metrics_table(RESULTS).splitlines()]
    assert rows[0] == ["AP", "n"] and rows[2] == ["12.346", "2"]
    assert rows[4] == ["class", "AP", "RQ"]
    assert rows[6:] == [["a", "1.000", "3.000"], ["stop-sign", "nan"]]
    assert "class" not in metrics_table(RESULTS, per_class=False)


def test_nan_is_null_in_json():
    assert json.loads(metrics_json(RESULTS)) == {**RESULTS, "AP-stop-sign": None}


def test_classes_of_one_name_have_metrics_of_their_own():
    assert distinct_names(["box", "cup", "box"]) == ["box (0)", "cup", "box (2)"]
