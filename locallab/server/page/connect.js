// The view "connect": how to set up clients for this server, what they send, and what the keys have used.

import { base, get, key } from "./api.js";
import { button, copy, field, fill, h, name, plain, select } from "./dom.js";
import { replayer } from "./replay.js";
import { SETUPS } from "./setups.js";
import { app, connect as text } from "./texts.js";
import { usage } from "./usage.js";

const CONTEXT = 32768; // of a model that is not loaded and whose entry names none

export async function open(root, page, argument) {
  const [cards, info] = await Promise.all([get("/v1/models"), get("/system/info")]);
  const closing = new AbortController();
  const best = info.public_url ?? base;
  const addresses = best === base ? [base] : [base, [best, text.public(best)]];
  const address = select(addresses, best, { onchange: showSetup });
  const model = select(cards.data.map((each) => [each.id, plain(each.id)]), cards.data[0]?.id, { onchange: showSetup });
  if (!cards.data.length) fill(model, h("option", { value: "any" }, text.noModel));
  const keyLine = h("div", { class: "key" });
  const clients = h("nav", { "aria-label": text.clients });
  const place = h("section", { class: "setup" });
  const replay = replayer(closing.signal);
  let shown = false;
  let client = SETUPS[0];

  /** What stands for the key in a set-up: "none" where none is asked for. */
  const keyText = (real) => (key.get() ? (real ? key.get() : text.hidden) : page.access?.key_required ? text.hidden : "none");

  function filled(template, real) {
    const card = cards.data.find((each) => each.id === model.value);
    const context = card?.context_length ?? CONTEXT;
    const values = { url: address.value, model: model.value, small: model.value, key: keyText(real), context };
    return template.replace(/\{(url|model|small|key|context)\}/g, (_, each) => values[each]);
  }

  function showKey() {
    const toggle = button(shown ? text.hide : text.show, () => {
      shown = !shown;
      showKey();
      showSetup();
      keyLine.querySelector("button").focus();
    });
    fill(keyLine, h("span", { class: "label" }, text.key), key.get()
      ? [h("span", {}, shown ? h("code", {}, plain(key.get())) : name(text.keyOf(page.access?.key ?? text.key))), toggle]
      : h("span", { class: "faint" }, page.access?.key_required ? text.hidden : text.keyless));
  }

  function showSetup() {
    const address = (each) => `#/connect/${encodeURIComponent(each.name)}`;
    fill(clients, SETUPS.map((each) => h("a", { href: address(each), "aria-current": each === client && "page" }, each.name)));
    const steps = client.steps.map((step) => (step.code ? block(step.code) : prose(step)));
    fill(place, h("h2", {}, text.setup(client.name)), steps, client.replayed && replay(client.replayed));
  }

  function block(code) {
    const hides = key.get() && code.includes("{key}");
    return h("div", { class: "code" },
      h("pre", { tabindex: 0, role: "region", "aria-label": text.code(client.name) }, h("code", {}, plain(filled(code, shown)))),
      h("div", { class: "buttons" },
        button(text.copy, () => copy(filled(code, shown), shown && hides ? text.copiedKey : text.copied)),
        hides && !shown && button(text.copyKey, () => copy(filled(code, true), text.copiedKey))));
  }

  const prose = (step) => h("p", {}, filled(step, shown).split("`")
    .map((part, at) => (at % 2 ? h("code", {}, plain(part)) : plain(part))));

  function go(wanted) {
    client = SETUPS.find((each) => each.name === wanted) ?? SETUPS[0];
    showSetup();
  }

  const access = () => { shown = false; showKey(); showSetup(); };
  addEventListener("access", access, { signal: closing.signal });
  fill(root, h("h1", {}, app.views.connect),
    h("div", { class: "target" }, field(text.address, address), field(text.model, model), keyLine),
    h("div", { class: "parts" }, clients, place), usage(page, closing.signal));
  showKey();
  go(argument);
  return { go, close: () => closing.abort() };
}
