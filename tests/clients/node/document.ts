// Uses the types of openapi-typescript as an application does. It is compiled and not run.

import createClient from "openapi-fetch";
import type { components, paths } from "./document/schema.js";

const client = createClient<paths>({ baseUrl: "http://127.0.0.1:8080" });

export async function story(): Promise<string[]> {
  const application = await client.POST("/api/v1/applications", { body: { name: "Web Store" } });
  if (!application.data) throw new Error(application.error.title);

  const expires_at = 2_000_000_000;
  const created = await client.POST("/api/v1/api-keys", { body: { name: "Checkout", expires_at } });
  if (!created.data) throw new Error(created.error.title);
  const path = { id: created.data.key_id };
  await client.POST("/api/v1/api-keys/{id}/rotate", { params: { path } });
  await client.POST("/api/v1/api-keys/{id}/revoke", { params: { path }, body: { reason: "leaked" } });

  const request: components["schemas"]["VerifyRequest"] = { key: created.data.api_key, scopes: ["links:read"] };
  const { data, error } = await client.POST("/api/v1/verify", { body: request });
  if (error) throw new Error(error.detail);
  if ("key" in data) return data.key.scopes;
  return data.missing_scopes ?? [data.code];
}

// Without these errors, the types would accept anything.
// @ts-expect-error: a key has a name
client.POST("/api/v1/api-keys", { body: { scopes: ["links:read"] } });
// @ts-expect-error: no such path
client.POST("/api/v1/key", { body: { name: "Checkout" } });
