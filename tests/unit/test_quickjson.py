"""quickjson does what json does: same values, same texts, same exceptions."""

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import quickjson

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_round_trip_as_json(value: object) -> None:
    assert quickjson.dumps(value) == json.dumps(value)
    assert quickjson.dumps(value, compact=True) == json.dumps(value, separators=(",", ":"))
    text = json.dumps(value)
    assert quickjson.loads(text) == quickjson.loads(f" \n{text}\t".encode()) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        "[1,]",
        '{"a" 1}',
        '{"a":}',
        "nul",
        "1 2",
        '"\n"',
        "NaN",
        "-Infinity",
        "[" * 100_000,
        "\ufeff{}",
        b"\xff",
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_odd_is_left_to_json(text: str | bytes) -> None:
    assert outcome(quickjson.loads, text) == outcome(json.loads, text)


def outcome(loads: Callable[[str | bytes], object], text: str | bytes) -> str:
    try:
        return repr(loads(text))
    except (ValueError, RecursionError) as error:
        return repr(error)


def test_what_json_cannot_write() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        quickjson.dumps({"a": object()})


def test_errors_do_not_need_json_to_be_imported_before() -> None:
    script = "from cni.quickjson import loads\ntry: loads('{\"a\" 1}')\nexcept ValueError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Expecting ':' delimiter" in done.stdout


def test_does_not_import_json() -> None:
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
from cni.quickjson import loads, dumps
loads(dumps({{'a': [1]}}))
print('json' in sys.modules, 're' in sys.modules)
"""
    done = subprocess.run([sys.executable, "-IS", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
