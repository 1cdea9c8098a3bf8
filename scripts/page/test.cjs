// The page in a real browser: node scripts/page/test.cjs URL BROWSER STORE [--screenshot FILE]
// The model, the index, the store at the URL STORE and the votes are real ones. Answers that no small model gives on
// demand (one that breaks off, a stale card, markup in a text, a comparison) are given here instead of by the server, in
// the shapes that docs/assistant.md has.

const assert = require("node:assert/strict");
const { chromium } = require("playwright-core");
const axe = require("axe-core");

const [url, executablePath, store, ...flags] = process.argv.slice(2);
const screenshot = flags[0] === "--screenshot" ? flags[1] : null;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Serious and critical findings of axe on the page as it is. */
async function accessible(page, where) {
  // Of the browser's own kind, past the page's policy: axe is the judge's, not the page's.
  const session = await page.context().newCDPSession(page);
  await session.send("Runtime.evaluate", { expression: axe.source });
  const { result } = await session.send("Runtime.evaluate", {
    expression: "axe.run().then((r) => JSON.stringify(r.violations))", awaitPromise: true, returnByValue: true,
  });
  const serious = JSON.parse(result.value).filter(({ impact }) => impact === "serious" || impact === "critical");
  const told = serious.map(({ id, nodes }) => `${id}: ${nodes.map((n) => `${n.html} ${n.failureSummary}`).join("\n  ")}`);
  assert.deepEqual(told, [], where);
}

/** Keeps what each card looked like whenever its state changed, and how far cards were moved by anything but typing. */
const watch = (page) => page.evaluate(() => {
  window.looks = [];
  window.moved = 0;
  const look = (card) => window.looks.push({
    id: [...document.querySelectorAll(".card")].indexOf(card), kind: card.dataset.kind, state: card.dataset.state,
    bones: card.querySelectorAll(".bone").length, top: card.offsetTop, height: card.offsetHeight,
    price: card.querySelector(".price")?.innerText ?? "",
  });
  new MutationObserver((changes) => new Set(changes.map(({ target }) => target.closest?.(".card[data-state]")).filter(Boolean)).forEach(look))
    .observe(document.querySelector("#turns"), { subtree: true, attributes: true, attributeFilter: ["data-state"], childList: true });
  new PerformanceObserver((list) => list.getEntries().forEach((entry) => {
    if (entry.sources?.some(({ node }) => node?.parentElement?.closest(".card"))) window.moved += entry.value;
  })).observe({ type: "layout-shift" });
});

/** The states that each live card of the watched answers went through; none of them may have changed its place. */
async function lives(page) {
  const { looks, moved } = await page.evaluate(() => ({ looks: window.looks, moved: window.moved }));
  const cards = [...new Set(looks.map(({ id }) => id))].map((id) => looks.filter((look) => look.id === id))
    .filter(([{ kind }]) => ["product", "product_list", "comparison"].includes(kind));
  for (const [first, ...later] of cards) {
    for (const look of later) {
      assert.equal(look.top, first.top, `a ${look.kind} moved as it became ${look.state}`);
      assert.ok(Math.abs(look.height - first.height) < 2, `a ${look.kind} went from ${first.height} to ${look.height} pixels as it became ${look.state}`);
    }
  }
  assert.ok(moved < 0.001, `parts of cards were shifted by ${moved}`);
  return cards;
}

/** Tells the store to be slow. */
async function delay(ms) {
  const response = await fetch(`${store}/faults`, { method: "PUT", body: JSON.stringify({ delay_ms: ms, jitter_ms: 0 }) });
  assert.equal((await response.json()).delay_ms, ms);
}

async function ask(page, question) {
  await page.getByLabel("Your question").fill(question);
  await page.keyboard.press("Enter");
}

const last = (page) => page.locator(".turn").last();
const answered = (page) => last(page).locator("article[aria-busy=false]").waitFor({ timeout: 240_000 });

