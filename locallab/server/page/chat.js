// The view "Chat": conversations, the messages of one of them, and what is written next.

import { get } from "./api.js";
import { ask } from "./answer.js";
import { Attachments } from "./attachments.js";
import { MessageView, PairView } from "./chat-message.js";
import { SettingsForm, otherSettings } from "./chat-settings.js";
import { Conversation, fromJson, toJson, toMarkdown } from "./conversation.js";
import { add, announce, button, dialog, field, fill, h, menu, plain, save as saveFile } from "./dom.js";
import * as store from "./store.js";
import { chat as text } from "./texts.js";
import { Thread } from "./thread.js";

const SAVED = 500; // milliseconds between two writes of an answer that is coming
const DEFAULTS = "locallab-settings";

// Answers go on while another view is shown: conversations that are being answered, by id, and what stops each message.
const answered = new Map();
const running = new Map();
let current = null;

const draft = (id) => `locallab-draft-${id}`;

let saidUnstored = false;

async function stored(conversation, messages) {
  try {
    await store.save(conversation, messages);
  } catch (error) {
    if (!saidUnstored) announce(text.unstored(error.message), { bad: true });
    saidUnstored = true;
  }
}

/** Let the server answer: read what comes into `message`, and store it now and then; `fresh` are messages not stored yet. */
async function answer(conversation, message, messages, settings, fresh = []) {
  const controller = new AbortController();
  running.set(message.id, controller);
  answered.set(conversation.id, conversation);
  message.status = "streaming";
  delete message.error;
  let timer = null;
  const changed = () => {
    current?.changed(conversation, message);
    timer ??= setTimeout(() => {
      timer = null;
      stored(conversation, [message]);
    }, SAVED);
  };
  await stored(conversation, [...fresh, message]);
  current?.drawList();
  const lost = await ask(messages, settings, message, controller.signal, changed);
  clearTimeout(timer);
  running.delete(message.id);
  if (![...running.keys()].some((id) => conversation.messages.has(id))) answered.delete(conversation.id);
  conversation.changed = Date.now();
  await stored(conversation, [message]);
  current?.ended(conversation, message, lost);
}

store.answerFor((id) => running.has(id));

addEventListener("pagehide", () => {
  store.keep([...answered.values()].flatMap((each) => [...each.messages.values()]).filter((message) => running.has(message.id)));
});

/** Return a conversation whose answers that nobody computes any more are marked as interrupted, with all that came. */
async function loaded(id) {
  if (answered.has(id)) return answered.get(id);
  const conversation = await store.load(id).catch(() => null);
  if (!conversation) return null;
  const unended = [...conversation.messages.values()].filter((message) => message.status === "streaming");
  const live = await Promise.all(unended.map((message) => store.isLive(message.id)));
  const cut = unended.filter((message, at) => !live[at]);
  const rest = cut.length ? store.kept() : null;
  for (const message of cut) {
    Object.assign(message, { status: "interrupted", error: text.reloaded });
    const kept = rest.get(message.id);
    if (kept && kept.content.length >= message.content.length) Object.assign(message, kept);
  }
  if (cut.length) await stored(conversation, cut);
  return conversation;
}

