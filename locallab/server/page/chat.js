// The view "Chat": a conversation, between the list of all and the settings of this one.

import { answer, answersHere, isAnswered, listeners, load, stop, stored } from "./answering.js";
import { get } from "./api.js";
import { MessageView, PairView } from "./chat-message.js";
import { SettingsForm, otherSettings } from "./chat-settings.js";
import { Composer } from "./composer.js";
import { ConversationList } from "./conversation-list.js";
import { Conversation, toJson, toMarkdown } from "./conversation.js";
import { add, announce, button, dialog, field, fill, h, menu, plain, save as saveFile } from "./dom.js";
import * as store from "./store.js";
import { chat as text } from "./texts.js";
import { Thread } from "./thread.js";

const SAVED = 500; // milliseconds until changed settings are stored
const DEFAULTS = "locallab-settings";

class Chat {
  constructor(root, page) {
    this.page = page;
    this.models = [];
    this.conversation = Conversation.create();
    this.views = new Map();
    this.dirty = new Set();
    this.#build(root);
    listeners.add(this);
    this.stopWatching = store.watch((id) => this.#heard(id));
  }

  #build(root) {
    this.list = new ConversationList(() => this.#fresh());
    this.title = h("h1", {});
    this.menu = h("div", {});
    const toggle = (label, name) => button(label, (event) => {
      const open = root.classList.toggle(name);
      event.currentTarget.setAttribute("aria-expanded", open);
    }, { "aria-expanded": false, class: `toggle-${name}` });
    this.empty = h("p", { class: "empty faint" }, text.empty);
    this.scroller = h("div", { class: "scroller", tabindex: -1 }, this.empty);
    this.thread = new Thread(this.scroller, (item) => this.#element(item), text.title);
    const accepts = Object.assign((kind) => this.#model()?.modalities?.includes(kind), { model: () => this.#model()?.id });
    this.composer = new Composer({ send: (content, files) => this.#send(content, files), stop: () => stop(this.conversation), accepts });
    this.composer.takeDrops(this.scroller);
    this.panel = h("aside", { class: "panel", "aria-label": text.settings });
    this.form = new SettingsForm(this.panel, this.models, () => this.#settingsChanged());
    this.said = h("p", { class: "unseen", role: "status" });
    root.addEventListener("keydown", (event) => event.key === "Escape" && stop(this.conversation));
    add(root, this.list.element, this.said,
      h("section", { class: "talk", "aria-label": text.title },
        h("header", {}, toggle(text.list, "with-list"), this.title, this.menu, toggle(text.settings, "with-panel")),
        this.scroller, this.composer.element),
      this.panel);
  }

  async start(argument) {
    await this.show(argument);
    this.list.draw();
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
    const found = id ? await load(id) : null;
    if (id && !found) announce(text.gone, { bad: true });
    this.#open(found ?? Conversation.create(JSON.parse(localStorage.getItem(DEFAULTS) || "{}")));
  }

  #open(conversation) {
    this.conversation = conversation;
    this.views.clear();
    this.thread.set([]);
    this.form.show(conversation.settings);
    this.composer.open(conversation.id);
    this.#draw({ toEnd: true });
    this.list.mark(conversation.id);
  }

  #fresh() {
    if (location.hash === "#/chat") this.show("");
    else this.page.go("chat");
    this.composer.focus();
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
    this.composer.setBusy(isAnswered(conversation));
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
    this.list.draw();
  }

  async #remove() {
    const { conversation } = this;
    const asked = text.removeAsked(plain(conversation.title));
    const chosen = await dialog(text.remove, h("p", {}, asked), [["remove", text.remove, { class: "danger" }]], null, text.cancel);
    if (chosen !== "remove") return;
    stop(conversation);
    await store.remove(conversation);
    this.page.go("chat");
    this.list.draw();
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

  #send(content, files) {
    if (this.form.problem) {
      announce(this.form.problem, { bad: true });
      return false;
    }
    this.#say(this.conversation.path().at(-1)?.id ?? null, { role: "user", content, ...(files.length ? { files } : {}) });
    return true;
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

  begun() {
    this.list.draw();
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
    this.list.draw();
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

  // Another tab has changed a conversation.
  async #heard(id) {
    this.list.draw();
    if (id !== this.conversation.id || answersHere(id)) return;
    const found = await load(id);
    if (!found || id !== this.conversation.id) return;
    this.conversation.absorb(found);
    this.#draw();
  }

  close() {
    listeners.delete(this);
    this.thread.close();
    this.stopWatching();
    for (const news of ["back", "access"]) removeEventListener(news, this.readModels);
  }
}

export async function open(root, page, argument) {
  const view = new Chat(root, page);
  await view.start(argument);
  return { go: (id) => view.show(id), close: () => view.close() };
}
