"""Tokens of service accounts and of workload identities that expire on demand."""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from hosted.replies import Refused, Reply, say

if TYPE_CHECKING:
    from pathlib import Path

    from hosted.moment import Clock

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_JWT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"


class Tokens:
    """Issues tokens and knows which ones count."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.issued: list[str] = []
        """Every token that was issued, in that order."""
        self._until: dict[str, float] = {}

    def issue(self, seconds: float = 3600.0) -> str:
        """Return a token that counts for so many seconds of the clock."""
        token = f"ya29.stand-in-{len(self.issued) + 1}"
        self.issued.append(token)
        self._until[token] = self.clock.now + seconds
        return token

    def expire(self) -> None:
        """Let every token that was issued so far count no more."""
        self._until.clear()

    def check(self, authorization: str) -> None:
        """Refuse a request whose token does not count."""
        kind, _, token = authorization.partition(" ")
        if kind.lower() != "bearer" or self.clock.now >= self._until.get(token.strip(), 0):
            raise Refused(
                401,
                "Request had invalid authentication credentials. Expected OAuth 2 access token, login"
                " cookie or other valid authentication credential.",
            )

    def grant(self, body: bytes, seconds: float) -> Reply:
        """Answer the token endpoint."""
        said = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        grants = {_JWT: "assertion", _EXCHANGE: "subject_token"}
        if not said.get(grants.get(said.get("grant_type", ""), "")):
            return say(
                {"error": "invalid_grant", "error_description": "no such grant, or nothing in it"}, 400
            )
        kind = {"issued_token_type": "urn:ietf:params:oauth:token-type:access_token"}
        granted: dict[str, Any] = {"access_token": self.issue(seconds), "expires_in": int(seconds)}
        return say({**granted, "token_type": "Bearer", **(kind if said["grant_type"] == _EXCHANGE else {})})


def service_account(folder: Path, url: str, project: str) -> Path:
    """Write the key file of a service account whose tokens come from a stand-in."""
    about = {
        "type": "service_account",
        "project_id": project,
        "private_key_id": "0123456789abcdef",
        "private_key": _private_key(),
        "client_email": f"stand-in@{project}.iam.gserviceaccount.com",
        "client_id": "1",
        "token_uri": f"{url}/token",
    }
    return _written(folder / "service-account.json", about)


def workload_identity(folder: Path, url: str) -> Path:
    """Write the credentials of a workload outside of Google, whose subject token stands in a file."""
    subject = folder / "subject-token"
    subject.write_text("who I am", "utf-8")
    audience = (
        "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/provider"
    )
    about = {
        "type": "external_account",
        "audience": audience,
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{url}/token",
        "credential_source": {"file": str(subject)},
    }
    return _written(folder / "workload-identity.json", about)


def _written(path: Path, about: dict[str, Any]) -> Path:
    path.write_text(json.dumps(about), "utf-8")
    return path


@cache
def _private_key() -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
