// A field for code: lines with their numbers, files by choice and by drop.

import { announce, button, h, plain } from "./dom.js";
import { editor as text } from "./texts.js";

const LARGEST = 1 << 20; // bytes of a file
const LANGUAGES = {
  c: "c", cc: "cpp", cpp: "cpp", cs: "csharp", css: "css", go: "go", h: "c", hpp: "cpp", html: "html", java: "java", js: "javascript",
  jsx: "jsx", kt: "kotlin", lua: "lua", mjs: "javascript", php: "php", pl: "perl", ps1: "powershell", py: "python", r: "r",
  rb: "ruby", rs: "rust", scala: "scala", sh: "bash", sql: "sql", swift: "swift", ts: "typescript", tsx: "typescript",
  yaml: "yaml", yml: "yaml", zig: "zig",
};

/** Replace the text between two places, so that the browser's undo takes it back. */
function replace(area, start, end, fresh) {
  area.focus();
  area.setSelectionRange(start, end);
  const done = document.execCommand(fresh ? "insertText" : "delete", false, fresh);
  if (!done) area.setRangeText(fresh, start, end, "end");
  area.dispatchEvent(new Event("input", { bubbles: true }));
}

/**
 * A field for code. `element` is the whole, `area` its textarea, which sends "input" as any. `opened` is called with a file's
 * language, "" if its name does not tell.
 *
 * Tab indents, and leaves the field after Escape.
 */
export class Editor {
  #numbers = h("div", { class: "line-numbers", "aria-hidden": "true" });
  #lines = 0;

  constructor({ label, value, opened }) {
    this.opened = opened;
    const hint = h("p", { class: "hint", id: "editor-hint" }, text.hint);
    const properties = { class: "code", wrap: "off", spellcheck: "false", autocapitalize: "off", autocomplete: "off", rows: 16 };
    this.area = h("textarea", { ...properties, id: "editor", "aria-describedby": hint.id, placeholder: text.placeholder, value });
    this.file = h("input", { type: "file", hidden: true, onchange: () => this.#open(this.file.files[0]) });
    const head = h("div", { class: "editor-head" }, h("label", { for: "editor" }, label),
      button(text.open, () => this.file.click(), { class: "quiet" }), this.file);
    this.box = h("div", { class: "editor" }, this.#numbers, this.area);
    this.element = h("div", {}, head, this.box, hint);
    this.#listen();
    this.#number();
  }

  get value() {
    return this.area.value;
  }

  /** Put another text in place of the whole. It can be undone as typing can. */
  replace(value) {
    replace(this.area, 0, this.area.value.length, value);
  }

  /** Select a line, from 1, and bring it into view. */
  goTo(line) {
    const lines = this.area.value.split("\n").slice(0, line);
    const end = lines.join("\n").length;
    const height = this.area.scrollHeight / Math.max(1, this.#lines);
    this.area.scrollIntoView({ block: "nearest" });
    this.area.focus({ preventScroll: true });
    this.area.setSelectionRange(end - (lines.at(-1) || "").length, end);
    this.area.scrollTop = height * (line - 1) - this.area.clientHeight / 2;
    this.area.scrollLeft = 0;
  }

  #listen() {
    let leaving = false;
    this.area.addEventListener("keydown", (event) => {
      if (event.key === "Tab" && !event.shiftKey && !event.ctrlKey && !event.altKey && !leaving) {
        event.preventDefault();
        replace(this.area, this.area.selectionStart, this.area.selectionEnd, this.#indent());
      }
      leaving = event.key === "Escape";
    });
    this.area.addEventListener("input", () => this.#number());
    this.area.addEventListener("scroll", () => (this.#numbers.scrollTop = this.area.scrollTop));
    this.box.addEventListener("dragover", (event) => {
      if (event.dataTransfer.types.includes("Files")) event.preventDefault();
    });
    this.box.addEventListener("drop", (event) => {
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      this.#open(event.dataTransfer.files[0]);
    });
  }

  #indent() {
    return /^(\t| {2,8})\S/m.exec(this.area.value)?.[1] || "    ";
  }

  #number() {
    const count = this.area.value.split("\n").length;
    if (count === this.#lines) return;
    this.#lines = count;
    this.#numbers.textContent = Array.from({ length: count }, (_, index) => index + 1).join("\n");
    this.#numbers.scrollTop = this.area.scrollTop;
  }

  async #open(file) {
    this.file.value = "";
    if (!file) return;
    const content = file.size <= LARGEST ? (await file.text()).replace(/\r\n/g, "\n") : "\0";
    if (content.includes("\0")) {
      announce(text.refused(plain(file.name)), { bad: true });
      return;
    }
    this.replace(content);
    this.opened(LANGUAGES[file.name.toLowerCase().split(".").pop()] || "");
    announce(text.opened(plain(file.name)));
  }
}
