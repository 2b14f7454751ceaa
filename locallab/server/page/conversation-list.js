// The list of conversations at the side, with search, import and export.

import { load } from "./answering.js";
import { fromJson, toJson } from "./conversation.js";
import { add, announce, button, fill, h, plain, save as saveFile } from "./dom.js";
import * as store from "./store.js";
import { chat as text } from "./texts.js";

/** The list; `fresh` is called for a new conversation. */
export class ConversationList {
  constructor(fresh) {
    this.heads = [];
    this.found = null;
    this.current = "";
    this.search = h("input", { type: "search", placeholder: text.search, "aria-label": text.search, oninput: () => this.#search() });
    this.list = h("ul", { class: "conversations" });
    const importing = h("input", { type: "file", accept: ".json,application/json", hidden: true, onchange: () => this.#import(importing) });
    this.element = h("aside", { class: "list", "aria-label": text.conversations },
      button(text.fresh, fresh, { class: "main" }), this.search, this.list,
      h("div", { class: "buttons" }, importing, button(text.import, () => importing.click()), button(text.exportAll, () => this.#exportAll())));
  }

  /** Read the list again. */
  async draw() {
    this.heads = await store.list().catch(() => []);
    this.#show();
  }

  /** Mark a conversation as the shown one. */
  mark(id) {
    this.current = id;
    for (const link of this.list.querySelectorAll("a")) {
      if (link.hash === `#/chat/${id}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  #show() {
    const heads = this.found ? this.heads.filter((head) => this.found.has(head.id)) : this.heads;
    fill(this.list, heads.map((head) => h("li", {}, h("a", { href: `#/chat/${head.id}`, dir: "auto" }, plain(head.title || text.untitled)))));
    if (!heads.length) add(this.list, h("li", { class: "faint" }, this.found ? text.notFound : text.none));
    this.mark(this.current);
  }

  async #search() {
    const wanted = this.search.value.trim();
    const found = wanted ? await store.search(wanted) : null;
    if (wanted !== this.search.value.trim()) return;
    this.found = found;
    this.#show();
  }

  async #import(input) {
    const [file] = input.files;
    try {
      const conversations = fromJson(await file.text());
      for (const each of conversations) await store.save(each, [...each.messages.values()]);
      announce(text.imported(conversations.length));
      this.draw();
    } catch (error) {
      announce(error.message, { bad: true });
    }
    input.value = "";
  }

  async #exportAll() {
    const all = await Promise.all(this.heads.map((head) => load(head.id)));
    saveFile("conversations.json", toJson(all.filter(Boolean)), "application/json");
  }
}
