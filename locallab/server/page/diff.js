// What changed between two texts, by lines and by words.

const MOST = 1000; // edits that are looked for; texts further apart are replaced as a whole
const LONGEST = 1000; // characters of a line whose words are compared
const ALIKE = 0.4; // part of the longer of two lines that they share, for their words to be marked

// The edits that lead from one list to another, the fewest, by Myers' algorithm: true is an item that both have.
function script(before, after, most) {
  const [n, m] = [before.length, after.length];
  const bound = Math.min(n + m, most);
  const reached = new Int32Array(2 * bound + 3);
  const zero = bound + 1;
  const trace = [];
  for (let d = 0; d <= bound; d++) {
    trace.push(reached.slice(zero - d - 1, zero + d + 2));
    for (let k = -d; k <= d; k += 2) {
      const down = k === -d || (k !== d && reached[zero + k - 1] < reached[zero + k + 1]);
      let x = down ? reached[zero + k + 1] : reached[zero + k - 1] + 1;
      while (x < n && x - k < m && before[x] === after[x - k]) x++;
      reached[zero + k] = x;
      if (x >= n && x - k >= m) return backwards(trace, n, m);
    }
  }
  return null;
}

function backwards(trace, n, m) {
  const steps = [];
  let [x, y] = [n, m];
  for (let d = trace.length - 1; d >= 0; d--) {
    const at = (k) => trace[d][k + d + 1];
    const k = x - y;
    const down = k === -d || (k !== d && at(k - 1) < at(k + 1));
    const from = d ? (down ? at(k + 1) : at(k - 1)) : 0;
    const start = d ? from - (down ? k + 1 : k - 1) : 0;
    for (; x > from && y > start; x--, y--) steps.push(0);
    if (d) steps.push(down ? 1 : -1);
    [x, y] = [from, start];
  }
  return steps.reverse();
}

/**
 * Return the edits that lead from one list of texts to another, as [kind, text]: 0 is in both, -1 in `before`, 1 in `after`.
 * Between texts of both, what is removed comes before what is added. Lists more than `most` edits apart share their ends only.
 */
export function diff(before, after, most = MOST) {
  let start = 0;
  while (start < before.length && start < after.length && before[start] === after[start]) start++;
  let end = 0;
  const room = Math.min(before.length, after.length) - start;
  while (end < room && before[before.length - 1 - end] === after[after.length - 1 - end]) end++;
  const old = before.slice(start, before.length - end);
  const fresh = after.slice(start, after.length - end);
  const steps = script(old, fresh, most) || [...old.map(() => -1), ...fresh.map(() => 1)];
  const found = before.slice(0, start).map((text) => [0, text]);
  let [x, y, added] = [0, 0, []];
  for (const kind of steps) {
    if (kind === 1) added.push([1, fresh[y++]]);
    else {
      if (kind === 0) {
        found.push(...added);
        added = [];
        y++;
      }
      found.push([kind, old[x++]]);
    }
  }
  return found.concat(added, before.slice(before.length - end).map((text) => [0, text]));
}

const words = (line) => line.match(/\s+|[\p{L}\p{N}_]+|[^]/gu) || [];

// The parts of two lines, as [text, whether it changed]; whole lines where they have little in common.
function marked(old, fresh) {
  const whole = [[[old, false]], [[fresh, false]]];
  if (old.length > LONGEST || fresh.length > LONGEST) return whole;
  const found = diff(words(old), words(fresh), 200);
  const shared = found.reduce((sum, [kind, text]) => sum + (kind ? 0 : text.trim().length), 0);
  if (shared < ALIKE * Math.max(old.trim().length, fresh.trim().length)) return whole;
  return [-1, 1].map((side) => {
    const parts = [];
    for (const [kind, text] of found) {
      if (kind === -side) continue;
      if (parts.length && parts.at(-1)[1] === (kind !== 0)) parts.at(-1)[0] += text;
      else parts.push([text, kind !== 0]);
    }
    return parts;
  });
}

/**
 * Return the lines of two texts as rows of {kind, old, fresh, parts}: `kind` as in `diff`; `old` and `fresh` are the line's
 * numbers, from 1, or null; `parts` are [text, whether it changed within the line].
 */
export function lineDiff(before, after) {
  const rows = [];
  let [old, fresh] = [0, 0];
  for (const [kind, line] of diff(before.split("\n"), after.split("\n"))) {
    rows.push({ kind, old: kind <= 0 ? ++old : null, fresh: kind >= 0 ? ++fresh : null, parts: [[line, false]] });
  }
  for (let at = 0; at < rows.length; at++) {
    if (rows[at].kind !== -1) continue;
    let added = at;
    while (added < rows.length && rows[added].kind === -1) added++;
    for (let i = at, j = added; i < added && rows[j]?.kind === 1; i++, j++) {
      [rows[i].parts, rows[j].parts] = marked(rows[i].parts[0][0], rows[j].parts[0][0]);
    }
    at = added;
  }
  return rows;
}
