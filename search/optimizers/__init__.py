"""Optimizers: propose points of a box, hear what became of them. No I/O, no torch, no clock."""
