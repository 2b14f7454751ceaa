// Texts of models and users, rendered by the server: plain at once, and with their elements as soon as these have come.

import { ApiError, post } from "./api.js";
import { button, copy, h, plain } from "./dom.js";
import { markdown as texts } from "./texts.js";
import { Windows } from "./windows.js";

const PAUSE = 100; // ms between two renderings of a text that grows
const SHARE = 4; // times as long as a rendering took, until the next of the same text
const CACHED = 500_000; // characters of texts whose blocks are kept
const AT_ONCE = 30_000; // characters of a text that is shown from the cache before it is in view

const TAGS = new Set("p h2 ul ol li blockquote hr pre code em strong s a br table thead tbody tr th td span".split(" "));
const PROSE = new Set(["p", "h2", "ul", "ol", "li", "blockquote", "th", "td"]);
const HOLDERS = new Set("DIV UL OL LI BLOCKQUOTE P H2 PRE CODE TABLE THEAD TBODY TR TH TD".split(" "));

const textOf = (node) => {
  if (typeof node === "string") return node;
  const inside = (node.children || []).map(textOf).join("");
  return node.class === "hidden-character" ? String.fromCodePoint(parseInt(inside.slice(2), 16)) : inside;
};

function codeBlock(language, nodes, source, more) {
  const code = h("code", { dir: "ltr" }, nodes);
  const head = !more && h("div", { class: "code-head" }, h("bdi", {}, plain(language)),
    button(texts.copy, () => copy(source().replace(/\n$/, ""), texts.copied), { class: "quiet" }));
  return h("div", { class: more ? "code-block more" : "code-block" }, head, h("pre", { tabindex: "0" }, code));
}

// Return a node of what the server says of it. What is not known here is shown as its text.
function build(node) {
  if (typeof node === "string") return node;
  let { tag } = node;
  const children = (node.children || []).map(build);
  if (tag === "pre") return codeBlock(node.language || "", (node.children[0]?.children || []).map(build), () => textOf(node));
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

const cache = new Map();
let cached = 0;

function keep(id, blocks) {
  if (cache.has(id)) return;
  cache.set(id, blocks);
  cached += id.length;
  for (const [old] of cache) {
    if (cached <= CACHED) break;
    cache.delete(old);
    cached -= old.length;
  }
}

const waiting = new Set(); // windows in view that have something new
const lost = new Set(); // those whose request failed, until the server is back
let working = false;

async function work() {
  if (working) return;
  working = true;
  while (waiting.size) {
    const next = [...waiting].reduce((a, b) => (b.due < a.due ? b : a));
    const pause = next.due - performance.now();
    if (pause > 0) {
      await new Promise((resolve) => setTimeout(resolve, Math.min(pause, PAUSE / 2))); // another may be added meanwhile
      continue;
    }
    waiting.delete(next);
    await next.render();
  }
  working = false;
}

addEventListener("back", () => {
  const all = [...lost];
  lost.clear();
  for (const each of all) each.wake();
});

const shownIn = new WeakMap();
const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) shownIn.get(target).see(isIntersecting);
}, { rootMargin: "400px" });

// A part of a text on the page: blocks that are rendered, and behind them what is plain yet.
class Pane {
  blocks = []; // {at, json, element} in order; the first `kept` stay, whatever follows
  kept = 0;
  due = 0;
  seen = false;
  refused = false;
  closed = false; // whether nothing will follow
  round = 0; // counts what makes a request under way void

  constructor(owner, { start, code }, more) {
    this.owner = owner;
    this.start = this.from = this.sent = this.shown = this.end = start;
    this.code = null;
    this.element = h("div", { class: "window" });
    this.tail = h("span", { class: "tail" });
    if (code) this.#becomeCode(code, more);
    shownIn.set(this.element, this);
    observer.observe(this.element);
  }

