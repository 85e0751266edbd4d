"""The story of keys, with the client that openapi-python-client generates."""

from story import SERVICE_KEY, TOKEN, URL, expect_denial, newer_server, tell
from tollkey_api import AuthenticatedClient
from tollkey_api.api.applications import create_application, create_application_key, revoke_application_key
from tollkey_api.api.commerce_keys import create_commerce_key, revoke_commerce_key, rotate_commerce_key
from tollkey_api.api.verification import verify
from tollkey_api.models import CreateApplication, CreateApplicationKey, CreateCommerceKey, VerifyRequest

management = AuthenticatedClient(base_url=URL, token=TOKEN)
service = AuthenticatedClient(base_url=URL, token=SERVICE_KEY)

tell(
    create_application=lambda body: create_application.sync(client=management, body=CreateApplication.from_dict(body)),
    create_application_key=lambda application, body: create_application_key.sync(
        application, client=management, body=CreateApplicationKey.from_dict(body)
    ),
    revoke_application_key=lambda application, key: revoke_application_key.sync_detailed(
        application, key, client=management
    ),
    create_key=lambda body: create_commerce_key.sync(client=management, body=CreateCommerceKey.from_dict(body)),
    verify=lambda body: verify.sync(client=service, body=VerifyRequest.from_dict(body)),
    rotate=lambda key_id: rotate_commerce_key.sync(key_id, client=management),
    revoke=lambda key_id: revoke_commerce_key.sync(key_id, client=management),
)

with newer_server() as url:
    newer = AuthenticatedClient(base_url=url, token=SERVICE_KEY)
    expect_denial(verify.sync(client=newer, body=VerifyRequest(key="ck_test_EXAMPLE")))