const event = (value) => `data: ${JSON.stringify(value)}\n\n`;
/** An answer as the server writes it, with the card in the state given. */
function body(card, { end = true, vote = true } = {}) {
  const product = { id: "KP-01", title: "Fjelltun Smed 24 frying pan", brand: "Fjelltun", categories: ["Kitchen"], rating: { value: 4.2, scale_max: 5, count: 5 } };
  const data = { v: 1, slot: 1, rev: 0, kind: "product", ref: { source: "catalog", id: "KP-01" }, deadlineMs: 800 };
  return [
    event({ type: "start", messageId: "msg_test", messageMetadata: { model: "m", sessionId: "s" } }),
    event({ type: "start-step" }),
    event({ type: "data-card", id: "c1", data: { ...data, state: "pending" } }),
    event({ type: "source-document", sourceId: "s1", mediaType: "text/plain", title: "Is it safe?", providerMetadata: { millrace: { source: "qa", docId: "q", quote: "No. <b>Wash</b> by hand." } } }),
    event({ type: "text-start", id: "t1" }), event({ type: "text-delta", id: "t1", delta: "No [1]. <img src=x onerror=alert(1)> [x](//evil.example)" }), event({ type: "text-end", id: "t1" }),
    ...(end ? [
      event({ type: "data-card", id: "c1", data: { ...data, rev: 1, product, ...card } }),
      event({ type: "finish-step" }),
      event({ type: "message-metadata", messageMetadata: { usage: { inputTokens: 9, outputTokens: 9, cachedInputTokens: 0 }, ...(vote && { feedbackToken: "token" }) } }),
      event({ type: "finish" }), "data: [DONE]\n\n",
    ] : []),
  ].join("");
}
const stream = { status: 200, contentType: "text/event-stream", headers: { "x-vercel-ai-ui-message-stream": "v1" } };

async function real(page) {
  await page.goto(url);
  await accessible(page, "the empty page");
  await watch(page);
  await ask(page, "Is the Fjelltun Smed 28 frying pan dishwasher-safe?");
  await page.getByRole("button", { name: "Stop" }).waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.id), "question", "the focus left the composer");
  await answered(page);
  assert.ok((await last(page).locator(".prose").allInnerTexts()).join("").length > 1, "no text");
  assert.equal(await last(page).locator('.card[aria-busy="true"]').count(), 0, "a card is still waiting");
  // Where the text names no product by itself, the server adds the card.
  assert.ok(await last(page).locator('.card[data-state="ready"]:not(.suggested-questions)').count(), "no card became ready");
  const shown = await lives(page);
  for (const looks of shown) {
    // A store that answers at once may be there before the first frame; the slow one below never is.
    assert.ok(looks[0].state === "ready" || looks[0].bones > 0, `no skeleton: ${JSON.stringify(looks[0])}`);
    assert.equal(looks.at(-1).state, "ready");
    if (looks[0].kind !== "comparison") assert.match(looks.at(-1).price, /\d/, "no price");
  }
  console.log(`an answer with ${shown.length} live cards and ${await last(page).locator(".sources li").count()} sources`);
  await last(page).getByText("What happened").click();
  assert.match(await last(page).locator(".panel").innerText(), /First text\s+\d+ ms[^]*Tokens written\s+\d+/);
  await accessible(page, "an answer");
  const text = await last(page).locator(".prose").allInnerTexts();
  // The server's own feedback store: the vote is durable, and a reload asks for it.
  const feedback = (method) => page.waitForResponse((r) => r.url().includes("/v1/feedback") && r.request().method() === method);
  const voted = feedback("PUT");
  await last(page).getByRole("button", { name: "Like this answer", exact: true }).click();
  assert.equal((await voted).status(), 200, "the vote was refused");
  const known = feedback("GET");
  await page.reload();
  assert.equal((await (await known).json()).parts.answer.value, "like", "the server lost the vote");
  assert.deepEqual(await last(page).locator(".prose").allInnerTexts(), text, "a reload changed the answer");

  // Stopped while it runs, and asked again.
  await ask(page, "What do I need for cold weather golf?");
  await page.getByRole("button", { name: "Stop" }).click();
  await last(page).getByText("Stopped.").waitFor();
  await last(page).getByRole("button", { name: "Try again" }).click();
  await answered(page);
  assert.equal(await page.locator(".turn").count(), 2);
  await page.getByRole("button", { name: "New chat" }).click();
  assert.equal(await page.locator(".turn").count(), 0);
  await page.getByRole("button", { name: "History" }).click();
  await page.getByRole("button", { name: /Fjelltun Smed 28/ }).first().click();
  assert.equal(await page.locator(".turn").count(), 2);
}

