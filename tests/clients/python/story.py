"""What the tests of all clients in Python share."""

import contextlib
import http.server
import json
import os
import sys
import threading
import time
import urllib.request

URL = os.environ.get("TOLLKEY_URL", "")
TOKEN = os.environ.get("TOLLKEY_TOKEN", "")
SERVICE_KEY = os.environ.get("TOLLKEY_SERVICE_KEY", "")
#: In Unix seconds.
IN_AN_HOUR = int(time.time()) + 3600
#: A code that this release does not have.
NEWER_DENIAL = {"valid": False, "code": "a_code_of_a_newer_server"}


def expect(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")
    print(f"ok: {what}")


def post(path, body):
    """Sends a POST below `/api/v1` with the management token, and returns the JSON of the response."""
    request = urllib.request.Request(
        f"{URL}/api/v1{path}", json.dumps(body).encode(),
        {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
        return json.load(response)


def plain(secret):
    """The value of a `str`, or of the type for secrets that some generators use for `format: password`."""
    return secret.get_secret_value() if hasattr(secret, "get_secret_value") else secret


def tell(create_application, create_application_key, revoke_application_key, create_key, verify, rotate, revoke):
    """The story of keys, with the calls of a generated client."""
    application = create_application({"name": "Web Store"})
    expect(application.name == "Web Store", "an application is created")
    its = create_application_key(application.id, {"description": "Checkout", "expiresAt": IN_AN_HOUR})
    valid = verify({"key": plain(its.full_key)})
    expect(valid.valid and valid.key.application_id == application.id, "its key is valid")
    expect(valid.key.expires_at == IN_AN_HOUR, "its key has an expiration")
    revoke_application_key(application.id, its.id)
    expect(verify({"key": plain(its.full_key)}).code == "revoked", "its revoked key is denied")

    created = create_key({"name": "Checkout", "scopes": ["links:read"], "expires_at": IN_AN_HOUR})
    key = plain(created.api_key)
    expect(key.startswith("ck_live_"), "a key is created")

    valid = verify({"key": key})
    expect(valid.valid and valid.code == "valid" and valid.key.id == created.key_id, "the key is valid")
    expect(valid.key.scopes == ["links:read"], "the response has the scopes")
    expect(valid.key.expires_at == IN_AN_HOUR, "the expiration was sent, and is returned")

    successor = rotate(created.key_id)
    expect(verify({"key": key}).code == "expired", "a rotated key is expired")
    expect(verify({"key": plain(successor.api_key)}).valid, "its successor is valid")

    revoke(successor.key_id)
    denied = verify({"key": plain(successor.api_key)})
    expect(not denied.valid and denied.code == "revoked" and not hasattr(denied, "key"), "a revoked key is denied")


class NewerServer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps(NEWER_DENIAL).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def newer_server():
    """Runs a server whose every response is a denial with a code that this release does not have."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NewerServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def expect_denial(response):
    expect(response.valid is False and not hasattr(response, "key"), "an unknown code reads as a denial")
