// A long list of elements of which only those in view, and some around them, are in the document.

import { h } from "./dom.js";

const ESTIMATE = 160;
const MARGIN = 800;
const KEPT = 300;
const NEAR = 48;

/** Shows items, each with an `id`, in an element that scrolls. `make(item)` returns an item's element, which is kept. */
export class Thread {
  #items = [];
  #heights = new Map();
  #elements = new Map();
  #shown = [];
  #drawing = 0;

  constructor(scroller, make, label) {
    this.scroller = scroller;
    this.make = make;
    this.top = h("div", { class: "spacer" });
    this.bottom = h("div", { class: "spacer" });
    this.list = h("div", { class: "messages", role: "feed", "aria-label": label, hidden: true });
    this.pinned = true;
    scroller.append(this.top, this.list, this.bottom);
    scroller.addEventListener("scroll", this.#scrolled, { passive: true });
    this.observer = new ResizeObserver((entries) => {
      for (const { target, borderBoxSize } of entries) if (target.dataset.id) this.#heights.set(target.dataset.id, borderBoxSize[0].blockSize);
      this.#settle();
    });
    this.observer.observe(scroller);
  }

  close() {
    this.observer.disconnect();
    cancelAnimationFrame(this.#drawing);
  }

  /** Show other items; elements of ids that stay are kept. `toEnd` scrolls to the last one. */
  set(items, { toEnd = false } = {}) {
    const ids = new Set(items.map((item) => item.id));
    for (const id of this.#elements.keys()) if (!ids.has(id)) this.#forget(id);
    this.#items = items;
    this.list.hidden = !items.length;
    if (toEnd) this.pinned = true;
    this.#draw();
    this.#settle();
  }

  #forget(id) {
    const element = this.#elements.get(id);
    if (element) this.observer.unobserve(element);
    element?.remove();
    this.#elements.delete(id);
    this.#shown = this.#shown.filter((each) => each !== id);
  }

  #scrolled = () => {
    const { scrollTop, clientHeight, scrollHeight } = this.scroller;
    this.pinned = scrollHeight - scrollTop - clientHeight < NEAR;
    this.#later();
  };

  #later() {
    cancelAnimationFrame(this.#drawing);
    this.#drawing = requestAnimationFrame(() => this.#draw());
  }

  // A list that is at its end stays there while it grows.
  #settle() {
    if (this.pinned) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#later();
  }

  #height = (item) => this.#heights.get(item.id) ?? ESTIMATE;

  #draw() {
    const { scrollTop, clientHeight } = this.scroller;
    const from = (this.pinned ? Math.max(0, this.#items.reduce((sum, item) => sum + this.#height(item), 0) - clientHeight) : scrollTop) - MARGIN;
    const to = from + clientHeight + 2 * MARGIN;
    let at = 0;
    let above = 0;
    let below = 0;
    const shown = [];
    this.#items.forEach((item, index) => {
      const height = this.#height(item);
      if (at + height < from) above += height;
      else if (at > to) below += height;
      else shown.push([item, index]);
      at += height;
    });
    this.#place(shown);
    this.top.style.height = `${above}px`;
    this.bottom.style.height = `${below}px`;
  }

  #place(shown) {
    const ids = shown.map(([item]) => item.id);
    for (const id of this.#shown) if (!ids.includes(id)) this.#elements.get(id)?.remove();
    let before = this.list.firstChild;
    for (const [item, index] of shown) {
      const element = this.#element(item, index);
      if (element === before) before = before.nextSibling;
      else this.list.insertBefore(element, before);
    }
    this.#shown = ids;
    for (const id of this.#elements.keys()) {
      if (this.#elements.size <= KEPT) break;
      if (!ids.includes(id)) this.#forget(id);
    }
  }

  #element(item, index) {
    let element = this.#elements.get(item.id);
    if (!element) {
      element = this.make(item);
      element.dataset.id = item.id;
      this.#elements.set(item.id, element);
      this.observer.observe(element);
    }
    element.setAttribute("aria-posinset", index + 1);
    element.setAttribute("aria-setsize", this.#items.length);
    return element;
  }
}
