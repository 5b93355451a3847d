"""Values and names in messages: short, in one line, without characters that control a terminal.

Names of files, classes and tensors come from files that others wrote. They may hold escape codes, line breaks
and marks that reverse the direction of text, which are escaped wherever messages are printed or logged.
"""

import copy
import logging
import re
from numbers import Number
from typing import Any

LONGEST = 500  # characters of a line of a message
SLACK = 40  # further characters that are not worth leaving out
CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)  # control characters, marks of direction, invisible characters, and bytes of names that are not UTF-8


class Block(str):
    """Text of several lines that we made, such as a table; its line breaks stay when it is logged."""

    __slots__ = ()


def brief(value: Any, limit: int = 100) -> str:
    """Return the beginning of a value's repr, at most `limit` characters."""
    try:
        text = repr(value[:limit] if isinstance(value, list | str) else value)
    except (RecursionError, ValueError):  # nested too deep, or a number of more digits than Python writes
        text = f"<{type(value).__name__}>"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def plural(number: int, noun: str) -> str:
    """Return a number and the noun, with an s unless the number is 1."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def escaped(text: str, keep: str = "") -> str:
    r"""Return text with its control characters, except those in `keep`, written as \n, \x1b, \u202e."""
    if text.isascii() and text.isprintable():  # the usual case
        return text

    def escape(match: re.Match[str]) -> str:
        return match[0] if match[0] in keep else match[0].encode("unicode_escape").decode()

    return CONTROL.sub(escape, text)


def shortened(text: str, limit: int = LONGEST) -> str:
    """Return a text of at most about `limit` characters: its middle is replaced by its length."""
    if len(text) <= limit + SLACK:
        return text
    end = limit // 3
    start = limit - end
    return f"{text[:start]} [... {len(text) - limit} characters ...] {text[-end:]}"


def legible(value: Any, limit: int = LONGEST) -> str:
    """Return a name, error or other value in one line (a `Block` in its lines), escaped and shortened."""
    single = value.args[0] if isinstance(value, BaseException) and len(value.args) == 1 else value
    lines = single.split("\n") if isinstance(single, Block) else [str(value)]
    text = "\n".join(shortened(escaped(line, keep="\t"), limit) for line in lines)
    return Block(text) if isinstance(single, Block) else text


def reason(error: BaseException, name: object) -> str:
    """Return the message of an error without the name of the file or image that it begins with."""
    return legible(error).removeprefix(f"{legible(name)}: ")


class InputError(ValueError):
    """An error in what a user gave; its message is `legible`."""

    def __init__(self, message: object) -> None:
        super().__init__(legible(message))


class MessageFormatter(logging.Formatter):
    """Formatter of log lines whose arguments are `legible`, and whose lines are not too long."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and below it the traceback if there is one."""
        record = copy.copy(record)
        if isinstance(record.args, tuple):
            record.args = tuple(
                arg if isinstance(arg, Number) else Block(legible(arg)) for arg in record.args
            )
        record.msg, record.args = legible(Block(record.getMessage())), ()
        return super().format(record)
