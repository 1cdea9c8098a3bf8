// Likes and dislikes, of a whole answer or of one of its cards, with reasons. The server keeps them where it collects
// feedback: an answer then carries a token that authorises votes on it.

import { h, icon } from "./dom.js";
import { call } from "./stream.js";

const REASONS = {
  wrong: "It is wrong", unsupported: "No source says so", irrelevant: "Not what I asked", too_long: "Too long",
  unsafe: "Unsafe", other: "Something else",
};

let changed = () => {};
/** Calls `listener` with a turn whose votes have changed. */
export function onVote(listener) {
  changed = listener;
}

function send(turn, body) {
  const { feedbackToken } = turn.metadata;
  return call("/v1/feedback", { method: "PUT", body: JSON.stringify({ messageId: turn.id, feedbackToken, ...body }) });
}

const name = (part) => (part === "answer" ? part : `card:${part}`);

/** Tells what was done with an answer: `copied`, `regenerated`, `clickedRefs`. Nothing is lost if it does not arrive. */
export function observed(turn, implicit) {
  if (turn.metadata.feedbackToken) send(turn, { implicit }).catch(() => {});
}

/** How each group of buttons is shown again, by turn. */
const groups = new WeakMap();

/** Asks the server for the votes on an answer: they may have been given elsewhere. */
export async function recall(turn) {
  const { feedbackToken } = turn.metadata;
  if (!feedbackToken || !turn.id) return;
  try {
    const path = `/v1/feedback?messageId=${encodeURIComponent(turn.id)}`;
    const { parts } = await (await call(path, { headers: { "X-Feedback-Token": feedbackToken } })).json();
    for (const [key, { value, reasons }] of Object.entries(parts || {})) {
      if (value) turn.votes = { ...turn.votes, [key.replace("card:", "")]: { value, reasons: reasons || [] } };
    }
    for (const show of groups.get(turn) || []) show();
  } catch {
    // The browser's own memory of them stands.
  }
}

/** Buttons for a vote on a part of an answer; null where the server collects none. */
export function voting(turn, part) {
  if (!turn.metadata.feedbackToken) return null;
  const vote = () => turn.votes?.[part] || { value: "none", reasons: [] };
  const of = part === "answer" ? "this answer" : "this card";
  const problem = h("span", { class: "note bad", role: "status" });
  const reasons = h("div", { class: "reasons", role: "group", "aria-label": "What is wrong with it?" });
  const button = (value, drawing, label) => h("button", {
    type: "button", class: "vote", "aria-pressed": "false", "aria-label": `${label} ${of}`, title: `${label} ${of}`, "data-value": value,
    onclick: () => set({ value: vote().value === value ? "none" : value, reasons: [] }),
  }, icon(drawing));
  const buttons = [button("like", "up", "Like"), button("dislike", "down", "Dislike")];
  const group = h("div", { class: "votes", role: "group", "aria-label": `Vote on ${of}` }, buttons, reasons, problem);

  function show() {
    const { value, reasons: given } = vote();
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.value === value));
    // Chips stay the same elements: who has the focus keeps it.
    reasons.hidden = value !== "dislike";
    if (!reasons.hidden && !reasons.childElementCount) {
      reasons.append(...Object.entries(REASONS).map(([reason, text]) => h("button", {
        type: "button", class: "chip", "data-reason": reason, "aria-pressed": "false",
        onclick: () => {
          const { reasons: given } = vote();
          set({ value: "dislike", reasons: given.includes(reason) ? given.filter((r) => r !== reason) : [...given, reason] });
        },
      }, text)));
    }
    for (const chip of reasons.children) chip.setAttribute("aria-pressed", String(given.includes(chip.dataset.reason)));
  }

  let queue = Promise.resolve();
  function set(next) {
    const before = vote();
    turn.votes = { ...turn.votes, [part]: next };
    problem.textContent = "";
    show();
    // One after the other: the last vote counts.
    queue = queue.then(() => send(turn, { part: name(part), ...next })).then(
      () => changed(turn),
      (error) => {
        if (vote() === next) turn.votes = { ...turn.votes, [part]: before };
        show();
        problem.textContent = `Your vote was not kept: ${error.message}`;
      });
  }

  show();
  if (!groups.has(turn)) groups.set(turn, []);
  groups.get(turn).push(show);
  return group;
}
