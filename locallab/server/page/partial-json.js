// JSON that is still coming.

const TOKEN = /"(?:[^"\\]|\\.)*"?|[[\]{},]/gs;

/**
 * Return {value, depth} of the beginning of a JSON text: `value` is what is known of it (undefined: nothing), with texts as far
 * as they have come, and `depth` the number of its objects and lists that are not complete, each the last one of the one around.
 */
export function partial(text) {
  const open = [];
  let whole = 0; // where the last value ends that is complete
  for (const { 0: token, index } of text.matchAll(TOKEN)) {
    if (token === "[") open.unshift("]");
    else if (token === "{") open.unshift("}");
    else if (token === "]" || token === "}") open.shift();
    if (token[0] !== '"') whole = token === "," ? index : index + 1;
  }
  const cuts = [0, 1, 2, 3, 4, 5].map((count) => `${text.slice(0, text.length - count)}"`); // an escape may be incomplete
  for (const known of [text, ...cuts, text.slice(0, whole)]) {
    try {
      return { value: JSON.parse(known + open.join("")), depth: open.length };
    } catch { /* cut more */ }
  }
  return { value: undefined, depth: open.length };
}
