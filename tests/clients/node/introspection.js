// Introspects keys with openid-client, which authenticates with client_secret_basic and client_secret_post.

import * as oauth from "openid-client";

import { expect, post, serviceKey, url } from "./tollkey.js";

const server = { issuer: url, introspection_endpoint: `${url}/api/v1/introspect` };
const methods = { client_secret_basic: oauth.ClientSecretBasic, client_secret_post: oauth.ClientSecretPost };
const created = await post("/api-keys", { name: "Checkout", scopes: ["links:read"] });
const revoked = await post("/api-keys", { name: "Checkout" });
await post(`/api-keys/${revoked.key_id}/revoke`, {});

for (const [name, method] of Object.entries(methods)) {
  const client = (secret) => {
    const config = new oauth.Configuration(server, "resource-server", undefined, method(secret));
    oauth.allowInsecureRequests(config);
    return config;
  };
  const known = client(serviceKey);
  const active = await oauth.tokenIntrospection(known, created.api_key);
  expect(active.active === true && active.scope === "links:read", `${name}: a valid key is active`);
  expect(active.jti === created.key_id && active.sub === "acme", `${name}: the response has the key and the account`);
  for (const inactive of [revoked.api_key, "ck_live_unknown"]) {
    const response = await oauth.tokenIntrospection(known, inactive, { token_type_hint: "access_token" });
    expect(JSON.stringify(response) === '{"active":false}', `${name}: another key is inactive`);
  }

  // A secret with characters that a client percent-encodes, and a service key with another last character.
  const last = serviceKey.endsWith("a") ? "b" : "a";
  for (const wrong of ["wrong: secret/+%&=", serviceKey.slice(0, -1) + last]) {
    try {
      await oauth.tokenIntrospection(client(wrong), created.api_key);
      expect(false, `${name}: a wrong secret is rejected`);
    } catch (error) {
      const status = error.status ?? error.cause?.status ?? error.cause?.response?.status;
      expect(status === 401, `${name}: a wrong secret is rejected (${error.code})`);
    }
  }
}
