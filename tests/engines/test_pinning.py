"""Which apps a node can be told to run: Flower's own check of signatures, as a site meets it."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives import serialization
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric_ed25519 import (
    create_message_to_sign,
    generate_key_pair,
    sign_message,
)
from flwr.supernode.start_client_internal import _verify_fab

BUNDLE = b"an app"


def signed(content: bytes) -> tuple[dict[str, str], dict[str, str]]:
    """Return a publisher's word on a bundle, and the file of whom a node trusts."""
    private, public = generate_key_pair()
    at = 1_700_000_000
    proof = sign_message(private, create_message_to_sign(hashlib.sha256(content).digest(), at))
    word = {"signed_at": at, "signature": base64.urlsafe_b64encode(proof).decode().rstrip("=")}
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    trusted = {"fpk_publisher": public.public_bytes(*form).decode()}
    return {"fpk_publisher": json.dumps(word), "valid_license": "Valid"}, trusted


@pytest.mark.parametrize(
    ("what", "runs"),
    [
        ("the publisher's bundle", True),
        ("another bundle, with the publisher's word on this one", False),
        ("another publisher's word, by the same name", False),
        ("a publisher whom the node does not trust", False),
        ("a bundle that the operator uploads, which nobody signs", False),
    ],
)
def test_a_bundle_runs_where_its_publisher_is_trusted(what: str, runs: bool) -> None:
    words, trusted = signed(BUNDLE)
    content = BUNDLE
    if what.startswith("another bundle"):
        content = b"another app"
    elif what.startswith("another publisher"):
        _, trusted = signed(BUNDLE)
    elif what.startswith("a publisher"):
        trusted = {"fpk_somebody_else": trusted["fpk_publisher"]}
    elif what.startswith("a bundle that"):
        words = {}
    assert _verify_fab(Fab(hashlib.sha256(content).hexdigest(), content, words), trusted) is runs
