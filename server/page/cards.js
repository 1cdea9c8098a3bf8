// Cards: what an answer shows beside its text. Each is drawn at its final size at once and filled where it stands, so
// that nothing moves when live data comes.

import { clock, day, h, inShop, money, tile, words } from "./dom.js";

const ERRORS = {
  timeout: "The store did not answer in time",
  unreachable: "The store cannot be reached",
  refused: "The store refused the request",
  not_found: "The store does not know this item",
  overloaded: "The store is busy",
  invalid: "The store's answer could not be read",
  not_allowed: "This page is outside the shop",
  aborted: "The answer was stopped",
};

const bone = (size) => h("span", { class: `bone ${size}`, "aria-hidden": "true" });
const waiting = (state) => state === "pending" || state === "partial";

/** Draws a card anew into its element. `tell` is told of a suggested question or an opened product. */
export function draw(element, card, tell) {
  const kind = card.kind.replaceAll("_", "-");
  element.className = `card ${kind} ${card.state} ${card.layout || ""}`.trim();
  element.setAttribute("aria-busy", String(waiting(card.state)));
  element.dataset.state = card.state;
  element.dataset.kind = card.kind;
  const body = { product, product_list, comparison, review_summary, navigation, order_status, suggested_questions }[card.kind];
  // What this page does not know yet, a newer server's kind, leaves no gap.
  element.hidden = !body;
  if (body) element.replaceChildren(...[body(card, tell)].flat(), ...note(card));
}

/** Why live data is old or missing, and when it was true. */
function note(card) {
  if (card.kind === "suggested_questions" || card.kind === "review_summary") return [];
  if (card.state === "unavailable") return [h("p", { class: "note bad" }, why(card))];
  if (card.state === "stale") return [h("p", { class: "note old" }, `Not current: ${lower(why(card))}. As of ${clock(card.asOf)}.`)];
  if (card.kind === "navigation") return [];
  if (card.state === "ready" && card.asOf) return [h("p", { class: "note" }, `Price and stock as of ${clock(card.asOf)}`)];
  if (waiting(card.state)) return [h("p", { class: "note" }, "Asking the store…")];
  return [h("p", { class: "note" })];
}

const why = (card) => ERRORS[card.error?.code] || "Live data could not be had";
const lower = (text) => text.charAt(0).toLowerCase() + text.slice(1);

function stars(rating) {
  if (!rating) return h("span", { class: "stars" });
  const scale = rating.scale_max || 5;
  const text = `${Number(rating.value).toFixed(1)} of ${scale}`;
  const full = Math.round((rating.value / scale) * 5);
  return h("span", { class: "stars", role: "img", "aria-label": `Rated ${text}` },
    h("span", { "aria-hidden": "true" }, "★".repeat(full), h("i", {}, "★".repeat(5 - full))),
    h("span", { "aria-hidden": "true", class: "count" }, rating.count == null ? text : `${Number(rating.value).toFixed(1)} (${rating.count})`));
}

/** Price, stock and delivery: live, so each has a place from the start. */
function live(product, state) {
  const { price, availability, delivery } = product;
  const missing = (size) => (waiting(state) ? bone(size) : h("span", { class: "none" }, "–"));
  let stock = null;
  if (availability) {
    const few = availability.available && availability.quantity > 0 && availability.quantity <= 5;
    const text = few ? `Only ${availability.quantity} left` : words(availability.status || (availability.available ? "in stock" : "out of stock"));
    stock = h("span", { class: availability.available ? (few ? "few" : "in") : "out" }, text);
  }
  const coming = delivery?.earliest
    ? `Delivery ${day(delivery.earliest)}${delivery.latest && delivery.latest !== delivery.earliest ? ` – ${day(delivery.latest)}` : ""}`
    : availability && !waiting(state) ? "No delivery date" : null;
  return h("div", { class: "live" },
    h("p", { class: "price" }, price ? money(price) : missing("short"), " ", stock || (waiting(state) && price ? bone("short") : null)),
    h("p", { class: "small" }, coming || missing("medium")));
}

function name(product, ref) {
  const title = product.title || ref.id;
  return inShop(product.url) ? h("a", { href: product.url, "data-ref": ref.id }, title) : title;
}

function details(product, full) {
  const attributes = Object.entries(product.attributes || {});
  if (!product.description && !attributes.length) return null;
  return h("details", { open: full },
    h("summary", {}, "Details"),
    product.description && h("p", {}, product.description),
    attributes.length > 0 && h("dl", {}, attributes.slice(0, 12).map(([key, value]) => [h("dt", {}, words(key)), h("dd", {}, String(value))])));
}

function product(card) {
  return [item({ ref: card.ref, product: card.product || {}, state: card.state }), card.layout === "compact" ? null : details(card.product || {}, card.layout === "full")].filter(Boolean);
}

