"""ethtool's messages: golden bytes for what is asked, and what the answers mean."""

from __future__ import annotations

import pytest

from cni import ethtool
from cni.ethtool import COMMAND_HEADER, Forwarding
from cni.netlink import attribute, nest, text, u32

FAMILY, INDEX = 20, 7
NAME = "6c322d6677642d6f66666c6f6164" + "00"  # l2-fwd-offload


def test_what_is_asked() -> None:
    assert ethtool.get_family().kind == ethtool.GENL_ID_CTRL
    assert ethtool.get_family().body.hex() == "030200000c000200657468746f6f6c00"
    asked = ethtool.get_features(FAMILY, INDEX)
    assert (asked.kind, asked.flags) == (FAMILY, 0)
    assert asked.body.hex() == "0b0100000c0001800800010007000000"


HEADER = "14000180 0800010007000000 0800030002000000"


@pytest.mark.parametrize(
    ("on", "wanted"),
    [
        (True, f"24000380 20000380 1c000180 13000200{NAME}00 04000300"),
        (False, f"20000380 1c000380 18000180 13000200{NAME}00"),
    ],
)
def test_only_one_feature_is_listed_and_so_may_change(on: bool, wanted: str) -> None:
    assert ethtool.set_feature(FAMILY, INDEX, on).body == bytes.fromhex(f"0c010000 {HEADER} {wanted}")


def test_the_number_of_the_family() -> None:
    answer = COMMAND_HEADER.pack(1, 2) + text(2, "ethtool") + attribute(1, b"\x14\0")
    assert ethtool.parse_family(answer) == FAMILY


def bit(name: str, marked: bool = False) -> bytes:
    return nest(1, u32(1, 5), text(2, name), attribute(3, b"") if marked else b"")


def with_mask(*bits: bytes) -> bytes:
    return nest(ethtool.ETHTOOL_A_FEATURES_HW, u32(2, 64), nest(3, *bits))


def of_all(kind: int, *names: str) -> bytes:
    return nest(kind, attribute(1, b""), u32(2, 64), nest(3, *map(bit, names)))


FEATURE, OTHERS = ethtool.FEATURE, ("rx-gro", "l2-fwd-offload-of-another-kind")
ACTIVE, NOCHANGE = ethtool.ETHTOOL_A_FEATURES_ACTIVE, ethtool.ETHTOOL_A_FEATURES_NOCHANGE


@pytest.mark.parametrize(
    ("answer", "feature"),
    [
        ((), Forwarding(switchable=False, active=False)),
        ((with_mask(bit("rx-gro", True), bit(FEATURE)), of_all(ACTIVE, *OTHERS)), Forwarding(False, False)),
        ((with_mask(bit("rx-gro"), bit(FEATURE, True)), of_all(ACTIVE, *OTHERS)), Forwarding(True, False)),
        ((with_mask(bit(FEATURE, True)), of_all(ACTIVE, *OTHERS, FEATURE)), Forwarding(True, True)),
        ((with_mask(bit(FEATURE)), of_all(ACTIVE, FEATURE)), Forwarding(False, True)),
        ((with_mask(bit(FEATURE, True)), of_all(NOCHANGE, FEATURE)), Forwarding(False, False)),
    ],
)
def test_what_the_answer_means(answer: tuple[bytes, ...], feature: Forwarding) -> None:
    body = COMMAND_HEADER.pack(ethtool.ETHTOOL_MSG_FEATURES_GET, 1) + nest(1, u32(1, INDEX)) + b"".join(answer)
    assert ethtool.parse_features(body) == feature


def test_the_kernel_understands() -> None:
    """The loopback has features, and this is not among those that it could switch."""
    assert ethtool.forwarding(1) == Forwarding()


def test_a_link_that_is_not_there_is_an_error() -> None:
    with pytest.raises(OSError, match="no device matches"):
        ethtool.forwarding(2**31 - 1)
