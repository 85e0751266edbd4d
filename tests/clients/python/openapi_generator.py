"""The story of keys, with the client that openapi-generator generates for `python`."""

from openapi_client import (
    ApiClient, ApplicationsApi, CommerceKeysApi, Configuration, CreateApplication, CreateApplicationKey,
    CreateCommerceKey, VerificationApi, VerifyRequest, VerifyResponse,
)
from story import NEWER_DENIAL, SERVICE_KEY, TOKEN, URL, expect_denial, tell

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
expect_denial(VerifyResponse.from_dict(NEWER_DENIAL).actual_instance)
