"""The story of keys, with the client that openapi-generator generates for `python`."""

from openapi_client import (
    ApiClient, ApplicationsApi, CommerceKeysApi, Configuration, CreateApplication, CreateApplicationKey,
    CreateCommerceKey, VerificationApi, VerifyRequest,
)
from story import SERVICE_KEY, TOKEN, URL, expect_denial, newer_server, tell

management = ApiClient(Configuration(host=URL, access_token=TOKEN))
service = ApiClient(Configuration(host=URL, access_token=SERVICE_KEY))
applications = ApplicationsApi(management)
keys = CommerceKeysApi(management)

tell(
    create_application=lambda body: applications.create_application(CreateApplication.from_dict(body)),
    create_application_key=lambda application, body: applications.create_application_key(
        application, CreateApplicationKey.from_dict(body)
    ),
    revoke_application_key=lambda application, key: applications.revoke_application_key(application, key),
    create_key=lambda body: keys.create_commerce_key(CreateCommerceKey.from_dict(body)),
    verify=lambda body: VerificationApi(service).verify(VerifyRequest.from_dict(body)).actual_instance,
    rotate=lambda key_id: keys.rotate_commerce_key(key_id),
    revoke=lambda key_id: keys.revoke_commerce_key(key_id),
)
with newer_server() as url:
    newer = VerificationApi(ApiClient(Configuration(host=url, access_token=SERVICE_KEY)))
    expect_denial(newer.verify(VerifyRequest(key="ck_test_EXAMPLE")).actual_instance)