async function slowStore(page) {
  await delay(5000);
  await page.getByRole("button", { name: "New chat" }).click();
  await watch(page);
  // Products that were never asked for: of the others the store's last word would be shown, as stale.
  let cards = [];
  for (const question of ["Which tent is best for two people?", "Which headphones are good for running?", "Which desk lamp is bright?"]) {
    await ask(page, question);
    await answered(page);
    cards = await lives(page);
    // The model may have shown reviews or a link instead, which need no store.
    if (cards.length) break;
  }
  assert.ok(cards.length, "no answer showed a product");
  for (const looks of cards) {
    assert.ok(["pending", "partial"].includes(looks[0].state) && looks[0].bones > 0, `no skeleton: ${JSON.stringify(looks[0])}`);
    assert.equal(looks.at(-1).state, "unavailable");
  }
  await last(page).getByText("The store did not answer in time").first().waitFor();
  await accessible(page, "a store that does not answer");
  await delay(0);
}

async function brokenOff(page) {
  let release;
  const released = new Promise((resolve) => (release = resolve));
  // First without an end: the page takes the answer up by itself and gets the rest.
  await page.route("**/v1/assist", (route) => route.fulfill({ ...stream, body: `id: msg_test:5\n${body({}, { end: false })}` }));
  await page.route("**/v1/assist/*/stream", async (route) => {
    await released;
    const rest = body({ state: "unavailable", error: { code: "timeout", source: "prices" } });
    await route.fulfill({ ...stream, body: rest.slice(rest.lastIndexOf("data: ", rest.indexOf('"rev":1'))) });
  });
  await page.goto(url);
  await page.getByRole("button", { name: "New chat" }).click();
  await ask(page, "A slow one");
  const card = last(page).locator(".card");
  await card.locator(".bone").first().waitFor();
  const before = await card.boundingBox();
  await accessible(page, "a skeleton");
  release();
  await last(page).getByText("The store did not answer in time").waitFor();
  const after = await card.boundingBox();
  assert.equal(after.y, before.y, "the card moved");
  assert.ok(Math.abs(after.height - before.height) < 2, `the card changed its height from ${before.height} to ${after.height}`);
  assert.equal(await page.locator("#turns img:not(.tile), #turns a[href*=evil]").count(), 0, "a text became markup");
  await last(page).getByRole("button", { name: "Source 1: Community answer" }).click();
  assert.equal(await page.locator("#quote-text").innerText(), "No. <b>Wash</b> by hand.");
  await accessible(page, "a source");
  await page.keyboard.press("Escape");
  await page.unrouteAll();
}

async function votes(page) {
  const sent = [];
  const card = { state: "stale", asOf: "2026-11-22T19:00:00Z", error: { code: "timeout", source: "prices" } };
  await page.route("**/v1/assist", (route) => route.fulfill({ ...stream, body: body(card) }));
  await page.route("**/v1/feedback**", (route) => {
    if (route.request().method() === "GET") {
      assert.equal(route.request().headers()["x-feedback-token"], "token");
      return route.fulfill({ status: 200, json: { messageId: "msg_test", parts: { "card:c1": { value: "dislike", reasons: ["wrong"] } } } });
    }
    sent.push(route.request().postDataJSON());
    return route.fulfill({ status: 200, json: {} });
  });
  await page.getByRole("button", { name: "New chat" }).click();
  await ask(page, "One to vote on");
  await last(page).getByText(/Not current/).waitFor();
  await last(page).getByRole("button", { name: "Like this card", exact: true }).click();
  const dislike = last(page).getByRole("button", { name: "Dislike this answer" });
  await dislike.click();
  await last(page).getByRole("button", { name: "No source says so" }).click();
  await page.waitForFunction(() => document.querySelectorAll(".turn:last-child [aria-pressed=true]").length === 3);
  while (sent.length < 3) await pause(20);
  assert.deepEqual(sent.map(({ part, value, reasons }) => [part, value, reasons]),
    [["card:c1", "like", []], ["answer", "dislike", []], ["answer", "dislike", ["unsupported"]]]);
  await accessible(page, "votes");
  await pause(100);
  await page.reload();
  assert.equal(await dislike.getAttribute("aria-pressed"), "true", "a reload lost the vote");
  // Elsewhere they had changed their mind, and the server knows.
  await page.waitForFunction(() => document.querySelector('.slot [data-value="dislike"][aria-pressed="true"]'));
  assert.equal(await last(page).getByRole("button", { name: "It is wrong" }).first().getAttribute("aria-pressed"), "true");
  await page.unrouteAll();
}

