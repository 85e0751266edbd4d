// What the stories of all generated clients in TypeScript share.

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

export function expect(condition: boolean, what: string): asserts condition {
  if (!condition) {
    console.error(`FAILED: ${what}`);
    process.exit(1);
  }
  console.log(`ok: ${what}`);
}
