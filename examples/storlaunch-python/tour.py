"""The Python package `storlaunch` against a Tollkey server, unchanged but for how it says who it is.

The package signs each request in a way of its own. Tollkey takes secret keys as Bearer credentials, so the HTTP client
that is handed to the package replaces its Authorization header; everything else is the package's.
"""

import os
import sys
from typing import Iterator

import httpx
from storlaunch import StorlaunchClient, StorlaunchError

BASE_URL = os.environ.get("TOLLKEY_URL", "http://127.0.0.1:8080")


class Bearer(httpx.Auth):
    """Puts a credential where the package has put its signature."""

    def __init__(self, credential: str) -> None:
        self._credential = credential

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:
        request.headers["Authorization"] = f"Bearer {self._credential}"
        yield request


def client(credential: str) -> StorlaunchClient:
    http = httpx.Client(auth=Bearer(credential), timeout=30)
    # The id and the secret sign what is then replaced.
    return StorlaunchClient(key_id="unused", secret="unused", base_url=BASE_URL, http=http)


def expect(condition: bool, what: str) -> None:
    if not condition:
        sys.exit(f"FAILED: {what}")
    print(f"ok: {what}")


def refused(call, status: int, code: str, what: str) -> None:
    try:
        call()
    except StorlaunchError as error:
        expect((error.status, error.code) == (status, code) and bool(error.request_id), what)
    else:
        sys.exit(f"FAILED: {what}: it was not refused")


def main() -> None:
    token = os.environ.get("TOLLKEY_TOKEN")
    if not token:
        sys.exit("Set TOLLKEY_TOKEN to a management token; `tollkey token --account acme` makes one.")

    # A management token makes the first secret key of an account.
    first = client(token).account.api_keys.create({"name": "First key", "environment": "live", "access": "secret"})
    expect(first["value"].startswith("sk_live_") and first["id"].startswith("key_"), "the first secret key")

    keys = client(first["value"]).account.api_keys
    made = keys.create({"name": "Mobile app", "environment": "test", "access": "publishable"})
    expect(
        list(made) == ["id", "name", "environment", "access", "value", "createdAt"] and made["value"].startswith("pk_test_"),
        "a secret key makes another key",
    )
    rows = {row["id"]: row for row in keys.list()}
    row = rows[made["id"]]
    expect(
        list(row)
        == ["id", "name", "prefix", "last4", "environment", "access", "createdAt", "lastUsedAt", "revokedAt"],
        "the list has the documented members",
    )
    expect(made["value"].endswith(row["last4"]) and "value" not in row, "and not the value")
    refused(lambda: keys.create(), 400, "VALIDATION_ERROR", "a key without a name is refused")
    refused(lambda: client(made["value"]).account.api_keys.list(), 403, "FORBIDDEN", "a publishable key manages nothing")

    revoked = keys.revoke(made["id"])
    expect(revoked["revokedAt"] is not None, "a key is revoked")
    refused(
        lambda: client(made["value"]).account.api_keys.list(), 401, "INVALID_API_KEY", "and dead from that moment on"
    )

    entries = client(first["value"]).account.audit_log.list({"limit": 2})
    expect(
        [(entry["action"], entry["target"]["id"]) for entry in entries]
        == [("api_key.revoked", made["id"]), ("api_key.created", made["id"])],
        "the audit log has both",
    )

    keys.revoke(first["id"])
    refused(lambda: keys.list(), 401, "INVALID_API_KEY", "a key can end itself")


if __name__ == "__main__":
    main()
