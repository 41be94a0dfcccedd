/* Requests to the server: the key, errors in one shape, streams of events. */

import { find } from "./dom.js";

const KEY = "hal-api-key";
let asking = null;

/** What went wrong; status 0: no answer came. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = "", retryAfter = 0, requestId = "" } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter, requestId });
  }
}

/** The answer to a GET, or where there is a body to a POST; asks for the key after a 401. */
export async function request(path, { body, signal, method, asks = true } = {}) {
  for (let tries = 0; ; tries += 1) {
    const key = sessionStorage.getItem(KEY);
    const answer = await send(path, body, { method, signal }, key);
    if (answer.ok) return answer;
    if (answer.status !== 401 || !asks) throw await errorOf(answer);
    // Another request may have brought a key meanwhile.
    const isStale = sessionStorage.getItem(KEY) !== key;
    if (!isStale && !(await askKey(key !== null))) throw await errorOf(answer);
  }
}

export function forgetKey() {
  sessionStorage.removeItem(KEY);
  find("forget").hidden = true;
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

async function send(path, body, how, key) {
  const headers = key === null ? {} : { authorization: `Bearer ${key}` };
  const options = { ...how, headers, cache: "no-store" };
  if (body !== undefined) {
    options.method ??= "POST";
    options.body = JSON.stringify(body);
    headers["content-type"] = "application/json";
  }
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is hal-serve running?", { code: "unreachable" });
  }
}

async function errorOf(answer) {
  const found = { status: answer.status, requestId: answer.headers.get("x-request-id") ?? "" };
  found.retryAfter = Number(answer.headers.get("retry-after")) || 0;
  try {
    const value = await answer.json();
    found.code = value.error?.code ?? value.status ?? "";
    return new ApiError(value.error?.message ?? `The server is ${value.status}.`, found);
  } catch {
    return new ApiError(`The server answered ${answer.status} without a reason.`, found);
  }
}

/** True once a key was given. All who wait share one dialog. */
function askKey(wasWrong) {
  asking ??= openDialog(wasWrong).finally(() => { asking = null; });
  return asking;
}

function openDialog(wasWrong) {
  const dialog = find("key-dialog");
  const input = find("key");
  find("key-hint").textContent = wasWrong
    ? "The server did not accept that key. Try another."
    : "This server answers only to those who have a key.";
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    find("key-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, input.value.trim());
      find("forget").hidden = false;
      dialog.close("given");
      dispatchEvent(new Event("hal-key"));
    };
    find("key-cancel").onclick = () => dialog.close("");
    dialog.onclose = () => {
      input.value = "";
      resolve(dialog.returnValue === "given");
      dialog.returnValue = "";
    };
  });
}

/** Every event of a stream; an error event is thrown, and so is an end without [DONE]. */
export async function* events(answer) {
  for await (const line of lines(answer.body)) {
    if (!line.startsWith("data:")) continue;
    const data = line.slice(5).trim();
    if (data === "[DONE]") return;
    const value = JSON.parse(data);
    if (value.error) throw new ApiError(value.error.message, { status: 200, code: value.error.code });
    yield value;
  }
  throw new ApiError("The connection ended in the middle of the answer.", { code: "cut" });
}

async function* lines(body) {
  let rest = "";
  for await (const text of texts(body)) {
    const parts = (rest + text).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}

/** A body as it arrives. */
export async function* texts(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection broke in the middle of the answer.", { code: "cut" });
  } finally {
    reader.cancel().catch(() => {});
  }
}
