"""Introspects keys with Authlib, which authenticates with client_secret_basic and client_secret_post."""

from authlib.integrations.requests_client import OAuth2Session
from story import SERVICE_KEY, URL, expect, post

created = post("/api-keys", {"name": "Checkout", "scopes": ["links:read"]})
revoked = post("/api-keys", {"name": "Checkout"})
post(f"/api-keys/{revoked['key_id']}/revoke", {})

for method in ("client_secret_basic", "client_secret_post"):

    def introspect(secret, token):
        # Authlib uses this method for introspection, too.
        session = OAuth2Session("resource-server", secret, revocation_endpoint_auth_method=method)
        return session.introspect_token(f"{URL}/api/v1/introspect", token=token)

    active = introspect(SERVICE_KEY, created["api_key"]).json()
    expect(active["active"] and active["scope"] == "links:read", f"{method}: a valid key is active")
    expect((active["jti"], active["sub"]) == (created["key_id"], "acme"), f"{method}: the response has the key")
    for inactive in (revoked["api_key"], "ck_live_unknown"):
        expect(introspect(SERVICE_KEY, inactive).json() == {"active": False}, f"{method}: another key is inactive")
    # A secret with characters that clients encode, and a service key with another last character.
    last = "b" if SERVICE_KEY.endswith("a") else "a"
    for wrong in ("wrong: secret/+%&=", SERVICE_KEY[:-1] + last):
        response = introspect(wrong, created["api_key"])
        challenges = response.headers["WWW-Authenticate"]
        expect(response.status_code == 401 and "Basic" in challenges, f"{method}: a wrong secret is rejected")
