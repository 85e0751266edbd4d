"""Drives the Python package `storlaunch` 0.1.0 against a Tollkey server.

The package signs each request. Tollkey accepts secret keys as Bearer credentials, so the HTTP client that is passed to
the package replaces its Authorization header. Nothing else of the package is changed.
"""

import os
import sys
from typing import Iterator

import httpx
from storlaunch import StorlaunchClient, StorlaunchError

BASE_URL = os.environ.get("TOLLKEY_URL", "http://127.0.0.1:8080")


class Bearer(httpx.Auth):
    """Replaces the package's signature by a credential."""

    def __init__(self, credential: str) -> None:
        self._credential = credential

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:
        request.headers["Authorization"] = f"Bearer {self._credential}"
        yield request


def client(credential: str) -> StorlaunchClient:
    http = httpx.Client(auth=Bearer(credential), timeout=30)
    # The key ID and secret produce the signature, which is replaced.
    return StorlaunchClient(key_id="unused", secret="unused", base_url=BASE_URL, http=http)


def expect(condition: bool, what: str) -> None:
    if not condition:
        sys.exit(f"FAILED: {what}")
    print(f"ok: {what}")


def rejects(call, status: int, code: str, what: str) -> None:
    try:
        call()
    except StorlaunchError as error:
        expect((error.status, error.code) == (status, code) and bool(error.request_id), what)
    else:
        sys.exit(f"FAILED: {what}: the call was not rejected")


def main() -> None:
    token = os.environ.get("TOLLKEY_TOKEN")
    if not token:
        sys.exit("Set TOLLKEY_TOKEN to a management token; `tollkey token --account acme` creates one.")

    # A management token creates the first secret key of an account.
    first = client(token).account.api_keys.create({"name": "First key", "environment": "live", "access": "secret"})
    expect(first["value"].startswith("sk_live_") and first["id"].startswith("key_"), "the first secret key")

    keys = client(first["value"]).account.api_keys
    created = keys.create({"name": "Mobile app", "environment": "test", "access": "publishable"})
    expect(
        list(created) == ["id", "name", "environment", "access", "value", "createdAt"] and created["value"].startswith("pk_test_"),
        "a secret key creates another key",
    )
    rows = {row["id"]: row for row in keys.list()}
    row = rows[created["id"]]
    expect(
        list(row)
        == ["id", "name", "prefix", "last4", "environment", "access", "createdAt", "lastUsedAt", "revokedAt"],
        "the list has the documented fields",
    )
    expect(created["value"].endswith(row["last4"]) and "value" not in row, "the list does not contain the full key")
    rejects(lambda: keys.create(), 400, "VALIDATION_ERROR", "a key without a name is rejected")
    rejects(lambda: client(created["value"]).account.api_keys.list(), 403, "FORBIDDEN", "a publishable key cannot list keys")

    revoked = keys.revoke(created["id"])
    expect(revoked["revokedAt"] is not None, "a key is revoked")
    rejects(
        lambda: client(created["value"]).account.api_keys.list(), 401, "INVALID_API_KEY", "the revoked key is rejected"
    )

    entries = client(first["value"]).account.audit_log.list({"limit": 2})
    expect(
        [(entry["action"], entry["target"]["id"]) for entry in entries]
        == [("api_key.revoked", created["id"]), ("api_key.created", created["id"])],
        "the audit log contains both changes",
    )

    keys.revoke(first["id"])
    rejects(lambda: keys.list(), 401, "INVALID_API_KEY", "a key can revoke itself")


if __name__ == "__main__":
    main()
