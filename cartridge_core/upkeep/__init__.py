"""Upkeep of the stores: the doctor, the garbage, the right to erasure."""
