// One answer: how its events change it, and how it is drawn. What is kept of it is plain data, so that it can be drawn
// again after a reload.

import { draw } from "./cards.js";
import { h, icon, inShop } from "./dom.js";
import { observed, voting } from "./votes.js";

const KINDS = {
  review: "Customer review", qa: "Community answer", attribute: "Specification", bullet: "Product highlight",
  description: "Description", policy: "Store policy",
};
const VOTED = ["product", "product_list", "comparison", "review_summary"];

export function blank(question) {
  return { question, parts: [], cards: {}, sources: {}, plan: null, metadata: {}, error: null, done: false, stopped: false };
}

/** What an event of the stream changes. */
export function apply(turn, event) {
  switch (event.type) {
    case "start":
    case "message-metadata":
      if (event.messageId) turn.id = event.messageId;
      Object.assign(turn.metadata, event.messageMetadata);
      break;
    case "data-plan":
      turn.plan = event.data;
      break;
    case "text-start":
      turn.parts.push({ text: event.id, value: "" });
      break;
    case "text-delta": {
      const part = turn.parts.find((part) => part.text === event.id);
      if (part) part.value += event.delta;
      break;
    }
    case "source-document": {
      const { millrace } = event.providerMetadata || {};
      turn.sources[event.sourceId.slice(1)] = { title: event.title, ...millrace };
      break;
    }
    case "data-card":
      if (!turn.cards[event.id]) turn.parts.push({ card: event.id });
      turn.cards[event.id] = event.data;
      break;
    case "error":
      turn.error = event.errorText;
      break;
    case "abort":
      turn.stopped = true;
      break;
  }
}

/** The end, however it came: no card waits for ever. */
export function close(turn) {
  turn.done = true;
  for (const card of Object.values(turn.cards)) {
    if (card.state === "pending" || card.state === "partial") {
      card.state = "unavailable";
      card.error ??= { code: "aborted" };
    }
  }
}

/** Bold, links within the shop, citations. */
function inline(text, turn, open) {
  const out = [];
  let from = 0;
  for (const match of text.matchAll(/\[(\d{1,3})\]|\*\*([^*\n]+)\*\*|\[([^\]\n]+)\]\(([^()\s]+)\)/g)) {
    const [all, number, bold, label, href] = match;
    if (match.index > from) out.push(text.slice(from, match.index));
    from = match.index + all.length;
    const source = number && turn.sources[number];
    if (source) {
      const name = `Source ${number}: ${KINDS[source.source] || "source"}`;
      out.push(h("button", { type: "button", class: "cite", "aria-label": name, title: name, onclick: () => open(number) }, number));
    } else if (bold) out.push(h("strong", {}, bold));
    else if (href && inShop(href)) out.push(h("a", { href }, label));
    else out.push(label ?? all);
  }
  out.push(text.slice(from));
  return out;
}

/** Paragraphs and lists. */
function prose(text, turn, open) {
  const blocks = text.trim().split(/\n\s*\n/).filter(Boolean);
  return blocks.map((block) => {
    const lines = block.split("\n");
    const item = /^\s*(?:[-*•]|\d{1,2}[.)])\s+/;
    if (lines.every((line) => item.test(line))) {
      const ordered = /^\s*\d/.test(lines[0]);
      return h(ordered ? "ol" : "ul", {}, lines.map((line) => h("li", {}, inline(line.replace(item, ""), turn, open))));
    }
    return h("p", {}, lines.map((line, i) => [i > 0 && h("br"), inline(line, turn, open)]));
  });
}