class Chat {
  constructor(root, page) {
    this.page = page;
    this.models = [];
    this.conversation = Conversation.create();
    this.views = new Map();
    this.heads = [];
    this.dirty = new Set();
    this.#build(root);
    this.stopWatching = store.watch((id) => this.#heard(id));
  }

  #build(root) {
    this.search = h("input", { type: "search", placeholder: text.search, "aria-label": text.search, oninput: () => this.#search() });
    this.list = h("ul", { class: "conversations" });
    const importing = h("input", { type: "file", accept: ".json,application/json", hidden: true, onchange: () => this.#import(importing) });
    this.side = h("aside", { class: "list", id: "conversations", "aria-label": text.conversations },
      button(text.fresh, () => this.#fresh(), { class: "main" }), this.search, this.list,
      h("div", { class: "buttons" }, importing, button(text.import, () => importing.click()), button(text.exportAll, () => this.#exportAll())));
    this.title = h("h1", {});
    this.menu = h("div", {});
    const toggle = (label, name) => button(label, (event) => {
      const open = root.classList.toggle(name);
      event.currentTarget.setAttribute("aria-expanded", open);
    }, { "aria-expanded": false, class: `toggle-${name}` });
    this.scroller = h("div", { class: "scroller", tabindex: -1 });
    this.empty = h("p", { class: "empty faint" }, text.empty);
    this.scroller.append(this.empty);
    this.thread = new Thread(this.scroller, (item) => this.#element(item), text.title);
    this.panel = h("aside", { class: "panel", "aria-label": text.settings });
    this.form = new SettingsForm(this.panel, this.models, () => this.#settingsChanged());
    this.said = h("p", { class: "unseen", role: "status" });
    root.addEventListener("keydown", (event) => event.key === "Escape" && this.#stop());
    add(root, this.side, this.said,
      h("section", { class: "talk", "aria-label": text.title },
        h("header", {}, toggle(text.list, "with-list"), this.title, this.menu, toggle(text.settings, "with-panel")),
        this.scroller, this.#composer()),
      this.panel);
  }

  #composer() {
    const attached = h("div", { class: "attachments", hidden: true });
    this.attachments = new Attachments(attached, Object.assign((kind) => this.#takes(kind), { model: () => this.#model()?.id }));
    const picking = h("input", { type: "file", multiple: true, hidden: true });
    picking.addEventListener("change", async () => {
      await this.attachments.add([...picking.files]);
      picking.value = "";
      this.input.focus();
    });
    this.input = h("textarea", { rows: 1, "aria-label": text.message, placeholder: text.placeholder, title: text.hint, dir: "auto" });
    this.input.addEventListener("input", () => {
      this.#grow();
      sessionStorage.setItem(draft(this.conversation.id), this.input.value);
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#send();
    });
    this.input.addEventListener("paste", (event) => {
      if (!event.clipboardData.files.length) return;
      event.preventDefault();
      this.attachments.add([...event.clipboardData.files]);
    });
    this.sending = h("button", { class: "main" }, text.send);
    const onsubmit = (event) => {
      event.preventDefault();
      if (this.#streams()) this.#stop();
      else this.#send();
    };
    const composer = h("form", { class: "composer", onsubmit }, attached,
      h("div", { class: "line" }, picking, button("+", () => picking.click(), { "aria-label": text.attach, title: text.attach }), this.input, this.sending));
    for (const element of [this.scroller, composer]) {
      element.addEventListener("dragover", (event) => event.preventDefault());
      element.addEventListener("drop", (event) => {
        event.preventDefault();
        this.attachments.add([...event.dataTransfer.files]);
      });
    }
    return composer;
  }

  #grow() {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight + 2, innerHeight * 0.4)}px`;
  }

  async start(argument) {
    await this.show(argument);
    this.drawList();
    for (const news of ["back", "access"]) addEventListener(news, this.readModels);
    await this.readModels();
  }

  readModels = async () => {
    try {
      const { data } = await get("/v1/models");
      this.models.splice(0, this.models.length, ...data);
      this.form.show(this.conversation.settings);
    } catch (error) {
      announce(error.message, { bad: true });
    }
  };

  async show(id) {
    if (id && id === this.conversation.id && this.shownOnce) return;
    this.shownOnce = true;
    const found = id ? await loaded(id) : null;
    if (id && !found) announce(text.gone, { bad: true });
    this.#open(found ?? Conversation.create(JSON.parse(localStorage.getItem(DEFAULTS) || "{}")));
  }

  #open(conversation) {
    this.conversation = conversation;
    this.views.clear();
    this.thread.set([]);
    this.form.show(conversation.settings);
    this.input.value = sessionStorage.getItem(draft(conversation.id)) ?? "";
    this.#grow();
    this.#draw({ toEnd: true });
    this.#markList();
  }

  // --- the list of conversations

  async drawList() {
    this.heads = await store.list().catch(() => []);
    this.#showList();
  }

  #showList() {
    const heads = this.found ? this.heads.filter((head) => this.found.has(head.id)) : this.heads;
    fill(this.list, heads.map((head) => h("li", {}, h("a", { href: `#/chat/${head.id}`, dir: "auto" }, plain(head.title || text.untitled)))),
      !heads.length && h("li", { class: "faint" }, this.found ? text.notFound : text.none));
    this.#markList();
  }

  #markList() {
    for (const link of this.list.querySelectorAll("a")) {
      if (link.hash === `#/chat/${this.conversation.id}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  async #search() {
    const wanted = this.search.value.trim();
    const found = wanted ? await store.search(wanted) : null;
    if (wanted !== this.search.value.trim()) return;
    this.found = found;
    this.#showList();
  }

  #fresh() {
    if (location.hash === "#/chat") this.show("");
    else this.page.go("chat");
    this.input.focus();
  }

  async #import(input) {
    const [file] = input.files;
    input.value = "";
    try {
      const conversations = fromJson(await file.text());
      for (const each of conversations) await store.save(each, [...each.messages.values()]);
      announce(text.imported(conversations.length));
      this.drawList();
    } catch (error) {
      announce(error.message, { bad: true });
    }
  }

  async #exportAll() {
    const all = await Promise.all(this.heads.map((head) => loaded(head.id)));
    saveFile("conversations.json", toJson(all.filter(Boolean)), "application/json");
  }

  // --- the shown conversation

  #draw(options) {
    const { conversation } = this;
    this.title.textContent = plain(conversation.title || text.fresh);
    const items = [];
    for (const message of conversation.path()) {
      const parent = conversation.messages.get(message.parent);
      const pair = parent?.pair?.includes(message.id) && parent.pair.every((id) => conversation.messages.has(id));
      if (pair) items.push({ id: `${parent.id}+${message.id}`, messages: parent.pair.map((id) => conversation.messages.get(id)), chosen: message.id });
      else items.push({ id: message.id, messages: [message] });
    }
    for (const item of items) item.key = item.messages.map((each) => each.id);
    this.empty.hidden = items.length > 0;
    this.thread.set(items, options);
    for (const { messages } of items) for (const each of messages) this.views.get(each.id)?.update();
    this.#drawMenu();
    this.#drawButton();
  }

  #drawMenu() {
    const { conversation } = this;
    fill(this.menu);
    if (!conversation.messages.size) return;
    const file = (conversation.title || "conversation").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40);
    fill(this.menu, menu(text.menu, [
      button(text.rename, () => this.#rename(), { class: "quiet" }),
      button(text.exportMarkdown, () => saveFile(`${file}.md`, toMarkdown(conversation), "text/markdown"), { class: "quiet" }),
      button(text.exportJson, () => saveFile(`${file}.json`, toJson([conversation]), "application/json"), { class: "quiet" }),
      button(text.remove, () => this.#remove(), { class: "quiet danger" }),
    ]));
  }

  async #rename() {
    const input = h("input", { value: this.conversation.title, maxlength: 200 });
    const chosen = await dialog(text.rename, field(text.renameTo, input), [["save", text.save, { class: "main" }]], () => input.select(), text.cancel);
    if (chosen !== "save") return;
    this.conversation.title = input.value.trim();
    await stored(this.conversation);
    this.#draw();
    this.drawList();
  }

  async #remove() {
    const { conversation } = this;
    const asked = text.removeAsked(plain(conversation.title));
    const chosen = await dialog(text.remove, h("p", {}, asked), [["remove", text.remove, { class: "danger" }]], null, text.cancel);
    if (chosen !== "remove") return;
    this.#stop();
    answered.delete(conversation.id);
    await store.remove(conversation);
    this.page.go("chat");
    this.drawList();
  }

  #element(item) {
    const view = item.messages.length > 1 ? new PairView(item.messages, this.#actions, item.chosen) : new MessageView(item.messages[0], this.#actions);
    for (const message of item.messages) this.views.set(message.id, view);
    return view.element;
  }

  #actions = {
    siblings: (message) => this.conversation.siblings(message.id),
    awaits: (message) => !this.conversation.children.get(message.id).length,
    edit: (message, content) => this.#say(message.parent, { role: "user", content, files: message.files }),
    again: (message) => this.#answer(message.parent),
    goOn: (message) => {
      delete message.finish;
      answer(this.conversation, message, this.conversation.path(message.id), this.conversation.settings);
      this.#draw();
    },
    choose: (id) => this.#choose(id),
    pick: (message) => this.#choose(message.id),
    results: (message, results) => {
      let parent = message.id;
      const said = message.calls.map((call, at) => {
        const made = this.conversation.append(parent, { role: "tool", call: call.id, name: call.name, content: results[at] });
        parent = made.id;
        return made;
      });
      this.#answer(parent, said);
    },
  };

  #choose(id) {
    this.conversation.choose(id);
    this.#draw();
    stored(this.conversation);
  }

  // --- what is said

  #send() {
    const content = this.input.value.trim();
    if (this.#streams() || !(content || this.attachments.files.length)) return;
    if (this.form.problem) {
      announce(this.form.problem, { bad: true });
      return;
    }
    const files = this.attachments.take();
    this.input.value = "";
    sessionStorage.removeItem(draft(this.conversation.id));
    this.#grow();
    this.#say(this.conversation.path().at(-1)?.id ?? null, { role: "user", content, ...(files.length ? { files } : {}) });
  }

  #say(parent, fields) {
    const isFirst = !this.conversation.messages.size;
    const message = this.conversation.append(parent, fields);
    this.#answer(message.id, [message]);
    if (isFirst) this.page.go(`chat/${this.conversation.id}`, { replace: true });
  }

  #answer(parent, fresh = []) {
    const { conversation } = this;
    this.said.textContent = "";
    const asked = conversation.path(parent);
    const { settings } = conversation;
    const make = (chosen) => conversation.append(parent, { role: "assistant", status: "streaming", ...(chosen.model ? { model: chosen.model } : {}) });
    const first = make(settings);
    if (settings.compare && asked.at(-1).role === "user") {
      const other = otherSettings(settings);
      const second = make(other);
      asked.at(-1).pair = [first.id, second.id];
      conversation.choose(first.id);
      answer(conversation, second, asked, other, [asked.at(-1)]);
    }
    answer(conversation, first, asked, settings, fresh);
    this.#draw({ toEnd: true });
  }

  #streams() {
    return [...this.conversation.messages.keys()].some((id) => running.has(id));
  }

  #stop() {
    for (const id of this.conversation.messages.keys()) running.get(id)?.abort();
  }

  #drawButton() {
    const streams = this.#streams();
    this.sending.textContent = streams ? text.stop : text.send;
    this.sending.classList.toggle("main", !streams);
  }

  /** A message that is being answered has changed: draw it with the next frame. */
  changed(conversation, message) {
    if (conversation !== this.conversation) return;
    if (!this.dirty.size) requestAnimationFrame(() => this.#drawDirty());
    this.dirty.add(message.id);
  }

  #drawDirty() {
    for (const id of this.dirty) this.views.get(id)?.update();
    this.dirty.clear();
  }

  ended(conversation, message, lost) {
    if (conversation === this.conversation) {
      this.#draw();
      this.said.textContent = message.status === "done" ? text.answered : "";
      if (message.status === "interrupted" && !lost) announce(message.content ? text.interrupted(message.error) : message.error, { bad: true });
    }
    this.drawList();
  }

  // --- settings and models

  #settingsChanged() {
    const { conversation } = this;
    const { schema, tools, ...kept } = conversation.settings;
    localStorage.setItem(DEFAULTS, JSON.stringify(kept));
    clearTimeout(this.saving);
    if (conversation.messages.size) this.saving = setTimeout(() => stored(conversation), SAVED);
  }

  #model() {
    const wanted = this.conversation.settings.model;
    return this.models.find((each) => (wanted ? each.id === wanted : each.status === "ready")) ?? this.models[0];
  }

  #takes(kind) {
    return this.#model()?.modalities?.includes(kind) ?? false;
  }

  // Another tab has changed a conversation.
  async #heard(id) {
    this.drawList();
    if (id !== this.conversation.id || answered.has(id)) return;
    const found = await loaded(id);
    if (!found || id !== this.conversation.id) return;
    this.conversation.absorb(found);
    this.#draw();
  }

  close() {
    current = null;
    this.thread.close();
    this.stopWatching();
    for (const news of ["back", "access"]) removeEventListener(news, this.readModels);
  }
}

export async function open(root, page, argument) {
  const view = new Chat(root, page);
  current = view;
  await view.start(argument);
  return { go: (id) => view.show(id), close: () => view.close() };
}
