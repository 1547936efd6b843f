// Requests to the service: the API key, problems (RFC 9457), the time that a request took.

const KEY = "clq-api-key"; // in sessionStorage: this tab only, gone when it is closed

export const apiKey = {
  get: () => sessionStorage.getItem(KEY),
  set: (key) => sessionStorage.setItem(KEY, key),
  forget: () => sessionStorage.removeItem(KEY),
};

/** A request that was answered with an error, or not at all (status 0). */
export class Problem extends Error {
  constructor({ status, code, title, detail, ...members }) {
    super(detail);
    Object.assign(this, { status, code, title, detail, members });
  }
}

/** What the service has, as GET /v1/models gives it. */
export async function models() {
  return (await ask("v1/models", {}, readJson)).body.models;
}

/**
 * The detections of an image file, and how long the request took seen from here, in milliseconds.
 * Raises Problem.
 */
export const detect = (path, file, signal) => ask(path, posted(file, signal), readJson);

/** The image file as the service sees it, turned by its EXIF orientation, as a PNG. */
export async function upright(path, file, signal) {
  const options = { ...posted(file, signal), accept: "image/png" };
  return (await ask(path, options, (reply) => reply.blob())).body;
}

const readJson = (reply) => reply.json();

function posted(file, signal) {
  const form = new FormData();
  form.append("image", file);
  return { method: "POST", body: form, signal };
}

async function ask(path, { accept = "application/json", ...options }, read) {
  const key = apiKey.get();
  const headers = { Accept: accept, ...(key && { Authorization: `Bearer ${key}` }) };
  const started = performance.now();
  let reply, body;
  try {
    reply = await fetch(path, { ...options, headers });
    body = await (reply.ok ? read : readJson)(reply);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(reply ? notOurs(reply) : unreachable(error));
  }
  if (!reply.ok) throw new Problem(body.code ? body : notOurs(reply));
  return { body, roundTripMs: performance.now() - started };
}

const unreachable = (error) => ({
  status: 0,
  code: "",
  title: "The service does not answer",
  detail: `${error.message}. Is it running, and can this browser reach ${location.origin}?`,
});

const notOurs = (reply) => ({
  status: reply.status,
  code: "",
  title: "The answer is not this service's",
  detail: `${reply.status} ${reply.statusText} with a body that is not a CLQ answer; a proxy in between?`,
});
