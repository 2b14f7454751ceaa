// Where a long text is cut into windows, each of which is rendered by itself.

const FENCE = /^( {0,3})(`{3,}|~{3,})([^]*)$/;
const BLANK = /^[ \t\r]*$/;
const FRESH = /^[^\s\-+*\d]/;
const LONGEST_LINE = 1000;

// Where to cut text that has no good place: behind a line, else behind a blank, else anywhere but within a character.
function cutIn(text, start, end) {
  for (const mark of ["\n", " "]) {
    const found = text.lastIndexOf(mark, end - 1) + 1;
    if (found > (start + end) / 2) return found;
  }
  return text.charCodeAt(end - 1) >> 10 === 0x36 ? end - 1 : end;
}

/**
 * The windows of a text that grows: `list` of {start, end, code}. They are cut between blocks of Markdown, at the first such
 * place behind `soft` characters. One without such a place ends at `most` characters: long fenced code goes on in windows with
 * `code`, {language, mark, indent, body, end}, where `body` and `end` are where the code begins and ends (null: not yet).
 *
 * All windows but the last stay as they are, and they are the same however the text came.
 */
export class Windows {
  #fence = null; // that is open; `nested` if it may be one in a list, which ends without a mark
  #safe = 0;
  #blank = false;
  #scanned = 0;

  /** With `language`, even "", the whole text is code. */
  constructor({ soft = 8000, most = 30000, language = null } = {}) {
    this.soft = soft;
    this.most = most;
    this.list = [{ start: 0, end: 0, code: language === null ? null : { language, mark: null, indent: 0, body: 0, end: null } }];
  }

  /** Take the text so far, which begins with what it was before. */
  take(text) {
    for (;;) {
      const found = text.indexOf("\n", this.#scanned);
      const end = found < 0 ? text.length : found + 1;
      while (end > this.#last.start + this.most) this.#force(text);
      if (found < 0) break;
      this.#line(text.slice(this.#scanned, Math.min(found, this.#scanned + LONGEST_LINE)), this.#scanned, end);
      this.#scanned = end;
    }
    this.#last.end = text.length;
  }

  get #last() {
    return this.list[this.list.length - 1];
  }

  #cut(end, start, code) {
    this.#last.end = end;
    this.list.push({ start, end: start, code });
    this.#safe = start;
  }

  #line(line, start, next) {
    const { code } = this.#last;
    if (this.#fence || code) {
      if (!this.#closes(line)) return;
      if (code) {
        code.end = start;
        this.#cut(start, next, null);
      }
      this.#fence = null;
      this.#blank = false;
      return;
    }
    const found = FENCE.exec(line);
    const opens = found && !(found[2][0] === "`" && found[3].includes("`"));
    const nested = opens && found[1].length > 0;
    if ((opens && !nested) || (this.#blank && FRESH.test(line) && !opens)) {
      this.#safe = start;
      if (start - this.#last.start >= this.soft) this.#cut(start, start, null);
    }
    if (opens) {
      const language = found[3].trim().split(/\s/)[0];
      this.#fence = { language, mark: found[2], indent: found[1].length, body: next, end: null, nested };
    }
    this.#blank = BLANK.test(line);
  }

  #closes(line) {
    const { mark } = this.#fence || this.#last.code;
    const found = mark && FENCE.exec(line.trimStart());
    return Boolean(found) && found[2].startsWith(mark) && BLANK.test(found[3]);
  }

  #force(text) {
    const last = this.#last;
    const end = cutIn(text, last.start, last.start + this.most);
    const fence = this.#fence;
    if (last.code) this.#cut(end, end, last.code);
    else if (this.#safe > last.start) this.#cut(this.#safe, this.#safe, null);
    else if (fence && !fence.nested && fence.body <= end) {
      last.code = fence;
      this.#fence = null;
      this.#cut(end, end, fence);
    } else {
      this.#cut(end, end, null);
      this.#fence = null;
      this.#blank = false;
    }
    this.#scanned = Math.max(this.#scanned, this.#last.start);
  }
}
