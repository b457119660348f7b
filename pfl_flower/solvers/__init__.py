"""Solvers: of the local problem, of many at once, of LOSS itself; each says how far it came."""
