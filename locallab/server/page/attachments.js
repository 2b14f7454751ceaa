// Files that go with a message: pictures, sounds, and texts.

import { announce, button, fill, h, name, plain } from "./dom.js";
import { chat as text } from "./texts.js";

const LONGEST_TEXT = 1_000_000;

const read = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(reader.error);
  reader.readAsDataURL(file);
});

function kindOf(file) {
  const kind = file.type.split("/")[0];
  return kind === "image" || kind === "audio" ? kind : "text";
}

/** Files to be sent, shown in `element`. `accepts(kind)` says whether the chosen model takes pictures or sounds. */
export class Attachments {
  constructor(element, accepts) {
    this.element = element;
    this.accepts = accepts;
    this.files = [];
  }

  /** Take files in; say what is not taken, and why. */
  async add(files) {
    for (const file of files) {
      const problem = await this.#add(file);
      if (problem) announce(problem, { bad: true });
    }
    this.#draw();
  }

  async #add(file) {
    const kind = kindOf(file);
    if (kind !== "text") {
      if (!this.accepts(kind)) return text.noMedia(kind, this.accepts.model());
      this.files.push({ kind, name: file.name, data: await read(file) });
      return "";
    }
    if (file.size > LONGEST_TEXT) return text.tooLong(file.name);
    try {
      const data = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      if (data.includes("\0")) return text.unreadable(file.name);
      this.files.push({ kind, name: file.name, data });
      return "";
    } catch {
      return text.unreadable(file.name);
    }
  }

  clear() {
    this.files = [];
    this.#draw();
  }

  #draw() {
    fill(this.element, this.files.map((file, at) => h("span", { class: "attached" },
      file.kind === "image" && h("img", { src: file.data, alt: "" }), name(file.name),
      button("×", () => { this.files.splice(at, 1); this.#draw(); }, { class: "quiet", "aria-label": text.detach(plain(file.name)) }))));
    this.element.hidden = !this.files.length;
  }
}
