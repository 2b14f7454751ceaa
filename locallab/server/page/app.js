// The frame of the page: the views, the key, and the state of the connection.

import { get, hooks, key } from "./api.js";
import { add, announce, button, dialog, field, fill, h, name, plain } from "./dom.js";
import { app as text } from "./texts.js";

// Each view is a module with `open(root, page, argument)`: it fills `root` and returns what closes it. `argument` is what
// follows the view's name in the address; a view with `go(argument)` in what it returns is told of changes, others are reopened.
const VIEWS = {
  chat: () => import("./chat.js"),
  assistant: () => import("./assistant.js"),
  models: () => import("./models.js"),
  live: () => import("./live.js"),
  connect: () => import("./connect.js"),
};

/** What views get: `access` is the answer of /api/v1/me, `go` changes the address, `admin` says what the key may do. */
const page = {
  access: null,
  get admin() {
    return page.access?.role === "admin";
  },
  go(path, { replace = false } = {}) {
    if (replace) history.replaceState(null, "", `#/${path}`);
    else location.hash = `#/${path}`;
    if (replace) show();
  },
};

let asking = null;

function askKey(problem) {
  asking ??= ask(problem).finally(() => (asking = null));
  return asking;
}

async function ask(problem) {
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true });
  const content = [h("p", {}, text.keyAsked), problem && h("p", { class: "bad", role: "alert" }, plain(problem)), field(text.key, input)];
  const chosen = await dialog(text.key, content, [["use", text.keyEnter, { class: "main" }]], () => input.focus(), text.keyCancel);
  if (chosen !== "use") return false;
  key.set(input.value.trim());
  setTimeout(readAccess);
  return true;
}

async function readAccess() {
  page.access = await get("/api/v1/me");
  showAccess();
  dispatchEvent(new Event("access"));
}

function showAccess() {
  const place = document.getElementById("access");
  fill(place);
  if (!page.access?.key_required) return;
  const changed = key.get() ? [text.keyForget, () => { key.set(""); location.reload(); }] : [text.keyChange, () => readAccess().catch(() => {})];
  add(place, h("span", { class: "faint" }, name(text.as(page.access.key, page.access.role))), button(...changed));
}

let waiting = false;

/** Ask until the server answers again; views hear of it by the event "back". */
async function lost() {
  if (waiting) return;
  waiting = true;
  announce(text.lost, { bad: true, lasting: true });
  for (let pause = 500; ; pause = Math.min(5000, pause * 1.5)) {
    await new Promise((resolve) => setTimeout(resolve, pause));
    const alive = await fetch("health/live", { cache: "no-store" }).then((response) => response.ok, () => false);
    if (alive) break;
  }
  waiting = false;
  announce(text.back);
  dispatchEvent(new Event("back"));
}

let current = { view: null, close: null, go: null };

function address() {
  const [view, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  return [view in VIEWS ? view : "chat", rest.map(decodeURIComponent).join("/")];
}

async function show() {
  const [view, argument] = address();
  if (view === current.view && current.go) {
    current.go(argument);
    return;
  }
  current.close?.();
  const mine = { view, close: null, go: null };
  current = mine;
  document.title = text.title(text.views[view]);
  for (const link of document.querySelectorAll("#views a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const root = h("div", { class: `view ${view}` });
  fill(document.getElementById("main"), root);
  try {
    const opened = await (await VIEWS[view]()).open(root, page, argument);
    if (current === mine) Object.assign(mine, opened);
    else opened?.close?.();
  } catch (error) {
    console.error(error);
    if (current === mine) fill(root, h("p", { class: "bad", role: "alert" }, plain(text.failed(error.message))), button(text.again, () => { current.view = null; show(); }));
  }
}

async function start() {
  hooks.askKey = askKey;
  hooks.lost = lost;
  const nav = document.getElementById("views");
  add(nav, Object.keys(VIEWS).map((view) => h("a", { href: `#/${view}`, dataset: { view } }, text.views[view])));
  document.getElementById("skip").addEventListener("click", (event) => {
    event.preventDefault();
    document.getElementById("main").focus();
  });
  addEventListener("hashchange", show);
  await readAccess().catch((error) => error.status && announce(error.message, { bad: true }));
  await show();
}

start();
