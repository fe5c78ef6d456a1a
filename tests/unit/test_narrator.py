"""How a story looks on a terminal, and that broken claims are remembered."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.ctl.narrator import Cell, Narrator, compact


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
)


@given(VALUES)
def test_compact_json_is_the_same_json(value: object) -> None:
    assert json.loads(compact(value)) == value


def test_compact_json_breaks_only_what_is_too_long() -> None:
    short, long = {"a": [1, 2]}, ["x" * 28] * 3
    assert compact(short) == '{"a": [1, 2]}'
    assert compact([short, long]).splitlines()[1:3] == ['  {"a": [1, 2]},', f"  {json.dumps(long)}"]


def test_claims_are_counted_and_broken_ones_remembered() -> None:
    out = io.StringIO()
    narrator = Narrator(out)
    narrator.claim("water is wet", True)
    narrator.claim("pigs fly", False)
    narrator.fail("the end")
    assert (narrator.claims, narrator.broken) == (3, ["pigs fly", "the end"])
    assert out.getvalue() == "  ✔ water is wet\n  ✘ NOT SO: pigs fly\n  ✘ the end\n"


def test_each_cell_of_a_table_is_a_claim() -> None:
    out = io.StringIO()
    narrator = Narrator(out)
    cells = (Cell(True, True), Cell(False, True), Cell(None, None))
    narrator.table("from", ("pod", "host", "moon"), [("host", cells, "<- here")])
    assert narrator.broken == ["from: host, host: no, not yes"]
    assert narrator.claims == 3
    assert out.getvalue() == "  from   pod   host          moon\n  host   yes   no, not yes   -      <- here\n"


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_has_colours_unless_it_wants_none(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    def drawn() -> str:
        out = Terminal()
        Narrator(out).heading("Heading")
        return out.getvalue()

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert drawn() == "\n\033[1mHeading\033[0m\n"
    monkeypatch.setenv(variable, value)
    assert drawn() == "\nHeading\n"
