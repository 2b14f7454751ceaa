// Texts of models and users, rendered by the server: plain at once, and with their elements as soon as these have come.

import { ApiError, post } from "./api.js";
import { button, copy, h, plain } from "./dom.js";
import { markdown as texts } from "./texts.js";
import { Windows } from "./windows.js";

const PAUSE = 100; // ms between two renderings of a text that grows
const SHARE = 4; // times as long as a rendering took, until the next of the same text
const CACHED = 100; // windows whose blocks are kept

const TAGS = new Set("p h2 ul ol li blockquote hr pre code em strong s a br table thead tbody tr th td span".split(" "));
const PROSE = new Set("p h2 ul ol li blockquote th td".split(" "));
const HOLDERS = "div, ul, ol, li, blockquote, p, h2, pre, pre > code, table, thead, tbody, tr, th, td";
const FENCE_END = /\n[ >]*(`{3,}|~{3,})\s*$/;

// Return the text of a block of code as it was written.
function source(block) {
  const code = block.querySelector("code").cloneNode(true);
  for (const each of code.querySelectorAll(".hidden-character")) {
    each.replaceWith(String.fromCodePoint(parseInt(each.textContent.slice(2), 16)));
  }
  return code.textContent;
}

function copyCode({ target }) {
  let text = "";
  let block = target.closest(".code-block");
  while (block) {
    text += source(block);
    block = !block.nextElementSibling && block.parentElement.nextElementSibling?.querySelector(":scope > .more");
  }
  copy(text.replace(/\n$/, ""), texts.copied);
}

// Return a node of what the server says of it; `more` for code that goes on. What is not known here is shown as its text.
function build(node, more) {
  if (typeof node === "string") return node;
  let { tag } = node;
  const children = (node.children || []).map((each) => build(each));
  if (tag === "pre") {
    const head = h("div", { class: "code-head" }, h("bdi", {}, plain(node.language || "")),
      button(texts.copy, copyCode, { class: "quiet" }));
    return h("div", { class: more ? "code-block more" : "code-block" }, !more && head,
      h("pre", { dir: "ltr", tabindex: "0" }, children));
  }
  if (!TAGS.has(tag) || (tag === "a" && !/^(https?:\/\/|mailto:)/i.test(node.href))) tag = "span";
  if (!children.length && (tag === "th" || tag === "h2")) tag = tag === "th" ? "td" : "p"; // an empty one has no meaning
  const element = h(tag, {
    class: /^[a-z\d-]+$/.test(node.class || "") && node.class,
    dir: PROSE.has(tag) && "auto",
    ...(tag === "a" && { href: node.href, rel: "noopener noreferrer nofollow", target: "_blank" }),
    start: tag === "ol" && Number.isInteger(node.start) && node.start,
  }, children);
  return tag === "table" ? h("div", { class: "table", tabindex: "0" }, element) : element;
}

const cache = new Map(); // the blocks of requests
let turn = Promise.resolve(); // requests go one at a time

// A part of a text on the page: blocks that are rendered, and behind them what is plain yet.
class Pane {
  #blocks = []; // {at, json, element} in order; the first `kept` stay, whatever follows
  #kept = 0;
  #due = 0;
  #queued = false;
  #seen = false;
  #held = false; // whether a request failed: the text stays as it is
  #tail = h("span", { class: "tail" });
  element = h("div", { class: "window" });

  constructor(owner, { start, language }) {
    this.owner = owner;
    this.language = language;
    this.more = language !== null && start > 0;
    this.from = this.sent = this.end = start; // what is sent next, what is rendered, and all
    this.#beginCode();
    new IntersectionObserver((entries) => {
      this.#seen = entries.at(-1).isIntersecting;
      this.#wake();
    }, { rootMargin: "400px" }).observe(this.element);
  }

  #beginCode() {
    const { language } = this;
    if (language !== null) this.#take([{ line: 0, nodes: [{ tag: "pre", language, children: [{ tag: "code" }] }] }], this.sent);
  }

  /** Take where the window ends now. Only one that is cut ends earlier than before. `closed`: it ends there for good. */
  update(end, closed) {
    this.end = end;
    this.closed = closed;
    if (end < this.sent) this.#cut(end);
    this.#placeTail();
    const known = closed && cache.get(this.#request);
    if (known) this.#take(known, end);
    this.#wake();
  }

  #cut(end) {
    while (this.#kept && this.#blocks[this.#kept - 1].at >= end) this.#kept--;
    const dropped = this.#blocks.splice(this.#kept);
    for (const { element } of dropped) element.remove();
    this.from = this.sent = dropped[0]?.at ?? this.from;
    this.#beginCode();
  }

  #placeTail() {
    const { text } = this.owner;
    const rest = text.slice(this.sent, this.end);
    this.#tail.remove();
    if (!rest) return;
    this.#tail.replaceChildren(rest);
    let place = this.element;
    const inCode = place.lastElementChild?.matches(".code-block") && !FENCE_END.test(text.slice(this.from, this.sent));
    if (text[this.sent - 1] !== "\n" || inCode) {
      while (place.lastElementChild?.matches(HOLDERS)) place = place.lastElementChild;
    }
    place.append(this.#tail);
  }

  #wake() {
    if (this.#queued || this.#held || !this.#seen || this.sent >= this.end) return;
    this.#queued = true;
    setTimeout(() => (turn = turn.then(() => this.#render())), this.#due - performance.now());
  }

  get #request() {
    return JSON.stringify({ text: this.owner.text.slice(this.from, this.end), language: this.language });
  }

  async #render() {
    const { end, closed } = this;
    const request = this.#request;
    const began = performance.now();
    try {
      if (!this.#seen || this.sent >= end) return;
      const blocks = cache.get(request) ?? (await post("/api/v1/render", request)).blocks;
      if (closed) cache.set(request, blocks);
      if (cache.size > CACHED) cache.delete(cache.keys().next().value);
      if (end > this.sent && end <= this.end) this.#take(blocks, end);
    } catch (error) {
      this.#held = true;
      if (error.status === 0) addEventListener("back", () => this.#resume(), { once: true });
      if (!(error instanceof ApiError)) console.error(error);
    } finally {
      const now = performance.now();
      this.#due = now + Math.max(PAUSE, SHARE * (now - began));
      this.#queued = false;
      this.#wake();
    }
  }

  #resume() {
    this.#held = false;
    this.#wake();
  }

  #take(blocks, end) {
    const { text } = this.owner;
    this.#tail.remove();
    const before = this.#blocks.splice(this.#kept);
    let at = this.from;
    let line = 0;
    for (const [index, block] of blocks.entries()) {
      for (; line < block.line; line++) at = text.indexOf("\n", at) + 1;
      const json = JSON.stringify(block.nodes);
      let element = before[index]?.element;
      if (before[index]?.json !== json) {
        const made = build(block.nodes[0], this.more);
        if (element) element.replaceWith(made);
        else this.element.append(made);
        element = made;
      }
      this.#blocks.push({ at, json, element });
    }
    for (const { element } of before.slice(blocks.length)) element.remove();
    // Only the last block, or the last two in the middle of a line, can still change.
    if (this.language === null) this.#kept = Math.max(this.#kept, this.#blocks.length - (text[end - 1] === "\n" ? 1 : 2));
    this.from = this.#blocks[this.#kept]?.at ?? this.from;
    this.sent = end;
    this.#placeTail();
  }
}

/** Shows a text in an element, which becomes its own. It is plain until the server has rendered it, and where it does not. */
export class Rendered {
  #windows = null;
  #panes = [];
  text = "";

  /** With `language`, even "", the text is code. `soft` and `most` are the sizes of windows, in characters. */
  constructor(element, options = {}) {
    this.element = element;
    this.options = options;
    element.classList.add("markdown");
  }

  /** Show the text so far. One that does not begin with what it was before begins anew. `done`: nothing will follow. */
  update(text, done = false) {
    if (!this.#windows || !text.startsWith(this.text)) this.#begin();
    this.text = text;
    this.#windows.take(text);
    const { list } = this.#windows;
    for (let index = Math.max(0, this.#panes.length - 1); index < list.length; index++) {
      if (index === this.#panes.length) {
        this.#panes.push(new Pane(this, list[index]));
        this.element.append(this.#panes[index].element);
      }
      this.#panes[index].update(list[index].end, done || index < list.length - 1);
    }
  }

  #begin() {
    this.#windows = new Windows(this.options);
    this.#panes = [];
    this.element.replaceChildren();
  }
}

/** Return an element that shows code in a language ("" for none), with a button that copies it. */
export function code(text, language) {
  const element = h("div");
  new Rendered(element, { language: language || "" }).update(text, true);
  return element;
}
