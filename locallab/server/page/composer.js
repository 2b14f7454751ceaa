// What is written next: a text, with files.

import { Attachments } from "./attachments.js";
import { button, h } from "./dom.js";
import { chat as text } from "./texts.js";

const draft = (id) => `locallab-draft-${id}`;

/** The form. `send(content, files)` says whether it takes them; `stop` stops an answer; `accepts` is that of Attachments. */
export class Composer {
  constructor({ send, stop, accepts }) {
    this.send = send;
    this.stop = stop;
    this.id = "";
    this.busy = false;
    const attached = h("div", { class: "attachments", hidden: true });
    this.attachments = new Attachments(attached, accepts);
    const picking = h("input", { type: "file", multiple: true, hidden: true });
    picking.addEventListener("change", async () => {
      await this.attachments.add([...picking.files]);
      picking.value = "";
      this.input.focus();
    });
    this.input = h("textarea", { rows: 1, "aria-label": text.message, placeholder: text.placeholder, title: text.hint, dir: "auto" });
    this.input.addEventListener("input", () => {
      this.#grow();
      sessionStorage.setItem(draft(this.id), this.input.value);
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
    this.button = h("button", { class: "main" }, text.send);
    const onsubmit = (event) => {
      event.preventDefault();
      if (this.busy) this.stop();
      else this.#send();
    };
    this.element = h("form", { class: "composer", onsubmit }, attached,
      h("div", { class: "line" }, picking, button("+", () => picking.click(), { "aria-label": text.attach, title: text.attach }), this.input, this.button));
    this.takeDrops(this.element);
  }

  /** Take files that are dropped on an element. */
  takeDrops(element) {
    element.addEventListener("dragover", (event) => event.preventDefault());
    element.addEventListener("drop", (event) => {
      event.preventDefault();
      this.attachments.add([...event.dataTransfer.files]);
    });
  }

  /** Show what has been written in the conversation with this id and not sent. */
  open(id) {
    this.id = id;
    this.input.value = sessionStorage.getItem(draft(id)) ?? "";
    this.#grow();
  }

  focus() {
    this.input.focus();
  }

  /** Offer to stop, rather than to send. */
  setBusy(busy) {
    this.busy = busy;
    this.button.textContent = busy ? text.stop : text.send;
    this.button.classList.toggle("main", !busy);
  }

  #grow() {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight + 2, innerHeight * 0.4)}px`;
  }

  #send() {
    const content = this.input.value.trim();
    const { files } = this.attachments;
    if (this.busy || !(content || files.length) || !this.send(content, files)) return;
    this.attachments.clear();
    this.input.value = "";
    sessionStorage.removeItem(draft(this.id));
    this.#grow();
  }
}
