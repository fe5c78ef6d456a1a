"""The errors that a runtime gets to see: a code of the CNI spec or one of ours (100-199), a sentence, details.

Every error that leaves the plugin is a `CniError`. Its message says what to do about it; `details` carries what a
machine or a patient reader may want besides.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class CniError(Exception):
    """An error with a code of the spec (section "Error"), or with one of ours from 100 on."""

    code = 999

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.msg = msg
        self.details = details


class IncompatibleVersion(CniError):
    """The cniVersion is none that we speak."""

    code = 1


class InvalidEnvironment(CniError):
    """A CNI_* variable is missing or malformed; the message names it."""

    code = 4


class IOFailure(CniError):
    """stdin, a file or the store could not be read or written."""

    code = 5


class DecodingFailure(CniError):
    """stdin, or a delegate's answer, is not the JSON that it should be."""

    code = 6


class InvalidConfig(CniError):
    """The configuration is wrong; the message lists every problem with its path."""

    code = 7


class TryAgainLater(CniError):
    """Something passing stands in the way: a lock or the store is busy."""

    code = 11


class NotAvailable(CniError):
    """STATUS: ADD cannot be served at present."""

    code = 50


class Exhausted(CniError):
    """No address is free."""

    code = 100


class AddressUnavailable(CniError):
    """A requested or reserved address is held by someone else, in use on the LAN, or outside of the ranges."""

    code = 101


class ParentUnusable(CniError):
    """The parent is missing, down, or of a kind or in a place that cannot carry this macvlan as it was asked for."""

    code = 102


class KernelRefused(CniError):
    """The kernel refused a change that none of the other errors explains."""

    code = 103


class Differs(CniError):
    """CHECK: the kernel's state is not the wanted one; `details` lists each difference."""

    code = 104


class DelegateFailed(CniError):
    """A delegated IPAM plugin is missing, crashed or answered nonsense; its own errors are passed on as they are."""

    code = 105


class NetnsUnusable(CniError):
    """The pod's network namespace cannot be entered or is not what it should be."""

    code = 106


class NetnsUnclear(NetnsUnusable):
    """The same for a reason that lies with us, not with the namespace, which may well be there."""


class Internal(CniError):
    """A bug of ours; the traceback is in the log."""

    code = 199


def attempt(step: Callable[..., object], *arguments: object) -> list[CniError]:
    """Do a step of something that goes on after an error; returns the error, if there was one."""
    try:
        step(*arguments)
    except CniError as error:
        return [error]
    return []


def summary(errors: list[CniError]) -> CniError:
    """The first of several errors, with all of them in its details."""
    errors[0].details = "\n".join(error.msg for error in errors)
    return errors[0]
