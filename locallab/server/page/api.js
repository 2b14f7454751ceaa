// Requests to this server, and its streams.

/** Addresses are below the page's own, so that the page works behind a proxy with a path of its own. */
export const base = new URL(".", document.baseURI).href.replace(/\/$/, "");

const KEY = "locallab-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** A refusal, or a connection that failed (`status` 0). */
export class ApiError extends Error {
  constructor(status, message, body = null) {
    super(message);
    this.status = status;
    this.body = body;
  }
}

/** What the page does when the server asks for a key, and when the connection is lost. Set by the page. */
export const hooks = { askKey: async () => false, lost: () => {} };

// Every dialect has a shape of its own for errors.
function messageOf(body, response) {
  const found = body?.error?.message ?? body?.error ?? body?.detail ?? body?.message;
  return typeof found === "string" ? found : `${response.status} ${response.statusText}`;
}

async function failure(response) {
  const text = (await response.text()).slice(0, 20000);
  let body = null;
  try {
    body = JSON.parse(text);
  } catch { /* a proxy's page */ }
  return new ApiError(response.status, messageOf(body, response), body);
}

/** Send a request and return the response, once it is known to be none of a failure. Raises ApiError, AbortError. */
export async function send(method, path, body, { signal, headers, asked = false } = {}) {
  const all = { ...headers };
  if (body !== undefined && !(body instanceof FormData)) all["Content-Type"] = "application/json";
  const sent = key.get();
  if (sent) all.Authorization = `Bearer ${sent}`;
  let response;
  try {
    const content = body === undefined || body instanceof FormData || typeof body === "string" ? body : JSON.stringify(body);
    response = await fetch(base + path, { method, headers: all, body: content, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    hooks.lost();
    throw new ApiError(0, "The server cannot be reached.");
  }
  if (response.ok) return response;
  const error = await failure(response);
  if (response.status === 401 && !asked && (key.get() !== sent || (await hooks.askKey(sent ? error.message : "")))) {
    return send(method, path, body, { signal, headers });
  }
  throw error;
}

export const get = async (path, options) => (await send("GET", path, undefined, options)).json();
export const post = async (path, body, options) => (await send("POST", path, body, options)).json();

async function* chunks(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield decoder.decode(value, { stream: true });
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    hooks.lost();
    throw new ApiError(0, "The connection was lost.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Cut a stream at each `separator`. What is left at the end is no whole piece, but for lines.
async function* pieces(response, separator) {
  let rest = "";
  for await (const chunk of chunks(response)) {
    const parts = (rest + chunk).split(separator);
    rest = parts.pop();
    yield* parts;
  }
  if (rest.trim()) yield rest;
}

/** Yield the server-sent events of a response as {event, data}; `data` is the text. */
export async function* events(response) {
  for await (const block of pieces(response, "\n\n")) {
    const found = { event: "message", data: [] };
    for (const line of block.split("\n")) {
      if (line.startsWith("event:")) found.event = line.slice(6).trim();
      if (line.startsWith("data:")) found.data.push(line.slice(5).replace(/^ /, ""));
    }
    if (found.data.length) yield { event: found.event, data: found.data.join("\n") };
  }
}

/** Yield the objects of a response of JSON lines. */
export async function* lines(response) {
  for await (const line of pieces(response, "\n")) if (line.trim()) yield JSON.parse(line);
}
