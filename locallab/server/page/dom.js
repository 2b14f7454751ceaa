// Elements, and what all views do with them. Texts become text nodes: no text is ever read as markup.

/**
 * Return a new element. Of `properties`, `on...` are listeners, `style` is an object of CSS properties, `dataset` one of
 * data attributes, true is an attribute without a value, and null, undefined and false are left out; all else are attributes.
 * Children are nodes, texts, or lists of them; null, undefined and false are left out.
 */
export function h(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  add(element, children);
  return element;
}

/** Append nodes and texts, as `h` does. */
export function add(element, ...children) {
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
}

/** Replace the content of an element. */
export function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
}

// Controls, and characters that change the direction of the text after them or that nobody sees.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;

/** Return a name from elsewhere with its invisible characters shown by their numbers. */
export function plain(name) {
  return String(name).replace(HIDDEN, (letter) => `\u27e8U+${letter.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}\u27e9`);
}

/** Return an element for a name or a text from elsewhere: its direction stays inside. */
export function name(text, properties) {
  return h("bdi", properties, plain(text));
}

export function button(text, onclick, properties) {
  return h("button", { type: "button", onclick, ...properties }, text);
}

let ids = 0;

/** Return a label with its field. `control` gets an id. */
export function field(text, control, hint) {
  control.id ||= `field-${++ids}`;
  const about = hint && h("p", { class: "hint", id: `${control.id}-hint` }, hint);
  if (about) control.setAttribute("aria-describedby", about.id);
  return h("div", { class: "field" }, h("label", { for: control.id }, text), control, about);
}

/** Return a <select>. `choices` are [value, text] pairs or values. */
export function select(choices, value, properties) {
  const element = h("select", properties);
  for (const choice of choices) {
    const [each, text] = Array.isArray(choice) ? choice : [choice, plain(choice)];
    element.append(h("option", { value: each }, text));
  }
  if (value !== null && value !== undefined) element.value = value;
  return element;
}

let notice = 0;

/** Say something at the edge of the page and to screen readers; a `lasting` text stays until the next one. */
export function announce(text, { bad = false, lasting = false } = {}) {
  const place = document.getElementById("notice");
  fill(place, text && h("p", { class: bad ? "bad" : "" }, plain(text)));
  const mine = ++notice;
  if (!lasting) setTimeout(() => mine === notice && fill(place), 6000);
}

/** Copy a text; where the browser does not allow that (a page without TLS), show it selected in a dialog. */
export async function copy(text, said) {
  try {
    await navigator.clipboard.writeText(text);
    announce(said);
  } catch {
    const area = h("textarea", { readonly: true, rows: 8, value: text, "aria-label": said });
    await dialog("", area, [], () => area.select());
  }
}

/** Offer a text as a file. */
export function save(filename, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: filename }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/**
 * Show a modal dialog and return the value of the button it was closed with, null if it was closed without one.
 * `buttons` are [value, text, properties] ahead of the one that closes it; `opened` is called once it is shown.
 */
export function dialog(title, content, buttons, opened, closing = "Close") {
  return new Promise((resolve) => {
    const form = h("form", { method: "dialog" }, title && h("h2", {}, title), content,
      h("div", { class: "buttons" },
        buttons.map(([value, text, more]) => h("button", { value, ...more }, text)),
        h("button", { value: "", formnovalidate: true }, closing)));
    const element = h("dialog", { "aria-label": title || closing }, form);
    element.addEventListener("close", () => {
      element.remove();
      resolve(element.returnValue || null);
    });
    document.body.append(element);
    element.showModal();
    opened?.();
  });
}

/** Return a menu: a button that shows `content` below it until something else is chosen. */
export function menu(label, content, properties) {
  const closed = (event) => {
    if (event.type === "keydown" ? event.key === "Escape" : !element.contains(event.relatedTarget)) element.open = false;
    if (event.type === "keydown" && event.key === "Escape") element.firstChild.focus();
  };
  const items = h("div", { class: "items", onclick: () => (element.open = false) }, content);
  const element = h("details", { class: "menu", onkeydown: closed, onfocusout: closed, ...properties }, h("summary", {}, label), items);
  return element;
}

export const format = {
  bytes(count) {
    if (!Number.isFinite(count)) return "";
    const power = Math.min(4, Math.floor(Math.log2(Math.max(1, count)) / 10));
    return `${(count / 1024 ** power).toLocaleString("en", { maximumFractionDigits: power > 2 ? 1 : 0 })} ${["B", "KiB", "MiB", "GiB", "TiB"][power]}`;
  },
  count: (number) => Math.round(number).toLocaleString("en"),
  number: (number, digits = 1) => number.toLocaleString("en", { maximumFractionDigits: digits }),
  seconds: (seconds) => (seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(seconds < 10 ? 2 : 0)} s`),
};
