// The view "connect": how to set up clients for this server, what they send, and what the keys have used.

import { base, get, key, send } from "./api.js";
import { announce, button, copy, field, fill, h, name, plain, select } from "./dom.js";
import { replay } from "./replay.js";
import { app, connect as text } from "./texts.js";
import { usage } from "./usage.js";

const CONTEXT = 32768; // of a model that is not loaded and whose entry names none

// What the documentation of clients has in place of the address, the model, the key and the tokens of the model's context.
const EXAMPLES = /(http:\/\/127\.0\.0\.1:8000)|(qwen2\.5-coder:[\w.-]+)|\b(none)\b|\b(32768)\b/g;

/** Return the set-ups of that page: each has the `name` of its clients and `steps`, of which every second one is code. */
async function setupsOfClients() {
  const page = await (await send("GET", "/page/clients.md")).text();
  const [section] = page.split("\n## Set-ups\n")[1].split("\n## ");
  return section.split("\n### ").slice(1).map((setup) => {
    const [heading, ...lines] = setup.split("\n");
    return { name: heading, steps: lines.join("\n").split(/^```(?:\w+\n)?/m) };
  });
}

const replayed = (client) => (client === "curl" ? [] : client.split(" and "));

export async function open(root, page, argument) {
  const [setups, info] = await Promise.all([setupsOfClients(), get("/system/info")]);
  const closing = new AbortController();
  const best = info.public_url ?? base;
  const address = select(best === base ? [base] : [base, [best, text.public(best)]], best, { onchange: show });
  const model = h("select", { onchange: show });
  const keyLine = h("div", { class: "key" });
  const clients = h("nav", { "aria-label": text.clients });
  const place = h("section", { class: "setup" });
  const replays = new Map(); // by client: they stay while other clients are shown
  let cards = [];
  let keyShown = false;
  let client = setups[0];

  async function read() {
    cards = (await get("/v1/models")).data;
    const chosen = model.value;
    fill(model, cards.map((each) => h("option", { value: each.id, selected: each.id === chosen }, plain(each.id))));
    if (!cards.length) fill(model, h("option", { value: "any" }, text.noModel));
    keyShown = false;
    show();
  }

  const chosenModel = () => (cards.length ? model.value : undefined);

  function filled(template, withKey) {
    const card = cards.find((each) => each.id === model.value);
    const real = withKey && key.get();
    const keyText = real || (page.access?.key_required ? text.hidden : "none");
    const values = [address.value, model.value, keyText, card?.context_length ?? CONTEXT];
    return template.replace(EXAMPLES, (_, ...examples) => values[examples.findIndex(Boolean)]);
  }

  function show() {
    showKey();
    const to = (each) => `#/connect/${encodeURIComponent(each.name)}`;
    fill(clients, setups.map((each) => h("a", { href: to(each), "aria-current": each === client && "page" }, each.name)));
    const steps = client.steps.map((step, at) => (at % 2 ? block(step) : prose(step)));
    const found = replayed(client.name);
    if (found.length && !replays.has(client)) replays.set(client, replay(found, chosenModel, closing.signal));
    fill(place, h("h2", {}, text.setup(client.name)), steps, replays.get(client));
  }

  function showKey() {
    const toggle = button(keyShown ? text.hide : text.show, () => {
      keyShown = !keyShown;
      show();
      keyLine.querySelector("button").focus();
    });
    fill(keyLine, h("span", { class: "label" }, `${text.key}:`), key.get()
      ? [keyShown ? h("code", {}, plain(key.get())) : name(text.keyOf(page.access?.key ?? text.key)), toggle]
      : h("span", { class: "faint" }, page.access?.key_required ? text.hidden : text.keyless));
  }

  function block(code) {
    const hides = key.get() && filled(code, true) !== filled(code, false);
    return h("div", { class: "code" },
      h("pre", { tabindex: 0, role: "region", "aria-label": text.code(client.name) },
        h("code", {}, plain(filled(code, keyShown)))),
      h("div", { class: "buttons" },
        button(text.copy, () => copy(filled(code, keyShown), keyShown && hides ? text.copiedKey : text.copied)),
        hides && !keyShown && button(text.copyKey, () => copy(filled(code, true), text.copiedKey))));
  }

  const prose = (step) => step.trim() && h("p", {}, filled(step, keyShown).split("`")
    .map((part, at) => (at % 2 ? h("code", {}, plain(part)) : plain(part))));

  function go(wanted) {
    client = setups.find((each) => each.name === wanted) ?? setups[0];
    show();
  }

  const again = () => read().catch((error) => error.status && announce(error.message, { bad: true }));
  for (const kind of ["back", "access"]) addEventListener(kind, again, { signal: closing.signal });
  fill(root, h("h1", {}, app.views.connect),
    h("div", { class: "target" }, field(text.address, address), field(text.model, model), keyLine),
    h("div", { class: "parts" }, clients, place), usage(page, closing.signal));
  await read();
  go(argument);
  return { go, close: () => closing.abort() };
}
