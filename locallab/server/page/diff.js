// What changed between two texts, by lines and by words.

const MOST = 16_000_000; // pairs of lines that are compared; beyond that, what differs is replaced as a whole
const MOST_WORDS = 40_000; // pairs of words
const LONGEST = 1000; // characters of a line whose words are compared
const ALIKE = 0.4; // part of the longer of two lines that they share, for their words to be marked

// The edits between lists that differ at both ends.
function edits(before, after, most) {
  const [n, m] = [before.length, after.length];
  if (n * m > most) return [...before.map((text) => [-1, text]), ...after.map((text) => [1, text])];
  const width = m + 1;
  const shared = new Uint16Array((n + 1) * width); // length of what two rests have in common
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1, at = i * width + j; j >= 0; j--, at--) {
      shared[at] = before[i] === after[j] ? shared[at + width + 1] + 1 : Math.max(shared[at + width], shared[at + 1]);
    }
  }
  const found = [];
  let added = [];
  for (let i = 0, j = 0; i < n || j < m; ) {
    if (i < n && j < m && before[i] === after[j]) {
      found.push(...added, [0, before[i++]]);
      added = [];
      j++;
    } else if (j === m || (i < n && shared[(i + 1) * width + j] >= shared[i * width + j + 1])) found.push([-1, before[i++]]);
    else added.push([1, after[j++]]);
  }
  return found.concat(added);
}

// The fewest edits that lead from one list of texts to another, as [kind, text]: 0 is in both, -1 in `before`, 1 in `after`.
// Between texts of both, what is removed comes before what is added.
function diff(before, after, most) {
  const room = Math.min(before.length, after.length);
  let start = 0;
  while (start < room && before[start] === after[start]) start++;
  let end = 0;
  while (end < room - start && before.at(-1 - end) === after.at(-1 - end)) end++;
  const [old, fresh] = [before, after].map((all) => all.slice(start, all.length - end));
  const same = (texts) => texts.map((text) => [0, text]);
  return [...same(before.slice(0, start)), ...edits(old, fresh, most), ...same(before.slice(before.length - end))];
}

const words = (line) => line.match(/\s+|[\p{L}\p{N}_]+|[^]/gu) || [];

// The parts of two lines, as [text, whether it changed]; whole lines where they have little in common.
function marked(old, fresh) {
  const whole = [[[old, false]], [[fresh, false]]];
  if (old.length > LONGEST || fresh.length > LONGEST) return whole;
  const found = diff(words(old), words(fresh), MOST_WORDS);
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
 * Return the lines of two texts as rows of {kind, old, fresh, parts}: `kind` is -1 for a line that is removed, 1 for one that is
 * added, 0 for one of both; `old` and `fresh` are its numbers, from 1, or null; `parts` are [text, whether it changed within the
 * line].
 */
export function lineDiff(before, after) {
  const rows = [];
  let [old, fresh] = [0, 0];
  for (const [kind, line] of diff(before.split("\n"), after.split("\n"), MOST)) {
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
