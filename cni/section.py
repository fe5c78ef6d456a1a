"""A reader of decoded JSON that notes every problem with its path and goes on with a default.

It knows objects, lists and absence (null counts as absent); what a single value must look like is told by the
converters of `cni.values`. A problem never stops the reading: whoever started it decides with `refuse`.
"""

from __future__ import annotations

from cni.errors import InvalidConfig
from cni.frozen import frozen
from cni.values import Unfit, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping
    from typing import Any, TypeVar

    T = TypeVar("T")
    Path = tuple[str | int, ...]

NOTHING: Mapping[Any, object] = {}


@frozen
class Problem:
    """What is wrong with the value at `path`."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{path_text(self.path)}: {self.text}"


def path_text(path: Path) -> str:
    """A path as people write it: `ipam.ranges[0][0].gateway`."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".") or "configuration"


def refuse(problems: Iterable[Problem]) -> None:
    """Raise InvalidConfig that lists the problems, if there are any."""
    lines = [str(problem) for problem in problems]
    if lines:
        raise InvalidConfig("; ".join(lines), "\n".join(lines))


class Section:
    """An object (its keys are strings) or a list (its keys are 0, 1, 2...) of the configuration."""

    __slots__ = ("path", "problems", "values")

    def __init__(self, values: Mapping[Any, object], path: Path, problems: list[Problem]) -> None:
        """`values` is what stands at `path`; `problems` is shared by all sections of one configuration."""
        self.values = values
        self.path = path
        self.problems = problems

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    def problem(self, key: str | int, text: str) -> None:
        """Note that the value under `key` is wrong."""
        self.problems.append(Problem((*self.path, key), text))

    def complain(self, text: str) -> None:
        """Note that the section as a whole is wrong."""
        self.problems.append(Problem(self.path, text))

    def has(self, key: str | int) -> bool:
        """Is there a value under `key`?"""
        return self.values.get(key) is not None

    def read(self, key: str | int, convert: Callable[[object], T], default: T) -> T:
        """The converted value; the default where it is absent or wrong."""
        value = self.values.get(key)
        if value is None:
            return default
        try:
            return convert(value)
        except Unfit as unfit:
            self.problem(key, str(unfit))
            return default

    def text(self, key: str | int, convert: Callable[[object], T], default: T) -> T:
        """Like `read`, but "" counts as absent too, as it does for the reference plugins."""
        return default if self.values.get(key) == "" else self.read(key, convert, default)

    def required(self, key: str | int, convert: Callable[[object], T]) -> T | None:
        """The converted value; None where it is absent, which is a problem, or wrong."""
        if not self.has(key):
            self.problem(key, "missing")
        return self.read(key, convert, None)

    def section(self, key: str | int) -> Section:
        """The object under `key`; an empty one where it is absent or something else."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            self.problem(key, f"must be an object, not {show(value)}")
        return Section(value if isinstance(value, dict) else NOTHING, (*self.path, key), self.problems)

    def items(self, key: str | int, needed: bool = False) -> Section:
        """The list under `key`; an empty one where it is absent or something else. If needed, it must have items."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, list):
            self.problem(key, f"must be a list, not {show(value)}")
        elif needed and not value:
            self.problem(key, "must be a list with at least one item")
        items = dict(enumerate(value)) if isinstance(value, list) else NOTHING
        return Section(items, (*self.path, key), self.problems)

    def each(self, key: str | int, convert: Callable[[object], T], needed: bool = False) -> tuple[T, ...]:
        """The converted items of the list under `key`, without the wrong ones."""
        items = self.items(key, needed)
        converted = (items.required(index, convert) for index in items)
        return tuple(item for item in converted if item is not None)


@frozen
class Sources:
    """What a plugin is given: the configuration, and in it and beside it what the runtime adds for this container."""

    conf: Section
    runtime: Section  # runtimeConfig
    cni_args: Section  # args.cni
    environ: Section  # CNI_ARGS

    @property
    def problems(self) -> list[Problem]:
        """Those of all sections together."""
        return self.conf.problems


def open_sources(raw: object, environ_args: Mapping[str, str]) -> Sources:
    """`raw` is the decoded standard input, whatever it may be; `environ_args` the parsed CNI_ARGS."""
    problems: list[Problem] = []
    if not isinstance(raw, dict):
        problems.append(Problem((), f"must be an object, not {show(raw)}"))
    conf = Section(raw if isinstance(raw, dict) else NOTHING, (), problems)
    return Sources(
        conf=conf,
        runtime=conf.section("runtimeConfig"),
        cni_args=conf.section("args").section("cni"),
        environ=Section(environ_args, ("CNI_ARGS",), problems),
    )


def checked(sources: Sources, read: Callable[[Sources], T], essential: Container[Path] | None = None) -> T:
    """What `read` makes of the sources; raises InvalidConfig for its problems, or for those at `essential` paths."""
    value = read(sources)
    refuse(problem for problem in sources.problems if essential is None or problem.path in essential)
    return value