function item({ ref, product = {}, state }) {
  const named = product.title || !waiting(state);
  return h("div", { class: "item", "data-state": state },
    named ? tile(product) : h("div", { class: "tile bone", "aria-hidden": "true" }),
    h("div", { class: "facts" },
      h("h3", {}, named ? name(product, ref) : [bone("long"), h("span", { class: "hidden" }, "Product is loading")]),
      h("p", { class: "small by" }, named ? [product.brand && h("span", {}, product.brand), stars(product.rating)] : bone("medium")),
      live(product, state)));
}

function product_list(card) {
  return h("ul", { class: "items", tabindex: card.layout === "carousel" ? "0" : null, "aria-label": "Products" },
    card.items.map((entry) => h("li", {}, item(entry))));
}

function cell(attr, value) {
  if (value == null) return "–";
  if (attr === "price" && value.currency) return money(value);
  if (attr === "availability" && typeof value === "object") return words(value.status || (value.available ? "in stock" : "out of stock"));
  if (attr === "delivery" && value.earliest) return day(value.earliest);
  if (attr === "rating" && value.value != null) return `${value.value} of ${value.scale_max || 5}`;
  if (typeof value === "object") return Array.isArray(value) ? value.join(", ") : Object.values(value).join(" ");
  return String(value);
}

function comparison(card) {
  // Until it is known what is compared: as many lines as most comparisons have.
  const rows = card.rows.length ? card.rows : waiting(card.state) ? Array(4).fill(null) : [];
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Comparison of products" },
    h("table", {},
      h("thead", {}, h("tr", {}, h("td", {}), card.columns.map(({ ref, product = {}, state }) =>
        h("th", { scope: "col" }, product.title || !waiting(state) ? name(product, ref) : [bone("long"), h("span", { class: "hidden" }, "loading")])))),
      h("tbody", {}, rows.map((row) => h("tr", {},
        h("th", { scope: "row" }, row ? words(row.attr) : [bone("short"), h("span", { class: "hidden" }, "loading")]),
        card.columns.map((column, i) => h("td", {}, !row || (row.values[i] == null && waiting(column.state)) ? bone("short") : cell(row.attr, row.values[i]))))))));
}

function review_summary(card) {
  if (waiting(card.state)) return [h("h3", {}, "What customers say"), h("p", {}, bone("long")), h("p", {}, bone("medium")), h("p", {}, bone("medium"))];
  if (!card.count) return [h("h3", {}, "What customers say"), h("p", {}, "There are no reviews of this product.")];
  const most = Math.max(1, ...(card.histogram || []));
  return [
    h("h3", {}, "What customers say"),
    h("p", { class: "by" }, stars({ value: card.rating || 0, scale_max: 5, count: card.count })),
    h("table", { class: "histogram" },
      h("caption", { class: "hidden" }, "Reviews by stars"),
      h("tbody", {}, (card.histogram || []).map((count, i) => [count, i + 1]).reverse().map(([count, of]) => h("tr", {},
        h("th", { scope: "row" }, `${of} ★`),
        h("td", {}, h("meter", { min: "0", max: String(most), value: String(count), "aria-label": `${of} stars` })),
        h("td", {}, String(count)))))),
    h("ul", { class: "aspects" }, (card.aspects || []).map((aspect) => h("li", {},
      h("b", {}, words(aspect.name)), ` ${aspect.positive} pleased, ${aspect.negative} not`,
      (aspect.quotes || []).map((quote) => h("q", {}, quote.text)))))];
}

function navigation(card) {
  if (waiting(card.state)) return h("p", {}, bone("medium"));
  if (card.href && inShop(card.href)) return h("p", {}, h("a", { class: "button", href: card.href, "data-ref": card.ref.id }, card.label || "Open"));
  // To a host the operator allows: the reader sees where it leads.
  if (card.href && /^https:\/\//.test(card.href)) {
    const host = new URL(card.href).host;
    return h("p", {}, h("a", { class: "button", href: card.href, rel: "noopener noreferrer", "data-ref": card.ref.id }, `${card.label || "Open"} (${host})`));
  }
  return h("p", {}, card.label || card.ref.id);
}

function order_status(card) {
  const order = card.order || {};
  const steps = ["processing", "shipped", "out_for_delivery", "delivered"];
  const at = steps.indexOf(order.status);
  return [
    h("h3", {}, card.ref ? `Order ${card.ref.id}` : "Your order"),
    waiting(card.state) ? h("p", {}, bone("long"))
      : order.status ? h("ol", { class: "steps" }, steps.map((step, i) => h("li", { class: i <= at ? "done" : "", "aria-current": i === at ? "step" : null }, words(step))))
      : h("p", {}, "Its status is not known."),
    order.expected ? h("p", {}, `${order.status === "delivered" ? "Delivered" : "Expected"} ${day(order.expected)}`) : null,
  ].filter(Boolean);
}

function suggested_questions(card, tell) {
  return [h("h3", { class: "small" }, "Others asked"),
    h("ul", { class: "chips" }, card.questions.map((question) =>
      h("li", {}, h("button", { type: "button", class: "chip", onclick: () => tell(question) }, question))))];
}
