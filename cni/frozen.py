"""Frozen dataclasses that cost nothing to import.

The plugin lives for some milliseconds, and `import dataclasses` alone takes ten of them, plus half a millisecond of
code generation per class. The type checker sees `@frozen` as a frozen dataclass (PEP 681); at run time it does the
little of it that this project uses: positional and keyword arguments, defaults, equality, hash, repr, match.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar, dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**_):
        return lambda function: function


_classes: list[type] = []


class FrozenInstanceError(AttributeError):
    """An attempt to change a frozen object."""


@dataclass_transform(frozen_default=True, eq_default=True)
def frozen(cls: type[T]) -> type[T]:
    """Make a class with annotated fields an immutable value; its fields' defaults must be immutable too."""
    fields = tuple(cls.__annotations__)
    known = frozenset(fields)
    defaults = {name: cls.__dict__[name] for name in fields if name in cls.__dict__}

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        values = self.__dict__
        values.update(defaults)
        values.update(zip(fields, args, strict=False))
        values.update(kwargs)
        if values.keys() != known or len(args) > len(fields):
            wrong = f"missing {sorted(known - values.keys())}, unknown {sorted(values.keys() - known)}"
            raise TypeError(f"{cls.__name__}: {wrong}, {len(args)} positional")

    def __setattr__(self: Any, name: str, value: object) -> None:
        raise FrozenInstanceError(f"{cls.__name__}.{name} cannot be changed")

    def __eq__(self: Any, other: Any) -> Any:
        return self.__dict__ == other.__dict__ if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: Any) -> int:
        return hash(tuple(self.__dict__[name] for name in fields))

    def __repr__(self: Any) -> str:
        return f"{cls.__name__}({', '.join(f'{name}={self.__dict__[name]!r}' for name in fields)})"

    for method in (__init__, __setattr__, __eq__, __hash__, __repr__):
        setattr(cls, method.__name__, method)
    setattr(cls, "__match_args__", fields)  # noqa: B010  (type[T] has no such attribute)
    _classes.append(cls)
    return cls


def compile_methods() -> None:
    """Give the classes defined so far constructors and hashes as fast as dataclasses have; for processes that stay.

    Writing and compiling them takes 0.2 ms for each class, which a constructor earns back in some 200 calls.
    """
    for cls in _classes:
        names: tuple[str, ...] = cls.__match_args__  # type: ignore[attr-defined]  # set above
        defaults = {name: cls.__dict__[name] for name in names if name in cls.__dict__}
        parameters = (f"{name}=defaults[{name!r}]" if name in defaults else name for name in names)
        lines = [f"def __init__(self, {', '.join(parameters)}):", "    values = self.__dict__"]
        lines += [f"    values[{name!r}] = {name}" for name in names]
        lines += ["def __hash__(self):", f"    return hash(({''.join(f'self.{name}, ' for name in names)}))"]
        scope: dict[str, Any] = {"defaults": defaults}
        exec("\n".join(lines), scope)
        for method in ("__init__", "__hash__"):
            setattr(cls, method, scope[method])


def replace(value: T, **changes: Any) -> T:
    """A copy of a frozen object with some fields changed."""
    return value.__class__(**{**value.__dict__, **changes})
