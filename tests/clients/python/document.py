"""Reads and writes JSON with the pydantic models that datamodel-code-generator generates from the document."""

import json

from models import CreateCommerceKey, VerifyRequest, VerifyResponse
from pydantic import ValidationError
from story import NEWER_DENIAL, expect


def sent(model):
    return json.loads(model.model_dump_json(exclude_unset=True))


request = {"key": "ck_test_EXAMPLE", "scopes": ["links:read"], "client_ip": "203.0.113.7"}
expect(sent(VerifyRequest.model_validate(request)) == request, "the key of a verification is sent")
creation = {"name": "Checkout", "expires_at": 2_000_000_000, "metadata": {"owner": "checkout"}}
expect(sent(CreateCommerceKey.model_validate(creation)) == creation, "the fields of a new key are sent")

key = {
    "id": "0198c0de-0000-7000-8000-000000000002", "account_id": "acme", "application_id": None, "name": "Checkout",
    "family": "commerce", "mode": "test", "scopes": ["links:read"], "merchants": None, "features": None,
    "expires_at": None, "metadata": {"owner": "checkout"},
}
valid = {"valid": True, "code": "valid", "key": key, "rate_limit": None}
response = VerifyResponse.model_validate(valid)
expect(response.root.valid is True and response.root.key.account_id == "acme", "a valid key is read")
expect(json.loads(response.model_dump_json()) == valid, "a valid key is written as it was read")
denial = {"valid": False, "code": "insufficient_scope", "missing_scopes": ["links:write"]}
expect(sent(VerifyResponse.model_validate(denial)) == denial, "a denial is read and written")
# This generator makes a closed union of every discriminator, whatever the schemas say. So an unknown code is an error,
# and a caller must handle the error as a denial, as docs/http-api.md says.
try:
    VerifyResponse.model_validate(NEWER_DENIAL)
except ValidationError as error:
    expect([each["type"] for each in error.errors()] == ["union_tag_invalid"], "an unknown code is an error")
else:
    expect(False, "an unknown code is an error")
