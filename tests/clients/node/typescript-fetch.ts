// The story of keys, with the client that openapi-generator generates for `typescript-fetch`.

import {
  ApplicationsApi,
  CommerceKeysApi,
  Configuration,
  CreateApplicationKeyFromJSON,
  CreateCommerceKeyFromJSON,
  VerificationApi,
} from "./client";
import { expect, inAnHour, serviceKey, token, url, withNewerServer } from "./story";

async function main() {
  const management = new Configuration({ basePath: url, accessToken: token });
  const service = new Configuration({ basePath: url, accessToken: serviceKey });
  const keys = new CommerceKeysApi(management);
  const verify = (key: string) => new VerificationApi(service).verify({ verifyRequest: { key } });

  const applications = new ApplicationsApi(management);
  const application = await applications.createApplication({ createApplication: { name: "Web Store" } });
  expect(application.name === "Web Store" && application.id.length === 36, "an application is created");
  const its = await applications.createApplicationKey({
    id: application.id,
    createApplicationKey: CreateApplicationKeyFromJSON({ description: "Checkout", expiresAt: inAnHour }),
  });
  const ofApplication = await verify(its.fullKey);
  expect("key" in ofApplication && ofApplication.key.applicationId === application.id, "its key is valid");
  expect(Number(ofApplication.key.expiresAt) === inAnHour, "its key has an expiration");
  await applications.revokeApplicationKey({ id: application.id, keyId: its.id });
  expect((await verify(its.fullKey)).code === "revoked", "its revoked key is denied");

  const created = await keys.createCommerceKey({
    createCommerceKey: CreateCommerceKeyFromJSON({ name: "Checkout", scopes: ["links:read"], expires_at: inAnHour }),
  });
  expect(created.apiKey.startsWith("ck_live_"), "a key is created");

  const valid = await verify(created.apiKey);
  expect("key" in valid, "the key is valid");
  expect(valid.code === "valid" && valid.key.id === created.keyId, "the response has the key");
  expect(valid.key.scopes.join() === "links:read", "the response has the scopes");
  expect(Number(valid.key.expiresAt) === inAnHour, "the expiration was sent, and is returned");

  const successor = await keys.rotateCommerceKey({ id: created.keyId });
  expect((await verify(created.apiKey)).code === "expired", "a rotated key is expired");
  expect((await verify(successor.apiKey)).valid, "its successor is valid");

  await keys.revokeCommerceKey({ id: successor.keyId });
  const denied = await verify(successor.apiKey);
  expect(!denied.valid && denied.code === "revoked" && !("key" in denied), "a revoked key is denied");

  await withNewerServer((basePath) => {
    const newer = new Configuration({ basePath, accessToken: serviceKey });
    return new VerificationApi(newer).verify({ verifyRequest: { key: created.apiKey } });
  });
}

main().catch((error) => expect(false, String(error?.stack ?? error)));
