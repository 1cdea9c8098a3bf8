// Elements without markup: nothing a server or a model says is ever parsed as HTML.

/** An element with attributes, listeners (`onclick`) and children; false and null are left out. */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((child) => child != null && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  up: "M7 11v9H4v-9zM7 11l4-8c1.5 0 2.5 1 2.5 2.5V9H19c1.2 0 2 1 1.8 2.200l-1.300 7c-.2 1-1 1.8-2 1.8H7",
  down: "M17 13V4h3v9zM17 13l-4 8c-1.5 0-2.5-1-2.5-2.5V15H5c-1.2 0-2-1-1.8-2.200l1.300-7c.2-1 1-1.8 2-1.8H17",
  again: "M4 12a8 8 0 1 0 2.5-5.800M4 4v4.5h4.5",
  copy: "M9 9h11v11H9zM15 9V4H4v11h5",
  kitchen: "M3 11h13v2a5 5 0 0 1-5 5H8a5 5 0 0 1-5-5zM16 12l6-3M7 7V5M11 7V4",
  outdoor: "M2 20 11 5l9 15zM8 20l3-5.5 3 5.5",
  sport: "M6 3v18M6 4l11 4-11 4M13 20a5 2 0 1 1-.1 0",
  audio: "M4 15v-2a8 8 0 0 1 16 0v2M4 15h3v5H4zM17 15h3v5h-3z",
  home: "M3 11 12 4l9 7v9h-6v-6H9v6H3z",
  garden: "M12 21v-9M12 12C12 8 9 6 4 6c0 5 3 7 8 6M12 10c0-4 3-6 8-6 0 5-3 7-8 6",
  pets: "M12 12c3 0 5 3 5 5s-2 3-5 3-5-1-5-3 2-5 5-5M6 9v2M10 5v3M14 5v3M18 9v2",
  tools: "M14 6a4 4 0 0 1 5-2l-2.5 2.5 1 2 2 .5L22 6.5a4 4 0 0 1-5.5 4.5L7 20.5 3.5 17 13 8",
  travel: "M5 8h14v12H5zM9 8V4h6v4M9 12v4M15 12v4",
  kids: "M12 8a4 4 0 1 1 .1 0M5 21c0-6 3-9 7-9s7 3 7 9z",
  office: "M3 5h18v11H3zM9 20h6M12 16v4",
  bag: "M5 8h14l1 13H4zM9 8V6a3 3 0 0 1 6 0v2",
};

/** A drawing of ours; decoration only. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", "aria-hidden": "true", class: "icon" }))
    svg.setAttribute(key, value);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name] || ICONS.bag);
  svg.append(path);
  return svg;
}

const KINDS = [
  [/kitchen|cook|coffee/i, "kitchen"],
  [/golf|sport|fitness|cycl|running/i, "sport"],
  [/outdoor|camp|hik/i, "outdoor"],
  [/audio|headphone|speaker|electronic/i, "audio"],
  [/garden|plant/i, "garden"],
  [/pet|dog|cat\b/i, "pets"],
  [/tool|diy|hardware/i, "tools"],
  [/travel|luggage/i, "travel"],
  [/baby|kid|toy|child/i, "kids"],
  [/office|desk|comput/i, "office"],
  [/home|bed|furniture|clean/i, "home"],
];

/** A tile for a product without a picture of the shop's own: what kind of thing it is. */
export function tile(product) {
  const categories = (product.categories || []).join(" ");
  const found = KINDS.find(([pattern]) => pattern.test(categories));
  const media = (product.media || []).find((media) => media.type === "image" && inShop(media.url));
  if (media) return h("img", { class: "tile", src: media.url, alt: media.alt_text || "", loading: "lazy" });
  return h("div", { class: `tile ${found ? found[1] : "bag"}`, "aria-hidden": "true" }, icon(found ? found[1] : "bag"));
}

/** Whether an address stays in the shop. */
export function inShop(url) {
  return typeof url === "string" && /^\/(?![/\\])/.test(url);
}

/** Money in minor units of its currency, as people write it. */
export function money({ amount, currency }) {
  try {
    const format = new Intl.NumberFormat(undefined, { style: "currency", currency });
    return format.format(amount / 10 ** format.resolvedOptions().maximumFractionDigits);
  } catch {
    return `${amount} ${currency}`;
  }
}

export function clock(iso) {
  const at = new Date(iso);
  if (Number.isNaN(at.getTime())) return "";
  const today = at.toDateString() === new Date().toDateString();
  const time = { hour: "2-digit", minute: "2-digit" };
  return at.toLocaleString(undefined, today ? time : { ...time, day: "numeric", month: "short" });
}

export function day(iso) {
  const at = new Date(`${iso}T12:00:00`);
  if (Number.isNaN(at.getTime())) return String(iso);
  return at.toLocaleDateString(undefined, { weekday: "short", day: "numeric", month: "short" });
}

/** `out_of_stock` → `Out of stock`. */
export function words(name) {
  const text = String(name).replaceAll("_", " ").trim();
  return text.charAt(0).toUpperCase() + text.slice(1);
}
