"""Backdoors: what a trigger leads rho and every personal model to."""
