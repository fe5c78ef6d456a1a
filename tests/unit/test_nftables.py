"""What the NAT table's messages are, and what users read when the kernel has no such thing."""

from __future__ import annotations

import binascii
import errno
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from cni import nftables
from cni.attachment import SourceNat
from cni.errors import KernelRefused
from cni.netlink import Message, NetlinkError, Socket
from cni.nftables import in_place, sync

V4 = SourceNat("shim2", ip_address("192.0.2.10"))
V6 = SourceNat("shim2", ip_address("2001:db8::10"))


class Kernel(Socket):
    """A kernel without our table, which a test cannot take the modules from: refuses changes, or takes them down."""

    def __init__(self, absent: int = errno.ENOENT, refusal: int = 0) -> None:
        self.absent = absent
        self.refusal = refusal
        self.taken: list[Message] = []

    def get(self, message: Message) -> bytes:
        raise NetlinkError(self.absent, "absent")

    def batch(self, begin: Message, messages: Sequence[Message], end: Message) -> None:
        if self.refusal:
            raise NetlinkError(self.refusal, "refused")
        self.taken += [begin, *messages, end]


def taken(*rules: SourceNat) -> list[Message]:
    """The messages of the transaction that makes the table hold these rules."""
    kernel = Kernel()
    assert sync(kernel, rules)
    return kernel.taken


def test_one_transaction_replaces_the_table() -> None:
    kinds = [message.kind for message in taken(V4)]
    begin, new_table, delete_table, new_chain, new_rule, end = 0x10, 0xA00, 0xA02, 0xA03, 0xA06, 0x11
    assert kinds == [begin, new_table, delete_table, new_table, new_chain, new_rule, new_rule, end]


def test_the_form_of_the_rules_is_that_of_their_layout_number() -> None:
    # Another form needs another LAYOUT, or nodes keep the old rules when shimlan is upgraded.
    form = binascii.crc32(b"".join(message.body for message in taken(V4, V6)))
    assert (nftables.LAYOUT, f"{form:08x}") == (1, "3e80e734")


def test_order_and_repetition_of_shims_do_not_matter() -> None:
    other = SourceNat("shim10", V4.address)
    assert taken(V6, other, V4) == taken(V4, V4, V6, other)


def test_of_several_addresses_the_first_decides() -> None:
    second = SourceNat(V4.shim, ip_address("192.0.2.5"))
    assert taken(V4, second) != taken(second, V4)


@pytest.mark.parametrize("absent", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT])
def test_a_kernel_without_nftables_has_no_table_of_ours(absent: int) -> None:
    kernel = Kernel(absent, refusal=errno.EOPNOTSUPP)
    assert in_place(kernel, [])
    assert not sync(kernel, [])
    assert not in_place(kernel, [V4])


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT])
def test_a_kernel_without_source_nat_is_told_to_load_it(refusal: int) -> None:
    with pytest.raises(
        KernelRefused, match=r'load nf_tables, nft_chain_nat, .* or set "snat": false in "shim"'
    ) as told:
        sync(Kernel(refusal=refusal), [V4])
    assert told.value.details == f"[Errno {refusal}] refused"


def test_an_unforeseen_refusal_is_told_as_it_is() -> None:
    with pytest.raises(KernelRefused, match=r"nftables refused the source NAT for shim.routes \(absent\)"):
        in_place(Kernel(absent=errno.EIO), [V4])
