"""shimlan, the CNI plugin that makes macvlan usable: pods on the LAN, reachable from their host."""

__version__ = "0.1.0"
