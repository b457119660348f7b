"""Flower strategies: thin adapters over the functions of ``pfl_flower``."""
