// Verifies keys with @unkey/api. Only the URL of the server and the root key are those of Tollkey.

import { Unkey } from "@unkey/api";
import {
  BadRequestErrorResponse,
  ForbiddenErrorResponse,
  TooManyRequestsErrorResponse,
  UnauthorizedErrorResponse,
} from "@unkey/api/models/errors";

import { expect, post, serviceKey as rootKey, url as serverURL } from "./tollkey.js";

const create = (body) => post("/api-keys", { name: "Checkout", ...body });

const retryConfig = { strategy: "none" };
const unkey = new Unkey({ serverURL, rootKey, retryConfig });
const created = await create({ scopes: ["links:read", "sessions:write"], metadata: { plan: "pro" } });
const key = created.api_key;
const verify = async (request) => (await unkey.keys.verifyKey({ key, ...request })).data;

const valid = await verify({});
expect(valid.valid && valid.code === "VALID" && valid.keyId === created.key_id, "a key is valid");
expect(valid.name === "Checkout" && valid.meta?.plan === "pro", "the response has the name and the metadata");
expect(valid.permissions?.includes("links:read"), "the response has the permissions");

const unknown = await verify({ key: "ck_live_unknown" });
expect(!unknown.valid && unknown.code === "NOT_FOUND", "an unknown key is not found");

for (const [permissions, code] of [
  ["links:read", "VALID"],
  ["links:read AND sessions:write", "VALID"],
  ["links:read AND events:read", "INSUFFICIENT_PERMISSIONS"],
  ["events:read OR links:read", "VALID"],
  ["events:read OR (links:read AND sessions:write)", "VALID"],
  ["(events:read OR links:read) AND events:read", "INSUFFICIENT_PERMISSIONS"],
  ["no.such.permission", "INSUFFICIENT_PERMISSIONS"],
]) {
  const response = await verify({ permissions });
  expect(response.code === code && response.valid === (code === "VALID"), `${permissions}: ${code}`);
}

const suspended = await create({});
await post(`/api-keys/${suspended.key_id}/suspend`, {});
const rotated = await create({});
await post(`/api-keys/${rotated.key_id}/rotate`, {});
const withAllowlist = await create({ allowed_ips: ["203.0.113.0/24"] });
for (const [denied, code] of [
  [rotated, "EXPIRED"],
  [suspended, "DISABLED"],
  [withAllowlist, "FORBIDDEN"],
]) {
  const response = await verify({ key: denied.api_key });
  expect(!response.valid && response.code === code && response.keyId === denied.key_id, `a denied key: ${code}`);
  expect(response.enabled === (code !== "DISABLED"), `${code}: enabled is ${response.enabled}`);
}

const limited = await create({ rate_limit: { limit: 1, window_seconds: 3600 } });
for (const code of ["VALID", "RATE_LIMITED"]) {
  const response = await verify({ key: limited.api_key });
  expect(response.code === code && response.valid === (code === "VALID"), `a key with a rate limit: ${code}`);
  const [limit] = response.ratelimits ?? [];
  expect(limit?.exceeded === (code === "RATE_LIMITED") && limit.remaining === 0, `${code} has the rate limit`);
}

async function fails(call, type, status, what) {
  try {
    await call();
    expect(false, what);
  } catch (error) {
    const envelope = error instanceof type && error.error.status === status && error.meta.requestId;
    expect(envelope, `${what} (${error.error?.detail ?? error})`);
  }
}
await fails(() => verify({ permissions: "links:read AND" }), BadRequestErrorResponse, 400, "an incomplete expression");
await fails(() => verify({ credits: { cost: 1 } }), BadRequestErrorResponse, 400, "credits");

const as = (rootKey) => () => new Unkey({ serverURL, rootKey, retryConfig }).keys.verifyKey({ key });
await fails(as(`${rootKey.slice(0, -4)}0000`), UnauthorizedErrorResponse, 401, "a wrong root key");
await fails(as(key), ForbiddenErrorResponse, 403, "a commerce key as the root key");
const secret = { name: "Checkout", environment: "live", access: "secret", rateLimit: { limit: 1, windowSeconds: 3600 } };
const asLimited = as((await post("/account/api-keys", secret)).data.value);
expect((await asLimited()).data.valid, "a secret key as the root key");
await fails(asLimited, TooManyRequestsErrorResponse, 429, "the rate limit of the root key");
