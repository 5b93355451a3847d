"""Names and values in messages: escaped, short, and in one line."""

import json
import logging
import pickle
import sys

import numpy as np
import pytest

from mask2former.utils.messages import (
    LONGEST,
    SLACK,
    Block,
    InputError,
    MessageFormatter,
    brief,
    escaped,
    legible,
    plural,
    reason,
    shortened,
)


def test_a_noun_has_an_s_after_any_number_but_one():
    assert [plural(n, "thread") for n in (0, 1, 2)] == ["0 threads", "1 thread", "2 threads"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a\x1b[31mred\x07", r"a\x1b[31mred\x07"),
        ("two\nlines\r\tand a tab", r"two\nlines\r\tand a tab"),
        ("gnp.\u202eexe", r"gnp.\u202eexe"),
        ("in\u200bvisible\ufeff", r"in\u200bvisible\ufeff"),
        ("not UTF-8 \udcff", r"not UTF-8 \udcff"),
        ("\x9b31m, \u2028", r"\x9b31m, \u2028"),
        ("Straße 東京 😀 👩\u200d🚒", "Straße 東京 😀 👩\u200d🚒"),
    ],
)
def test_control_characters_are_escaped_and_text_of_any_language_stays(name, expected):
    assert escaped(name) == expected


def test_characters_to_keep_stay():
    assert escaped("a\tb\n\x1b", keep="\t\n") == "a\tb\n\\x1b"


def test_a_long_text_keeps_both_ends_and_tells_what_is_missing():
    text = "/folder/" * 50 + "x.json: " + ", ".join(map(str, range(1000))) + " are unknown"
    short = shortened(text)
    assert len(short) <= LONGEST + SLACK and shortened(short) == short
    assert short.startswith(text[:200])
    assert short.endswith("are unknown")
    assert f"[... {len(text) - LONGEST} characters ...]" in short
    assert shortened("short") == "short"


def test_errors_and_names_are_one_line_and_blocks_keep_theirs():
    assert legible(ValueError("a\nb")) == r"a\nb"
    assert legible(ValueError(Block("a\nb\x1b"))) == "a\nb\\x1b"
    assert legible(OSError(28, "No space left")) == "[Errno 28] No space left"
    assert legible(7) == "7"


def test_brief_values_are_no_longer_than_asked_for():
    assert brief("a" * 5000, 10) == "'aaaaaa..."
    assert brief([1] * 5000, 10) == "[1, 1, ..."
    assert brief({"a": None}) == "{'a': None}"


def test_brief_values_may_be_nested_or_have_too_many_digits():
    assert brief({"a": json.loads("[" * 900 + "]" * 900)}).startswith("{'a': [[[")
    deep = []
    for _ in range(5000):
        deep = [deep]
    assert brief(deep) == "<list>"
    assert brief(10**5000) == "<int>"


def test_the_message_of_an_error_is_legible_and_the_same_in_another_process():
    error = InputError("a\n" + "b" * 5000)
    assert str(error).startswith(r"a\nbbb") and len(str(error)) <= LONGEST + SLACK
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert legible(InputError(Block("a\nb"))) == "a\nb"


def formatted(message, *arguments, **more):
    record = logging.LogRecord("name", logging.INFO, "file", 1, message, arguments, None)
    vars(record).update(more)
    return MessageFormatter("%(levelname)s %(message)s").format(record)


def test_log_lines_escape_their_arguments_and_keep_their_own_lines():
    assert formatted("%s:\n  %d of %.1f", "a\nb\x1b", np.int64(2), 3.0) == "INFO a\\nb\\x1b:\n  2 of 3.0"
    assert formatted("table\n%s", Block("a\tb\nc\td")) == "INFO table\na\tb\nc\td"
    assert formatted("100 %") == "INFO 100 %"
    assert formatted("%(a)s", {"a": 1}) == "INFO 1"
    assert len(formatted("%s and %s", "x" * 5000, "y" * 5000)) < LONGEST + 60


def test_tracebacks_stay_whole():
    try:
        raise ValueError("x" * 2000)
    except ValueError:
        lines = formatted("failed", exc_info=sys.exc_info()).splitlines()
    assert lines[0] == "INFO failed" and lines[1].startswith("Traceback") and len(lines[-1]) > 2000


@pytest.mark.parametrize("name", ["a.png", "a\n.png"])
@pytest.mark.parametrize("kind", [InputError, ValueError])
def test_a_reason_does_not_repeat_the_name(name, kind):
    assert reason(kind(f"{name}: no such\nfile"), name) == r"no such\nfile"
    assert reason(kind("no such file"), name) == "no such file"
