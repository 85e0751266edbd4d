"""Verifies keys with unkey.py. Only the URL of the server and the root key are those of Tollkey."""

from story import SERVICE_KEY, URL, expect, post
from unkey.py import Unkey, errors

def create(**fields):
    return post("/api-keys", {"name": "Checkout", **fields})


creation = {"name": "Checkout", "scopes": ["links:read", "sessions:write"], "metadata": {"plan": "pro"}}
created = post("/api-keys", creation)
key = created["api_key"]


def fails(call, kind, status, what):
    try:
        call()
    except kind as error:
        envelope = error.data.error.status == error.status_code == status and error.data.meta.request_id
        expect(envelope, f"{what} ({error.data.error.detail})")
    else:
        expect(False, what)


with Unkey(root_key=SERVICE_KEY, server_url=URL) as unkey:
    valid = unkey.keys.verify_key(key=key).data
    expect((valid.valid, valid.code, valid.key_id) == (True, "VALID", created["key_id"]), "a key is valid")
    expect(valid.name == "Checkout" and valid.meta == {"plan": "pro"}, "the response has the name and the metadata")
    expect("links:read" in valid.permissions, "the response has the permissions")

    unknown = unkey.keys.verify_key(key="ck_live_unknown").data
    expect((unknown.valid, unknown.code) == (False, "NOT_FOUND"), "an unknown key is not found")

    for permissions, code in (
        ("links:read", "VALID"),
        ("links:read AND sessions:write", "VALID"),
        ("links:read AND events:read", "INSUFFICIENT_PERMISSIONS"),
        ("events:read OR links:read", "VALID"),
        ("events:read OR (links:read AND sessions:write)", "VALID"),
        ("(events:read OR links:read) AND events:read", "INSUFFICIENT_PERMISSIONS"),
        ("no.such.permission", "INSUFFICIENT_PERMISSIONS"),
    ):
        response = unkey.keys.verify_key(key=key, permissions=permissions).data
        expect((response.code, response.valid) == (code, code == "VALID"), f"{permissions}: {code}")

    suspended, rotated = create(), create()
    post(f"/api-keys/{suspended['key_id']}/suspend", {})
    post(f"/api-keys/{rotated['key_id']}/rotate", {})
    with_allowlist = create(allowed_ips=["203.0.113.0/24"])
    for denied, code in ((rotated, "EXPIRED"), (suspended, "DISABLED"), (with_allowlist, "FORBIDDEN")):
        response = unkey.keys.verify_key(key=denied["api_key"]).data
        expected = (False, code, denied["key_id"], code != "DISABLED")
        expect((response.valid, response.code, response.key_id, response.enabled) == expected, f"a denied key: {code}")

    limited = create(rate_limit={"limit": 1, "window_seconds": 3600})["api_key"]
    for code in ("VALID", "RATE_LIMITED"):
        response = unkey.keys.verify_key(key=limited).data
        expect((response.valid, response.code) == (code == "VALID", code), f"a key with a rate limit: {code}")
        [limit] = response.ratelimits
        expect((limit.exceeded, limit.remaining) == (code != "VALID", 0), f"{code} has the rate limit")

    incomplete = lambda: unkey.keys.verify_key(key=key, permissions="links:read AND")
    fails(incomplete, errors.BadRequestErrorResponse, 400, "an incomplete expression")

    with_credits = lambda: unkey.keys.verify_key(key=key, credits={"cost": 1})
    fails(with_credits, errors.BadRequestErrorResponse, 400, "credits are rejected")


def verify_as(root_key):
    with Unkey(root_key=root_key, server_url=URL) as caller:
        return caller.keys.verify_key(key=key).data


wrong = SERVICE_KEY[:-4] + "0000"
fails(lambda: verify_as(wrong), errors.UnauthorizedErrorResponse, 401, "a wrong root key is rejected")
fails(lambda: verify_as(key), errors.ForbiddenErrorResponse, 403, "a commerce key as the root key is rejected")
rate_limit = {"limit": 1, "windowSeconds": 3600}
secret = {"name": "Checkout", "environment": "live", "access": "secret", "rateLimit": rate_limit}
secret_key = post("/account/api-keys", secret)["data"]["value"]
expect(verify_as(secret_key).valid, "a secret key as the root key")
limit_exceeded = lambda: verify_as(secret_key)
fails(limit_exceeded, errors.TooManyRequestsErrorResponse, 429, "the rate limit of the root key")
