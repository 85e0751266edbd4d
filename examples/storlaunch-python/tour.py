"""Drives the Python package `forjio-storlaunch` 0.4.0 against a Tollkey server. Nothing of the package is changed.

The package sends a Bearer credential. It says that keys cannot create keys; with Tollkey, secret keys can.
"""

import os
import sys
from datetime import datetime, timedelta, timezone

from storlaunch import StorlaunchClient, StorlaunchError

BASE_URL = os.environ.get("TOLLKEY_URL", "http://127.0.0.1:8080")
KEYS = "/api/v1/account/api-keys"


def client(credential: str) -> StorlaunchClient:
    return StorlaunchClient(api_key=credential, base_url=BASE_URL)


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
    first = client(token).account.api_keys.create(name="First key", environment="production")
    expect(first["value"].startswith("sk_live_") and first["id"].startswith("key_"), "the first secret key")
    expect((first["environment"], first["access"]) == ("live", "secret"), "the response has the document's values")

    storlaunch = client(first["value"])
    keys = storlaunch.account.api_keys
    worker = keys.create(name="Worker", environment="sandbox")
    expect(worker["value"].startswith("sk_test_"), "a secret key creates a test key")
    generated = storlaunch.api.account_create_api_keys(
        name="Mobile app", environment="sandbox", json_body={"access": "publishable"}
    )
    expect(generated["value"].startswith("pk_test_"), "the generated part of the package creates a publishable key")
    rejects(lambda: keys.create(name="", environment="sandbox"), 400, "VALIDATION_ERROR", "a name is required")
    rejects(lambda: keys.create(name="x", environment="staging"), 400, "VALIDATION_ERROR", "an unknown environment")

    rows = {row["id"]: row for row in keys.list()}
    row = rows[worker["id"]]
    expect(worker["value"].endswith(row["last4"]) and "value" not in row, "the list does not contain the full key")
    listed = {row["id"] for row in storlaunch.api.account_api_keys()}
    expect({first["id"], worker["id"], generated["id"]} <= listed, "the list has all keys")

    # The package sends this key in both of its headers.
    body = {"name": "Repeated", "environment": "production"}
    repeated = [
        storlaunch.request("POST", KEYS, body=body, idempotency_key="idem_tour-of-tollkey")["value"] for _ in range(2)
    ]
    expect(repeated[0] == repeated[1], "a repeated creation returns the same key")

    revoked = keys.revoke(worker["id"])
    expect(revoked["revokedAt"] is not None, "a key is revoked")
    rejects(lambda: client(worker["value"]).account.api_keys.list(), 401, "INVALID_API_KEY", "it is rejected")
    expect(storlaunch.api.account_delete_api_keys(generated["id"])["id"] == generated["id"], "another is revoked")

    entries = storlaunch.account.audit_log.list({"limit": 2})
    expect(
        [(entry["action"], entry["target"]["id"]) for entry in entries]
        == [("api_key.revoked", generated["id"]), ("api_key.revoked", worker["id"])],
        "the audit log has the latest changes",
    )
    now = datetime.now(timezone.utc)
    yesterday, tomorrow = [(now + timedelta(days=days)).isoformat() for days in (-1, 1)]

    def changed(**filters) -> set[str]:
        return {entry["target"]["id"] for entry in storlaunch.api.account_audit_log(**filters)}

    ours, revoked_ids = {first["id"], worker["id"], generated["id"]}, {worker["id"], generated["id"]}
    expect(ours <= changed(entity_type="api_key"), "the log is filtered by type")
    expect(not changed(entity_type="order"), "no entry has a type of another product")
    revocations = changed(from_=yesterday, to=tomorrow, action="api_key.revoked")
    expect(revoked_ids <= revocations and first["id"] not in revocations, "the log is filtered by time and action")
    expect(not ours & changed(to=yesterday) and not changed(from_=tomorrow), "no entry is older or newer")

    try:
        storlaunch.storefront.products.list()
    except StorlaunchError as error:
        expect(error.status == 404, "Tollkey has none of the package's other routes")
    else:
        sys.exit("FAILED: Tollkey has none of the package's other routes: the call was not rejected")
    keys.revoke(first["id"])
    rejects(lambda: keys.list(), 401, "INVALID_API_KEY", "a key can revoke itself")


if __name__ == "__main__":
    main()
