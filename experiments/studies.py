"""The studies by name: theorems, and what the laboratory adds to them."""

from __future__ import annotations

from collections.abc import Mapping

THEORY = "experiments.theory"

STUDIES: Mapping[str, str] = {
    "prop1-projection": f"{THEORY}.projection:STUDY",
}
