// A field for code: lines with their numbers, files by choice and by drop.

import { announce, button, h, plain } from "./dom.js";
import { editor as text } from "./texts.js";

const LARGEST = 1 << 20; // bytes of a file

/** Languages by the ends of their files' names. */
export const LANGUAGES = {
  c: "c", cpp: "cpp", cs: "csharp", css: "css", go: "go", h: "c", hpp: "cpp", html: "html", java: "java", js: "javascript",
  kt: "kotlin", mjs: "javascript", php: "php", py: "python", rb: "ruby", rs: "rust", sh: "bash", sql: "sql", swift: "swift",
  ts: "typescript", tsx: "typescript",
};

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
    this.area = h("textarea", {
      class: "code", id: "editor", rows: 16, wrap: "off", spellcheck: "false", autocapitalize: "off", autocomplete: "off",
      "aria-describedby": hint.id, placeholder: text.placeholder, value, oninput: () => this.#number(),
      onscroll: () => (this.#numbers.scrollTop = this.area.scrollTop),
    });
    this.#indentByTab();
    this.file = h("input", { type: "file", hidden: true, onchange: () => this.#open(this.file.files[0]) });
    const ondrop = (event) => {
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      this.#open(event.dataTransfer.files[0]);
    };
    this.element = h("div", {},
      h("div", { class: "editor-head" }, h("label", { for: "editor" }, label),
        button(text.open, () => this.file.click(), { class: "quiet" }), this.file),
      h("div", { class: "editor", ondragover: (event) => event.preventDefault(), ondrop }, this.#numbers, this.area), hint);
    this.#number();
  }

  /** Put another text in place of the whole. It can be undone as typing can. */
  replace(value) {
    this.area.focus();
    this.area.select();
    document.execCommand(value ? "insertText" : "delete", false, value);
  }

  /** Select a line, from 1, and bring it into view. */
  goTo(line) {
    const { area } = this;
    const lines = area.value.split("\n").slice(0, line);
    const end = lines.join("\n").length;
    area.scrollIntoView({ block: "nearest" });
    area.focus({ preventScroll: true });
    area.setSelectionRange(end - lines.at(-1).length, end);
    area.scrollTop = (area.scrollHeight / this.#lines) * (line - 1) - area.clientHeight / 2;
    area.scrollLeft = 0;
  }

  #indentByTab() {
    let leaving = false;
    this.area.addEventListener("keydown", (event) => {
      if (event.key === "Tab" && !event.shiftKey && !leaving) {
        event.preventDefault();
        const [, indent] = /^(\t| {2,8})\S/m.exec(this.area.value) || [];
        document.execCommand("insertText", false, indent || "    ");
      }
      leaving = event.key === "Escape";
    });
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
