"""Verifies keys with unkey.py. Only the URL of the server and the root key are those of Tollkey."""

from story import SERVICE_KEY, URL, expect, post
from unkey.py import Unkey, errors

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

    incomplete = lambda: unkey.keys.verify_key(key=key, permissions="links:read AND")
    fails(incomplete, errors.BadRequestErrorResponse, 400, "an incomplete expression")

with Unkey(root_key=SERVICE_KEY[:-4] + "0000", server_url=URL) as stranger:
    fails(
        lambda: stranger.keys.verify_key(key=key), errors.UnauthorizedErrorResponse, 401, "a wrong root key is rejected"
    )
