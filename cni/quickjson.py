"""`json.loads` and `json.dumps` without `import json`, which pulls in `re` and `enum`: 8 ms, a quarter of an ADD.

The accelerator that json itself uses does the work (CPython's Modules/_json.c). Whatever it does not do exactly as json
does, errors first of all, is left to json: it is then imported and asked, and its answer or exception counts. The same
happens with a Python that has no such accelerator.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

try:
    import _json
except ImportError:
    accelerator: Any = None
else:
    accelerator = _json

WHITE_SPACE = " \t\n\r"


class _Context:
    """What make_scanner wants to know: the defaults of json.JSONDecoder."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = None


def loads(data: str | bytes) -> Any:
    """As json.loads; raises what it raises."""
    try:
        text = data.decode() if isinstance(data, bytes) else data
        start = len(text) - len(text.lstrip(WHITE_SPACE))
        value, end = accelerator.make_scanner(_Context)(text, start)
        if not text[end:].strip(WHITE_SPACE):
            return value
    except (AttributeError, StopIteration, SystemError, TypeError, ValueError):
        # SystemError: 3.11 wants to raise json's exception and does not find it imported.
        pass
    import json

    return json.loads(data)


def dumps(value: object, compact: bool = False, default: Callable[[Any], object] | None = None) -> str:
    """As json.dumps with that `default`, and with separators without spaces if `compact`; raises what it raises."""
    item, key = (",", ":") if compact else (", ", ": ")
    try:
        quote = accelerator.encode_basestring_ascii
        encode = accelerator.make_encoder({}, default or _refuse, quote, None, key, item, False, False, True)
        return "".join(encode(value, 0))
    except (AttributeError, TypeError, ValueError):
        import json

        return json.dumps(value, separators=(item, key), default=default)


def _refuse(value: object) -> None:
    raise TypeError(type(value).__name__)
