// The story of keys, with the client that @hey-api/openapi-ts generates.

import * as api from "./client";
import { createClient } from "./client/client";
import { expect, inAnHour, serviceKey, token, url, withNewerServer } from "./story";

async function main() {
  const client = createClient({ baseUrl: url, auth: token });
  const service = createClient({ baseUrl: url, auth: serviceKey });
  const throwOnError = true;
  const verify = async (key: string) => (await api.verify({ client: service, body: { key }, throwOnError })).data;

  const application = await api.createApplication({ client, body: { name: "Web Store" }, throwOnError });
  expect(application.data.name === "Web Store", "an application is created");
  const path = { id: application.data.id };
  const description = { description: "Checkout", expiresAt: inAnHour };
  const { data: its } = await api.createApplicationKey({ client, path, body: description, throwOnError });
  const ofApplication = await verify(its.fullKey);
  expect("key" in ofApplication && ofApplication.key.application_id === path.id, "its key is valid");
  expect(Number(ofApplication.key.expires_at) === inAnHour, "its key has an expiration");
  await api.revokeApplicationKey({ client, path: { ...path, keyId: its.id }, throwOnError });
  expect((await verify(its.fullKey)).code === "revoked", "its revoked key is denied");

  const body = { name: "Checkout", scopes: ["links:read"], expires_at: inAnHour };
  const { data: created } = await api.createCommerceKey({ client, body, throwOnError });
  expect(created.api_key.startsWith("ck_live_"), "a key is created");

  const valid = await verify(created.api_key);
  expect("key" in valid, "the key is valid");
  expect(valid.code === "valid" && valid.key.id === created.key_id, "the response has the key");
  expect(valid.key.scopes.join() === "links:read", "the response has the scopes");
  expect(Number(valid.key.expires_at) === inAnHour, "the expiration was sent, and is returned");

  const rotation = await api.rotateCommerceKey({ client, path: { id: created.key_id }, throwOnError });
  const successor = rotation.data;
  expect((await verify(created.api_key)).code === "expired", "a rotated key is expired");
  expect((await verify(successor.api_key)).valid, "its successor is valid");

  await api.revokeCommerceKey({ client, path: { id: successor.key_id }, throwOnError });
  const denied = await verify(successor.api_key);
  expect(!denied.valid && denied.code === "revoked" && !("key" in denied), "a revoked key is denied");

  await withNewerServer(async (baseUrl) => {
    const client = createClient({ baseUrl, auth: serviceKey });
    return (await api.verify({ client, body: { key: created.api_key }, throwOnError })).data;
  });
}

main().catch((error) => expect(false, JSON.stringify(error) ?? String(error)));
