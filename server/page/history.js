// Conversations, kept in this browser and nowhere else.

const KEY = "millrace.conversations";
const MOST = 20;

/** All that are kept, the latest first. */
export function all() {
  try {
    const list = JSON.parse(localStorage.getItem(KEY));
    return Array.isArray(list) ? list.filter((c) => c && typeof c.id === "string" && Array.isArray(c.turns)) : [];
  } catch {
    return [];
  }
}

/** Keeps a conversation, and drops the oldest where there is no room. */
export function keep(conversation) {
  let list = [conversation, ...all().filter(({ id }) => id !== conversation.id)].slice(0, MOST);
  for (; list.length; list = list.slice(0, -1)) {
    try {
      localStorage.setItem(KEY, JSON.stringify(list));
      return;
    } catch {
      // Full: with one less it may fit.
    }
  }
}

/** Forgets one, or all. */
export function forget(id) {
  try {
    localStorage.setItem(KEY, JSON.stringify(id ? all().filter((c) => c.id !== id) : []));
  } catch {
    // Storage is switched off: nothing was kept.
  }
}

/** A new one. Its id opens the server's memory of it, so it is drawn at random. */
export function begin() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const id = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, at: Date.now(), turns: [] };
}
