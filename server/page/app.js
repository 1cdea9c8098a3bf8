// The page: asks, shows answers as they are written, and remembers conversations.

import { apply, blank, close, view } from "./answer.js";
import { h } from "./dom.js";
import * as history from "./history.js";
import { ask, Refused, useKey } from "./stream.js";
import { observed, onVote, recall } from "./votes.js";

const STARTERS = [
  "What do I need for cold weather golf?",
  "Is the carbon steel pan dishwasher-safe?",
  "Which headphones are good for long flights?",
  "Can I return an opened item?",
];
const $ = (id) => document.getElementById(id);
const [turns, welcome, input, status] = ["turns", "welcome", "question", "status"].map($);

let conversation;
/** The answer that is being written. */
let running = null;

/** Says something to those who do not see the page: once, not with every token. */
function say(text) {
  status.textContent = text;
}

function show(next) {
  running?.abort.abort();
  conversation = next;
  sessionStorage.setItem("millrace.current", conversation.id);
  turns.replaceChildren();
  for (const turn of conversation.turns) {
    close(turn);
    turns.append(draw(turn).element);
    recall(turn);
  }
  welcome.hidden = conversation.turns.length > 0;
  window.scrollTo(0, conversation.turns.length ? document.body.scrollHeight : 0);
}

function draw(turn) {
  return view(turn, {
    ask: submit,
    again: () => again(turn),
    quote: quote,
    copy: (turn, button) => copy(turn, button),
  });
}

/** What the server needs to answer, also where it no longer remembers the conversation. */
function request(turn, trigger) {
  const messages = [];
  const message = (role, text) => messages.push({ id: `${messages.length}`, role, parts: [{ type: "text", text }] });
  for (const earlier of conversation.turns) {
    if (earlier === turn) break;
    if (earlier.error) continue;
    message("user", earlier.question);
    message("assistant", earlier.parts.filter((part) => part.text).map((part) => part.value).join("\n"));
  }
  message("user", turn.question);
  return { id: conversation.id, messages, trigger, locale: navigator.language || "en" };
}

async function submit(text) {
  const question = text.trim();
  if (!question) return;
  await stop();
  const turn = blank(question);
  const drawn = draw(turn);
  turns.append(drawn.element);
  welcome.hidden = true;
  input.value = "";
  grow();
  input.focus();
  conversation.turns.push(turn);
  await answer(turn, drawn, "submit-message");
}

async function again(turn) {
  await stop();
  const last = conversation.turns.at(-1);
  if (turn !== last) return submit(turn.question);
  const failed = turn.error || turn.stopped;
  observed(turn, { regenerated: true });
  const fresh = blank(turn.question);
  const drawn = draw(fresh);
  turns.lastElementChild.replaceWith(drawn.element);
  conversation.turns[conversation.turns.length - 1] = fresh;
  input.focus();
  // What failed is not in the server's memory, so there is nothing to replace.
  await answer(fresh, drawn, failed ? "submit-message" : "regenerate-message");
}

async function answer(turn, drawn, trigger) {
  const abort = new AbortController();
  let ended;
  running = { abort, ended: new Promise((resolve) => (ended = resolve)) };
  const mine = running;
  $("stop").hidden = false;
  $("send").hidden = true;
  say("Looking for an answer");
  const follow = near();
  drawn.element.scrollIntoView({ block: follow ? "start" : "nearest", behavior: calm() ? "auto" : "smooth" });
  let frame = 0;
  const later = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      drawn.update();
    });
  };
  const [body, asked] = [request(turn, trigger), conversation];
  try {
    for (;;) {
      try {
        await ask(body, abort.signal, (event) => {
          apply(turn, event);
          later();
        });
        break;
      } catch (error) {
        if (!(error instanceof Refused) || error.status !== 401 || !(await askKey(error.message))) throw error;
      }
    }
  } catch (error) {
    if (abort.signal.aborted) turn.stopped = true;
    else turn.error = error.message;
  }
  cancelAnimationFrame(frame);
  close(turn);
  drawn.update();
  history.keep(asked);
  if (running === mine) {
    running = null;
    $("stop").hidden = true;
    $("send").hidden = false;
  }
  say(turn.error ? `The answer failed: ${turn.error}` : turn.stopped ? "Stopped" : "The answer is complete");
  ended();
}

