// Asks the server and reads its answer: server-sent events of the UI message stream, version 1.

let key = sessionStorage.getItem("millrace.key") || "";

/** The key that requests carry; kept in this tab alone. */
export function useKey(value) {
  key = value.trim();
  sessionStorage.setItem("millrace.key", key);
}

/** An answer other than 2xx. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** `fetch` with the key. Throws `Refused` with the server's own message. */
export async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  if (options.body) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.ok) return response;
  let message = `the server answered ${response.status}`;
  try {
    message = (await response.json()).error.message || message;
  } catch {
    // Not in the server's own shape: a proxy's page.
  }
  throw new Refused(response.status, message);
}

/** Cuts bytes into events, however they are packed: yields `{id, data}`. */
async function* frames(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value.replaceAll("\r", "");
    for (let end; (end = rest.indexOf("\n\n")) >= 0; rest = rest.slice(end + 2)) {
      const frame = { id: "", data: [] };
      for (const line of rest.slice(0, end).split("\n")) {
        const colon = line.indexOf(":");
        if (colon <= 0) continue;
        const value = line.slice(colon + 1).replace(/^ /, "");
        if (line.slice(0, colon) === "data") frame.data.push(value);
        if (line.slice(0, colon) === "id") frame.id = value;
      }
      if (frame.data.length) yield { id: frame.id, data: frame.data.join("\n") };
    }
  }
}

/**
 * Asks, and calls `onEvent` for each event of the answer until it has ended. A connection that breaks off is taken up
 * where it did: the server keeps an answer for a while.
 */
export async function ask(question, signal, onEvent) {
  let last = "", misses = 0;
  let response = await call("/v1/assist", { method: "POST", body: JSON.stringify(question), signal });
  for (;;) {
    try {
      for await (const { id, data } of frames(response.body)) {
        if (id) last = id;
        misses = 0;
        if (data === "[DONE]") return;
        onEvent(JSON.parse(data));
      }
    } catch (error) {
      if (signal.aborted || !(error instanceof TypeError)) throw error;
    }
    // The end without its mark: the connection was lost, and the answer may go on.
    response = null;
    while (!response) {
      if (signal.aborted) throw new DOMException("stopped", "AbortError");
      if (!last || ++misses > 4) throw new Error("the connection to the server was lost");
      await new Promise((resolve) => setTimeout(resolve, 300 * misses));
      try {
        const path = `/v1/assist/${encodeURIComponent(question.id)}/stream`;
        response = await call(path, { headers: { "Last-Event-ID": last }, signal });
        if (response.status === 204) throw new Error("the connection was lost and the answer is no longer kept");
      } catch (error) {
        if (signal.aborted || !(error instanceof TypeError)) throw error;
      }
    }
  }
}
