"""What a compiled program sends, over which links, and what it computes meanwhile."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxdist.traffic import Collective, array_bytes, compiled, groups_of

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_KINDS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"
_OPERATION = re.compile(rf"(?<![\w-])(?P<kind>{_KINDS})(?P<start>-start)?\(")
_DONE = re.compile(rf"(?<![\w-])(?:{_KINDS}|async)-done\([^%)]*%?(?P<of>[\w.\-]+)")
_ASYNC = re.compile(r"(?<![\w-])async-start\(.*calls=%?(?P<calls>[\w.\-]+)")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_PRODUCT = re.compile(r"(?<![\w-])(?:dot|convolution)\(|custom_call_target=\"__(?:cublas|cudnn)")
_SEND = re.compile(
    r"= \((?P<type>\w+\[[\d,]*\]).* (?P<kind>send|recv)\(.*"
    r"_xla_host_transfer_rendezvous=\"(?P<which>[^\"]+)\".*_xla_megascale"
)
_RECEIVED = re.compile(r" recv-done\(%?(?P<of>[\w.\-]+)\)")


@dataclasses.dataclass(frozen=True)
class Sending:
    """A collective of a compiled program.

    Attributes:
        collective: what is sent.
        between: whether chips of several slices or hosts take part in one group of it. Between TPU
            slices the compiler makes of a collective one inside each, and a message of each chip to
            the other slices, which is listed as a collective-permute of all chips.
        overlapped: if it is asynchronous, the matrix products that stand between its start and its
            end in the schedule; None if nothing else is done meanwhile.
    """

    collective: Collective
    between: bool
    overlapped: int | None


def sendings(hlo: str, homes: Sequence[int]) -> list[Sending]:
    """The collectives of a program that is scheduled, in the order of its text.

    Args:
        hlo: the text of the compiled module.
        homes: for each device of the program what it shares its fastest links with.
    """
    homes_of = np.asarray(homes)
    computations = _computations(hlo)
    products = _products(computations)
    found = []
    for name, lines in computations.items():
        if name in _wrapped(computations):
            continue
        for at, line in enumerate(lines):
            if (message := _SEND.search(line)) and message["kind"] == "send":
                size = array_bytes(message["type"])
                moved = Collective("collective-permute", size, len(homes), messages=len(homes))
                overlapped = _until_received(lines, at, message["which"], products)
                found.append(Sending(moved, between=True, overlapped=overlapped))
            for inner, start in _sent_by(line, computations):
                (collective,) = compiled(_header(hlo) + inner)
                between = any(len({*homes_of[group]}) > 1 for group in groups_of(inner, len(homes)))
                overlapped = _between(lines, at, products) if start else None
                found.append(Sending(collective, between, overlapped))
    return found


def matrix_products(hlo: str) -> int:
    """The matrix products and convolutions of a program; those in a loop's body count once."""
    computations = _computations(hlo)
    return sum(bool(_PRODUCT.search(line)) for lines in computations.values() for line in lines)


def _computations(hlo: str) -> dict[str, list[str]]:
    """The lines of each computation of the module, by its name."""
    found: dict[str, list[str]] = {}
    name = None
    for line in hlo.splitlines():
        if line.startswith("}"):
            name = None
        elif name is not None:
            found[name].append(line)
        elif line.endswith("{") and not line.startswith(("HloModule", " ")):
            name = line.removeprefix("ENTRY ").lstrip("%").split(" ", 1)[0].split("(", 1)[0]
            found[name] = []
    return found


def _products(computations: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The matrix products of each computation, with those that it calls."""
    known: dict[str, int] = {}

    def count(name: str) -> int:
        if name not in known:
            known[name] = 0
            known[name] = sum(_of_line(line) for line in computations.get(name, ()))
        return known[name]

    def _of_line(line: str) -> int:
        return bool(_PRODUCT.search(line)) + sum(count(name) for name in _CALLS.findall(line))

    for name in computations:
        count(name)
    return known


def _wrapped(computations: Mapping[str, Sequence[str]]) -> set[str]:
    """The computations that asynchronous instructions run, which are counted where they start."""
    lines = (line for lines in computations.values() for line in lines)
    return {match["calls"] for line in lines if (match := _ASYNC.search(line))}


def _sent_by(line: str, computations: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, bool]]:
    """The collectives of an instruction, and whether it only starts them."""
    if match := _ASYNC.search(line):
        for inner in computations.get(match["calls"], ()):
            if _OPERATION.search(inner):
                yield inner, True
    elif match := _OPERATION.search(line):
        yield line, bool(match["start"])


def _between(lines: Sequence[str], start: int, products: Mapping[str, int]) -> int:
    """The matrix products between an asynchronous instruction and its end."""
    match = _INSTRUCTION.match(lines[start])
    assert match is not None
    ends = lambda line: (done := _DONE.search(line)) and done["of"] == match["name"]
    return _count_until(lines[start + 1 :], ends, products)


def _until_received(
    lines: Sequence[str], start: int, which: str, products: Mapping[str, int]
) -> int:
    """The matrix products between a message to another slice and the arrival of the one from it."""
    names = set()
    for line in lines:
        message, instruction = _SEND.search(line), _INSTRUCTION.match(line)
        if message and instruction and message["kind"] == "recv" and message["which"] == which:
            names.add(instruction["name"])
    ends = lambda line: (done := _RECEIVED.search(line)) and done["of"] in names
    return _count_until(lines[start + 1 :], ends, products)


def _count_until(
    lines: Sequence[str], ends: Callable[[str], Any], products: Mapping[str, int]
) -> int:
    count = 0
    for line in itertools.takewhile(lambda line: not ends(line), lines):
        called = sum(products.get(name, 0) for name in _CALLS.findall(line))
        count += bool(_PRODUCT.search(line)) + called
    return count


def _header(hlo: str) -> str:
    """The line with the number of devices."""
    return hlo.split("\n", 1)[0] + "\n"