async function stop() {
  if (!running) return;
  running.abort.abort();
  await running.ended;
}

const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const near = () => document.documentElement.scrollHeight - scrollY - innerHeight < 200;

function askKey(why) {
  const dialog = $("key-dialog");
  $("key-text").textContent = `${why}. The key stays in this tab.`;
  $("key").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "use");
    $("key-form").onsubmit = () => {
      useKey($("key").value);
      dialog.returnValue = "use";
    };
    dialog.returnValue = "";
    $("key-cancel").onclick = () => dialog.close("");
  });
}

function quote(source, number, kinds) {
  $("quote-kind").textContent = `Source ${number} · ${kinds[source.source] || source.source || ""}`;
  $("quote-title").textContent = source.title || "";
  $("quote-text").textContent = source.quote || "";
  $("quote-product").textContent = source.product ? `Of product ${source.product}` : "";
  $("quote-dialog").showModal();
}

async function copy(turn, button) {
  const text = turn.parts.filter((part) => part.text).map((part) => part.value.trim()).join("\n\n");
  try {
    await navigator.clipboard.writeText(text);
    say("Copied");
    observed(turn, { copied: true });
    button.classList.add("did");
    setTimeout(() => button.classList.remove("did"), 1500);
  } catch {
    say("The browser did not allow copying");
  }
}

function grow() {
  input.style.height = "auto";
  input.style.height = `${Math.min(input.scrollHeight, 200)}px`;
}

function showHistory(open) {
  const panel = $("history");
  panel.hidden = !open;
  $("history-button").setAttribute("aria-expanded", String(open));
  if (!open) return;
  const list = history.all();
  const entry = (kept) => h("li", {},
    h("button", { type: "button", class: "quiet wide", "aria-current": kept.id === conversation.id ? "true" : null,
      onclick: () => { showHistory(false); show(kept); input.focus(); } },
      h("span", {}, kept.turns[0]?.question || "Empty"),
      h("small", {}, new Date(kept.at).toLocaleString(undefined, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" }))),
    h("button", { type: "button", class: "quiet", "aria-label": `Forget: ${kept.turns[0]?.question}`,
      onclick: () => { history.forget(kept.id); if (kept.id === conversation.id) show(history.begin()); showHistory(true); } }, "✕"));
  panel.replaceChildren(
    h("h2", {}, "Earlier conversations"),
    list.length ? h("ul", {}, list.map(entry)) : h("p", { class: "small" }, "None yet. They are kept in this browser only."),
    list.length > 1 ? h("button", { type: "button", class: "quiet", onclick: () => { history.forget(); show(history.begin()); showHistory(true); } }, "Forget all") : "");
}

$("starters").append(...STARTERS.map((text) => h("li", {}, h("button", { type: "button", class: "chip", onclick: () => submit(text) }, text))));
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit(input.value);
});
input.addEventListener("keydown", (event) => {
  // Not while an input method composes a word.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit(input.value);
});
input.addEventListener("input", grow);
$("stop").addEventListener("click", () => {
  stop();
  input.focus();
});
$("new").addEventListener("click", () => {
  showHistory(false);
  show(history.begin());
  input.focus();
});
$("history-button").addEventListener("click", () => showHistory($("history").hidden));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (!$("history").hidden) {
    showHistory(false);
    $("history-button").focus();
  } else stop();
});
onVote(() => history.keep(conversation));

const current = sessionStorage.getItem("millrace.current");
show(history.all().find(({ id }) => id === current) || history.begin());
