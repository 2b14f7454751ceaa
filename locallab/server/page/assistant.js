// The view "assistant".

import { fill, h } from "./dom.js";
import { app as text } from "./texts.js";

export async function open(root, page, argument) {
  fill(root, h("h1", {}, text.views.assistant));
  return { close() {} };
}
