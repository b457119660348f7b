"""Federated averaging of a linear classifier of tumours."""
