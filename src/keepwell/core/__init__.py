"""The words of Keepwell: records, ports, errors, clock, catalog. Standard library and msgspec only, no I/O."""
