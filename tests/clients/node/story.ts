// What the stories of all generated clients in TypeScript share.

import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

function setting(name: string): string {
  const value = process.env[name];
  if (!value) throw new Error(`${name} is not set`);
  return value;
}

export const url = setting("TOLLKEY_URL");
export const token = setting("TOLLKEY_TOKEN");
export const serviceKey = setting("TOLLKEY_SERVICE_KEY");

/** In Unix seconds. */
export const inAnHour = Math.floor(Date.now() / 1000) + 3600;

/** A server whose every response is a denial with a code that this release does not have. */
export async function withNewerServer(call: (url: string) => Promise<{ valid: boolean }>) {
  const server = createServer((_, response) => {
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify({ valid: false, code: "a_code_of_a_newer_server" }));
  });
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  try {
    const denied = await call(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
    expect(denied.valid === false && !("key" in denied), "an unknown code reads as a denial");
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

export function expect(condition: boolean, what: string): asserts condition {
  if (!condition) {
    console.error(`FAILED: ${what}`);
    process.exit(1);
  }
  console.log(`ok: ${what}`);
}