async function key(page) {
  let tries = 0;
  await page.route("**/v1/assist", (route) => {
    tries += 1;
    const known = route.request().headers().authorization === "Bearer secret";
    return route.fulfill(known ? { ...stream, body: body({ state: "ready", asOf: "2026-11-22T19:00:00Z" }, { vote: false }) }
      : { status: 401, json: { error: { message: "one header is needed: Authorization: Bearer KEY" } } });
  });
  await page.getByRole("button", { name: "New chat" }).click();
  await ask(page, "A locked one");
  await page.getByLabel("Key", { exact: true }).fill("secret");
  await accessible(page, "the question for a key");
  await page.getByRole("button", { name: "Use this key" }).click();
  await answered(page);
  assert.equal(tries, 2);
  assert.equal(await last(page).locator(".vote").count(), 0, "votes where none are collected");
  await page.unrouteAll();
}

(async () => {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] }).catch((error) => {
    if (process.env.MILLRACE_REQUIRE_PAGE) throw error;
    console.log(`skipped: ${executablePath} does not start: ${error.message.split("\n")[0]}`);
    process.exit(0);
  });
  const problems = [], outside = [];
  const open = async (options) => {
    const page = await (await browser.newContext(options)).newPage();
    page.on("pageerror", (error) => problems.push(String(error)));
    page.on("console", (message) => message.type() === "error" && !/status of 401/.test(message.text()) && problems.push(message.text()));
    page.on("request", (request) => new URL(request.url()).origin !== new URL(url).origin && outside.push(request.url()));
    return page;
  };
  const page = await open({ viewport: { width: 1100, height: 860 } });
  for (const step of [real, slowStore, brokenOff, votes, key]) {
    const started = Date.now();
    await step(page);
    console.log(`page: ${step.name}, ${((Date.now() - started) / 1000).toFixed(1)} s`);
  }
  console.log("page: phone, dark, without motion");
  const phone = await open({ viewport: { width: 375, height: 740 }, colorScheme: "dark", reducedMotion: "reduce" });
  const row = (attr, ...values) => ({ attr, values });
  const column = (id, title) => ({ ref: { source: "catalog", id }, state: "ready", product: { title } });
  await phone.route("**/v1/assist", (route) => route.fulfill({ ...stream, body: body({
    kind: "comparison", state: "ready", asOf: "2026-11-22T19:00:00Z",
    columns: [column("A", "First of three long titles"), column("B", "Second of three long titles"), column("C", "Third of three long titles")],
    rows: [row("weight_g", "1280", "1690", "860"), row("price", { amount: 3990, currency: "EUR" }, null, { amount: 2790, currency: "EUR" })],
  }) }));
  await phone.goto(url);
  await ask(phone, "Compare them");
  await answered(phone);
  assert.ok(await phone.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "the page scrolls sideways");
  assert.ok(await phone.evaluate(() => { const s = document.querySelector(".scroll"); return s.scrollWidth > s.clientWidth; }), "the table does not scroll");
  await accessible(phone, "a phone in the dark");

  if (screenshot) {
    const shot = await open({ viewport: { width: 1000, height: 900 }, locale: "en-GB" });
    await shot.goto(url);
    await ask(shot, "Which frying pan works on induction and goes in the dishwasher?");
    await answered(shot);
    await shot.evaluate(() => scrollTo(0, 0));
    await pause(400);
    await shot.screenshot({ path: screenshot });
    console.log(`wrote ${screenshot}`);
  }
  await browser.close();
  assert.deepEqual(outside, [], "requests to elsewhere");
  assert.deepEqual(problems, [], "errors in the browser's console");
  console.log("page: all is well");
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
