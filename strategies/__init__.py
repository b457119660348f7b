"""Flower strategies: thin adapters over the functions of ``pfl_flower``."""

from strategies.parameter_server import ParameterServer
from strategies.records import RoundRecord

__all__ = ["ParameterServer", "RoundRecord"]
