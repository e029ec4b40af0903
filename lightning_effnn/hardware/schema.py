"""What the values of an accelerator may be, and what is said of those that are none.

The classes of :mod:`~lightning_effnn.hardware.accelerator` check what they are built from, wherever it comes from;
of a file a message names the file, the key and the value, and says what would be accepted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, ValidationError

from lightning_effnn.hardware._numbers import MOST, real, whole
from lightning_effnn.hardware.operation import DIMENSIONS

KINDS = ("conv", "depthwise", "gemm")
OPERANDS = ("I", "W", "O")
READS, WRITES = ("to_low", "to_high"), ("from_high", "from_low")
CONFIG = ConfigDict(extra="forbid", populate_by_name=True)
_MOST = f"{MOST:.0e}".replace("+", "")
_MOST_RUN_BITS = 64
_MOST_SHOWN = 100  # characters of a value in a message


class SchemaError(ValueError):
    """An accelerator file that can't be used."""


class Unfit(ValueError):
    """A value that does not fit the others; ``key`` is seen from the object that holds both."""

    def __init__(self, key: str, value: Any, accepted: str) -> None:
        self.key, self.rest = key, f"the value {_shown(value)}; accepted: {accepted}"
        super().__init__(f"{key} has {self.rest}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def once(values: Iterable[str], key: str) -> None:
    """Refuse a value that stands there twice."""
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise Unfit(key, value, "each but once")
        seen.add(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("accepted: text")
    return value


def _label(value: Any) -> str:
    if not isinstance(value, str) or not value[:1].isalnum() or not value.isprintable():
        raise ValueError("accepted: a name in one line that begins with a letter or a digit")
    return value


def _positive(value: Any) -> int:
    number = whole(value)
    if number is None or not 1 <= number <= MOST:
        raise ValueError(f"accepted: a positive integer of at most {_MOST}")
    return number


def _run_bits(value: Any) -> int:
    number = whole(value)
    if number is None or not 0 <= number <= _MOST_RUN_BITS:
        raise ValueError(f"accepted: a positive integer of at most {_MOST_RUN_BITS}")
    return number


def _amount(value: Any) -> float:
    number = real(value)
    if number is None or not 0 <= number <= MOST:
        raise ValueError(f"accepted: a number from 0 to {_MOST}")
    return number


def _price(value: Any) -> float:
    number = _amount(value)
    if number == 0:
        raise ValueError(f"accepted: a number of more than 0 and at most {_MOST}")
    return number


def _one_of(*accepted: str) -> BeforeValidator:
    def check(value: Any) -> str:
        if value not in accepted:
            raise ValueError(f"accepted: {', '.join(accepted)}")
        return str(value)

    return BeforeValidator(check)


def _transfer(value: Any) -> tuple[str, ...]:
    parts = tuple(value.split()) if isinstance(value, str) else value
    if not isinstance(parts, tuple) or len(parts) != 2 or parts[0] not in OPERANDS or parts[1] not in READS + WRITES:
        raise ValueError("accepted: an operand (I, W, O) and a direction (from_high, to_low, from_low, to_high)")
    return parts


Text = Annotated[str, BeforeValidator(_text)]
Label = Annotated[str, BeforeValidator(_label)]
Positive = Annotated[int, BeforeValidator(_positive)]
RunBits = Annotated[int, BeforeValidator(_run_bits)]
Amount = Annotated[float, BeforeValidator(_amount)]
Price = Annotated[float, BeforeValidator(_price)]
Operand = Annotated[str, _one_of(*OPERANDS)]
Kind = Annotated[str, _one_of(*KINDS)]
Role = Annotated[str, _one_of("weights", "activations")]
Loop = Annotated[str, _one_of(*DIMENSIONS)]
Transfer = Annotated[tuple[str, str], BeforeValidator(_transfer)]

_ACCEPTED = {
    "dataclass_type": "a mapping of keys to values",
    "dict_type": "a mapping of keys to values",
    "tuple_type": "a list",
    "string_type": "text",
}


def refusal(error: ValidationError, file: str, raw: Any, keys: Mapping[str, tuple[str, ...]]) -> SchemaError:
    """The first fault of a file in words.

    Args:
        error: what building the chip raised.
        file: path of the file.
        raw: its contents.
        keys: accepted keys of each part of the file, by the part's name; ``""`` is the whole.
    """
    # a misspelt key is named before the one that is missing for it
    fault = min(error.errors(include_url=False), key=lambda f: (f["type"] == "missing") - _names_a_key(f))
    path = [part for part in fault["loc"] if part != "[key]"]
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, Unfit):
        return SchemaError(f"{file}: key {_key([*path, cause.key], raw)!r} has {cause.rest}")
    key = _key(path, raw)
    if fault["type"] == "missing":
        return SchemaError(f"{file}: key {key!r} is missing")
    if not _names_a_key(fault):
        where = f"key {key!r}" if key else "the file"
        return SchemaError(f"{file}: {where} has the value {_shown(fault['input'])}; accepted: {_accepted(fault)}")
    part = next((part for part in reversed(path[:-1]) if part in keys), "")
    accepted = _accepted(fault).split(", ") if fault["loc"][-1] == "[key]" else keys[str(part)]
    near = difflib.get_close_matches(str(path[-1]), accepted, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    value = "" if fault["loc"][-1] == "[key]" else f" with the value {_shown(fault['input'])}"
    return SchemaError(f"{file}: unknown key {key!r}{value}; accepted: {', '.join(accepted)}.{hint}")


def _names_a_key(fault: Any) -> bool:
    return fault["loc"][-1:] == ("[key]",) or fault["type"] in ("unexpected_keyword_argument", "invalid_key")


def _accepted(fault: Any) -> str:
    context = fault.get("ctx", {})
    if "error" in context:
        return str(context["error"]).removeprefix("accepted: ")
    if "expected" in context:
        return str(context["expected"]).replace("'", "").replace(" or ", ", ")
    return _ACCEPTED.get(fault["type"], str(fault["msg"]))


def _key(path: list[Any], raw: Any) -> str:
    text = ""
    for part in path:
        if text == "memories" and isinstance(part, int):
            part = str(list(raw["memories"])[part])
        text += f"[{part}]" if type(part) is int else f".{part}"
        text = text.removeprefix(".")
    return text