/** Draws a turn, and again whatever of it has changed when `update` is called. */
export function view(turn, actions) {
  const open = (number) => actions.quote(turn.sources[number], number, KINDS);
  const body = h("div", { class: "body" });
  const sources = h("ol", { class: "sources", "aria-label": "Sources" });
  const foot = h("div", { class: "foot" });
  const panel = h("div", { class: "panel" });
  const happened = h("details", { class: "happened" }, h("summary", {}, "What happened"), panel);
  const article = h("article", { class: "answer", "aria-label": "Answer", "aria-busy": "true" }, body, sources, foot, happened);
  const element = h("section", { class: "turn" }, h("h2", { class: "question" }, h("span", { class: "hidden" }, "You asked: "), turn.question), article);
  body.addEventListener("click", (event) => {
    const { ref } = event.target.closest?.("a[data-ref]")?.dataset || {};
    if (ref) observed(turn, { clickedRefs: [ref] });
  });
  const drawn = new Map();
  const thinking = h("p", { class: "thinking", "aria-hidden": "true" }, h("i"), h("i"), h("i"));

  function part(key, make) {
    if (!drawn.has(key)) {
      drawn.set(key, { element: make(), as: null });
      body.append(drawn.get(key).element);
    }
    return drawn.get(key);
  }

  function update() {
    for (const entry of turn.parts) {
      if (entry.text) {
        const known = part(entry.text, () => h("div", { class: "prose" }));
        const cited = Object.keys(turn.sources).length;
        if (known.as !== `${cited}:${entry.value}`) {
          known.as = `${cited}:${entry.value}`;
          known.element.replaceChildren(...prose(entry.value, turn, open));
        }
        continue;
      }
      const card = turn.cards[entry.card];
      const known = part(entry.card, () => h("div", { class: "slot" }, h("div")));
      const as = JSON.stringify(card);
      if (known.as === as) continue;
      known.as = as;
      draw(known.element.firstChild, card, actions.ask);
    }
    if (turn.done || turn.parts.some((part) => part.card || part.value)) thinking.remove();
    else body.append(thinking);
    article.setAttribute("aria-busy", String(!turn.done));
    const numbers = Object.keys(turn.sources);
    if (sources.childElementCount !== numbers.length) {
      sources.replaceChildren(...numbers.map((number) => {
        const { source, title } = turn.sources[number];
        return h("li", {}, h("button", { type: "button", class: "source", onclick: () => open(number) },
          h("b", {}, number), h("span", {}, KINDS[source] || "Source"), h("span", { class: "title" }, title)));
      }));
    }
    if (turn.done) end();
  }

  function end() {
    const metadata = turn.metadata;
    const cited = metadata.grounding;
    const cut = metadata.finishReason === "length";
    foot.replaceChildren(...[
      turn.error && h("p", { class: "note bad", role: "alert" }, `This answer failed: ${turn.error}`),
      turn.stopped && h("p", { class: "note old" }, "Stopped."),
      cut && h("p", { class: "note old" }, "The answer was longer than it may be, and was cut."),
      !turn.error && !turn.stopped && !turn.parts.length && h("p", { class: "note old" }, "The model wrote nothing."),
      cited?.total > 0 && h("p", { class: "note" }, `${cited.supported} of ${cited.total} sentences stand in a source that they name`),
      h("div", { class: "row" },
        voting(turn, "answer"),
        h("button", { type: "button", class: "quiet tool", onclick: actions.again }, icon("again"), turn.error || turn.stopped ? "Try again" : "Ask again"),
        h("button", { type: "button", class: "quiet tool", onclick: (event) => actions.copy(turn, event.currentTarget) }, icon("copy"), "Copy")),
    ].filter(Boolean));
    for (const entry of turn.parts) {
      const slot = entry.card && drawn.get(entry.card)?.element;
      if (slot && slot.childElementCount === 1 && VOTED.includes(turn.cards[entry.card].kind)) {
        slot.append(voting(turn, entry.card) || "");
      }
    }
    panel.replaceChildren(...report(turn));
  }

  update();
  return { element, update };
}

/** For engineers: what was asked, how long it took, how many tokens. */
function report(turn) {
  const { usage = {}, timings = {}, cards = {}, dropped = {}, model, traceId, answerCached } = turn.metadata;
  const ms = (value) => (value == null ? "–" : `${value} ms`);
  const writing = timings.totalMs - timings.firstTextMs;
  const rows = [
    ["Model", model], ["Trace", traceId],
    ["Evidence found after", ms(timings.retrievalMs)], ["First text", ms(timings.firstTextMs)],
    ["First card", ms(timings.firstCardMs)], ["Last live data", ms(timings.lastHydrationMs)], ["Whole answer", ms(timings.totalMs)],
    ["Tokens read", usage.inputTokens != null && `${usage.inputTokens}, of them ${usage.cachedInputTokens} from the cache`],
    ["Tokens written", answerCached ? "none: answered from the cache" : usage.outputTokens],
    // The first token belongs to the time before the first text.
    ["Speed", !answerCached && usage.outputTokens > 1 && writing > 0 && `${((usage.outputTokens - 1) / (writing / 1000)).toFixed(1)} tokens/s`],
    ["Cards", cards.ready != null && `${cards.ready} ready, ${cards.stale} stale, ${cards.unavailable} unavailable`],
    ["Left out", Object.entries(dropped).filter(([, count]) => count > 0).map(([kind, count]) => `${count} ${kind}`).join(", ") || null],
  ].filter(([, value]) => value != null && value !== false);
  const plan = turn.plan?.sources || [];
  return [
    plan.length > 0 && h("ul", { class: "plan", "aria-label": "Sources asked" }, plan.map(({ id, state, passages }) =>
      h("li", { class: state }, h("b", {}, id), ` ${state}${passages == null ? "" : `, ${passages} passages`}`))),
    h("dl", {}, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))])),
  ].filter(Boolean);
}
