// JSON that is still coming.

/**
 * Return {value, open} of the beginning of a JSON text: `value` is what is known of it (undefined: nothing), with texts as far
 * as they have come, and `open` the set of its objects and lists that are not complete. What follows an error is left out.
 */
export function partial(text) {
  const open = new Set();
  let value;
  let at = 0;
  const end = new Error("the end");

  const skip = () => {
    while (" \n\r\t".includes(text[at] || "x")) at++;
    if (at >= text.length) throw end;
  };

  function container(put) {
    const closing = text[at] === "[" ? "]" : "}";
    const found = closing === "]" ? [] : Object.create(null);
    open.add(found);
    put(found);
    for (at++, skip(); text[at] !== closing; skip()) {
      if (text[at] === ",") at++;
      else if (closing === "]") read((each) => found.push(each));
      else member(found);
    }
    at++;
    open.delete(found);
  }

  function member(found) {
    let key;
    read((each) => (key = each));
    skip();
    if (text[at++] !== ":") throw end;
    read((each) => (found[key] = each));
  }

  function string(put) {
    const start = at;
    for (at++; at < text.length && text[at] !== '"'; at++) if (text[at] === "\\") at++;
    if (at < text.length) {
      put(JSON.parse(text.slice(start, ++at)));
      return;
    }
    for (let cut = 0; cut < 6; cut++) { // an escape may be incomplete
      try {
        put(JSON.parse(`${text.slice(start, text.length - cut)}"`));
        break;
      } catch { /* cut more */ }
    }
    throw end;
  }

  function read(put) {
    skip();
    if ("[{".includes(text[at])) container(put);
    else if (text[at] === '"') string(put);
    else {
      const found = /[^\s,\]}]*/y;
      found.lastIndex = at;
      const [word] = found.exec(text);
      at += word.length;
      if (at >= text.length) throw end;
      put(JSON.parse(word));
    }
  }

  try {
    read((found) => (value = found));
  } catch { /* it has not come to its end */ }
  return { value, open };
}
