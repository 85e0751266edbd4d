// What the tests of libraries in JavaScript share.

export const {
  TOLLKEY_URL: url, TOLLKEY_TOKEN: token, TOLLKEY_SERVICE_KEY: serviceKey,
} = process.env;

export function expect(condition, what) {
  if (!condition) {
    console.error(`FAILED: ${what}`);
    process.exit(1);
  }
  console.log(`ok: ${what}`);
}

/** Sends a management request, which must succeed. */
export async function post(path, body) {
  const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
  const response = await fetch(`${url}/api/v1${path}`, { method: "POST", headers, body: JSON.stringify(body) });
  const text = await response.text();
  expect(response.ok, `POST ${path}${response.ok ? "" : `: ${text}`}`);
  return JSON.parse(text);
}
