"""shimlan-ipam: addresses for the pods of one node, crash-safe and fast whatever the number of leases."""
