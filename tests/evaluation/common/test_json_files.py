"""JSON files of ground truth and results: a byte order mark is skipped, deep nesting is an error."""

import pytest

from mask2former.evaluation.common.json_files import get_value, load_json


def test_nesting_beyond_the_parser_is_an_error(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.json: not a usable JSON file"):
        load_json(path, list)


def test_a_number_of_too_many_digits_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "digits.json"
    path.write_text(f"[{'1' * 5000}]")
    with pytest.raises(ValueError, match=r"digits\.json: not a readable JSON file \(Exceeds the limit"):
        load_json(path, list)


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "marked.json"
    path.write_text("\ufeff[1]", encoding="utf-8")
    assert load_json(path, list) == [1]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -(10**400), "1", None])
def test_a_number_is_finite_and_no_text(value):
    with pytest.raises(ValueError, match=r"^file: 'score' is .*, expected a number$"):
        get_value({"score": value}, "score", "file", float)


def test_messages_about_long_values_are_short():
    with pytest.raises(ValueError, match=r"^image xx.*characters.*: no key 'id' in \{'xx.*\.\.\.$") as error:
        get_value({"x" * 5000: 1}, "id", f"image {'x' * 5000}")
    assert len(str(error.value)) < 550
