// Verifies keys with @unkey/api. Only the URL of the server and the root key are those of Tollkey.

import { Unkey } from "@unkey/api";
import { BadRequestErrorResponse, UnauthorizedErrorResponse } from "@unkey/api/models/errors";

const { TOLLKEY_URL: serverURL, TOLLKEY_TOKEN: token, TOLLKEY_SERVICE_KEY: rootKey } = process.env;

function expect(condition, what) {
  if (!condition) {
    console.error(`FAILED: ${what}`);
    process.exit(1);
  }
  console.log(`ok: ${what}`);
}

async function create(body) {
  const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
  const response = await fetch(`${serverURL}/api/v1/api-keys`, { method: "POST", headers, body: JSON.stringify(body) });
  return response.json();
}

const retryConfig = { strategy: "none" };
const unkey = new Unkey({ serverURL, rootKey, retryConfig });
const created = await create({ name: "Checkout", scopes: ["links:read", "sessions:write"], metadata: { plan: "pro" } });
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
const stranger = new Unkey({ serverURL, rootKey: `${rootKey.slice(0, -4)}0000`, retryConfig });
await fails(() => stranger.keys.verifyKey({ key }), UnauthorizedErrorResponse, 401, "a wrong root key");
