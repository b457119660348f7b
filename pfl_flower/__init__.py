"""Personalised federated learning under strategic users: mathematics, data, two Flower apps."""

__version__ = "0.1.0"