  // Go on as part of a block of code.
  #becomeCode(code, more) {
    this.round++;
    this.code = code;
    this.more = more;
    this.kept = 0;
    this.from = this.sent = this.shown = Math.max(this.start, code.body);
    const element = this.#codeBlock([]);
    this.element.replaceChildren(element);
    this.blocks = [{ at: this.from, json: "", element }];
  }

  #codeBlock(nodes) {
    const { owner, code, more } = this;
    const source = () => unindented(owner.text.slice(code.body, code.end ?? owner.text.length), code.indent);
    return codeBlock(code.language, nodes, source, more);
  }

  see(seen) {
    this.seen = seen;
    if (seen) this.wake();
    else waiting.delete(this);
  }

  wake() {
    if (!this.seen || this.refused || this.sent >= this.end) return;
    waiting.add(this);
    work();
  }

  // Take where the window ends now. Only one that is cut ends earlier than before.
  update({ end, code }, closed) {
    if (code && !this.code) this.#becomeCode(code, false);
    if (end < this.shown) this.#cut(end);
    this.end = end;
    this.closed = closed;
    if (!this.tail.parentNode || this.shown === this.sent) this.#placeTail();
    else if (this.shown < end) this.tail.firstChild.appendData(this.owner.text.slice(this.shown, end));
    this.shown = end;
    this.wake();
  }

  #cut(end) {
    this.round++;
    this.shown = this.sent;
    if (this.sent <= end) return;
    if (this.code) {
      this.#becomeCode(this.code, this.more);
      return;
    }
    let count = this.kept;
    while (count && this.blocks[count - 1].at >= end) count--;
    const dropped = this.blocks.splice(count);
    for (const { element } of dropped) element.remove();
    this.kept = count;
    this.from = this.sent = this.shown = dropped.length ? dropped[0].at : this.from;
  }

  #placeTail() {
    const { text } = this.owner;
    const rest = text.slice(this.sent, this.end);
    this.tail.remove();
    if (!rest) return;
    this.tail.replaceChildren(rest);
    let place = this.blocks.at(-1)?.element;
    const fresh = text[this.sent - 1] === "\n" && !(place?.matches(".code-block") && !ended(text.slice(this.from, this.sent)));
    if (fresh && !this.code) place = null;
    while (place?.lastElementChild && HOLDERS.has(place.lastElementChild.tagName)) place = place.lastElementChild;
    if (place?.tagName === "CODE" && place.parentNode.tagName !== "PRE") place = place.parentNode;
    (place && HOLDERS.has(place.tagName) ? place : this.element).append(this.tail);
  }

  get #id() {
    return `${this.code ? this.code.language : "\0"}\n${this.#source(this.end)}`;
  }

  #source(end) {
    const text = this.owner.text.slice(this.from, end);
    return this.code ? unindented(text, this.code.indent) : text;
  }

  // Show the blocks of what is in the cache, if it is there.
  remembered() {
    const blocks = this.closed && this.kept === 0 && cache.get(this.#id);
    if (blocks) this.#take(blocks, this.end);
    return Boolean(blocks);
  }

  async render() {
    if (this.sent >= this.end || this.remembered()) return;
    const { round, end, closed } = this;
    const id = closed && this.kept === 0 ? this.#id : null;
    const body = { text: this.#source(end), language: this.code ? this.code.language : null };
    const began = performance.now();
    try {
      const { blocks } = await post("/api/v1/render", body);
      if (round === this.round) this.#take(blocks, end);
      if (id) keep(id, blocks);
    } catch (error) {
      if (error.status === 0) lost.add(this);
      else this.refused = true; // it stays as it is
      if (!(error instanceof ApiError)) console.error(error);
      return;
    } finally {
      const now = performance.now();
      this.due = Math.max(began + PAUSE, now + SHARE * (now - began));
    }
    this.wake();
  }

  #take(blocks, end) {
    const { text } = this.owner;
    this.round++;
    this.tail.remove();
    const before = this.blocks.splice(this.kept);
    let at = this.from;
    let line = 0;
    for (const [index, block] of blocks.entries()) {
      for (; line < block.line; line++) at = text.indexOf("\n", at) + 1;
      const json = JSON.stringify(block.nodes);
      const old = before[index];
      let element = old?.element;
      if (old?.json !== json) {
        const made = this.code ? this.#codeBlock(codeNodes(block)) : build(block.nodes[0]);
        if (element) element.replaceWith(made);
        else this.element.append(made);
        element = made;
      }
      this.blocks.push({ at, json, element });
    }
    for (const { element } of before.slice(blocks.length)) element.remove();
    if (!this.code) this.#settle(text[end - 1] === "\n" ? 1 : 2);
    this.sent = end;
    this.#placeTail();
  }

  // Note which blocks need not be sent again.
  #settle(open) {
    this.kept = Math.max(this.kept, this.blocks.length - open);
    if (this.blocks.length > this.kept) this.from = this.blocks[this.kept].at;
  }

  close() {
    observer.unobserve(this.element);
    waiting.delete(this);
    lost.delete(this);
    this.round++;
  }
}

const codeNodes = (block) => (block.nodes[0]?.children?.[0]?.children || []).map(build);
const ended = (text) => /(^|\n)[^\n`~]*(`{3,}|~{3,})[ \t\r]*\n$/.test(text.slice(-200)) && text.trimEnd().includes("\n");
const unindented = (text, count) => (count ? text.replace(new RegExp(`^ {1,${count}}`, "gm"), "") : text);

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
      const found = list[index];
      if (index === this.#panes.length) this.#add(found, list[index - 1]);
      const pane = this.#panes[index];
      pane.update(found, done || index < list.length - 1);
      if (done && text.length <= AT_ONCE && pane.sent < pane.end) pane.remembered();
    }
  }

  /** End what is under way. The element stays as it is. */
  close() {
    for (const pane of this.#panes) pane.close();
  }

  #begin() {
    this.close();
    this.#windows = new Windows(this.options);
    this.#panes = [];
    this.element.replaceChildren();
  }

  #add(found, before) {
    const pane = new Pane(this, found, Boolean(found.code) && before?.code === found.code);
    this.#panes.push(pane);
    this.element.append(pane.element);
    this.element.classList.toggle("long", this.#panes.length > 1);
  }
}

/** Return an element that shows code in a language ("" for none), with a button that copies it. */
export function code(text, language) {
  const element = h("div");
  new Rendered(element, { language: language || "" }).update(text, true);
  return element;
}
