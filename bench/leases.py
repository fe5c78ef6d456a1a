"""Stores filled with leases, for the question whether an ADD minds how many there are.

Ours by the allocator itself in one transaction, which leaves exactly what as many ADDs leave of leases; host-local's by
writing the files that it keeps, one per address.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Address

from bench.process import Json
from cni import config
from cni.database import Database, boot_id
from ipam.allocate import Claim, allocate
from ipam.ledger import Ledger, renew
from ipam.pools import pools_of
from ipam.store import boot_time


def fill_ours(conf: Json, number: int) -> None:
    """Let as many containers hold leases in the store of a configuration."""
    ipam = config.parse(conf, {}).ipam
    assert ipam is not None
    pools = pools_of(ipam, pod="", mac="")
    database = Database(ipam.data_dir)
    try:
        with database.transaction() as connection:
            now = boot_time()
            renew(connection, boot_id(), now)
            ledger = Ledger(connection, ipam.network, now, conf["master"])
            ledger.enter(pools)
            for index in range(number):
                allocate(pools, Claim(f"{index:032x}", "eth0"), ledger)
    finally:
        database.close()


def fill_reference(conf: Json, number: int) -> None:
    """The same for host-local."""
    ipam = conf["ipam"]
    directory = f"{ipam['dataDir']}/{conf['name']}"
    first = IPv4Address(ipam["ranges"][0][0]["rangeStart"])
    os.makedirs(directory)
    for index in range(number):
        with open(f"{directory}/{first + index}", "w", encoding="ascii", newline="") as file:
            file.write(f"{index:032x}\r\neth0")
    with open(f"{directory}/last_reserved_ip.0", "w", encoding="ascii") as file:
        file.write(str(first + number - 1))
