"""Tests that need another kernel, or a NIC with offload: `make test-vm` runs them inside of a virtual machine.

SHIMLAN_VM is the command that runs a program as root in such a machine: it shows the program the files of this one,
passes on what that prints, and ends with its status. The kernel there should have 8021q, bonding, team and dummy.
For the tests of offload it needs two NICs at both ends of one cable whose l2-fwd-offload can be switched, with a
driver that tells of each station in the kernel's log (`eth0: station NAME added, now 3`, or `removed`).
Whatever is missing is said by those tests that are skipped for it.
"""
