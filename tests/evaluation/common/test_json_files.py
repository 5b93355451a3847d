"""JSON files of ground truth and results: a byte order mark is skipped, deep nesting is an error."""

import pytest

from mask2former.evaluation.common.json_files import load_json


def test_nesting_beyond_the_parser_is_an_error(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.json: not a usable JSON file"):
        load_json(path, list)


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "marked.json"
    path.write_text("\ufeff[1]", encoding="utf-8")
    assert load_json(path, list) == [1]
