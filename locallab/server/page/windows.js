// Where a long text is cut into windows, each of which is rendered by itself.

const FENCE = /^( {0,3})(`{3,}(?=[^`]*$)|~{3,})([^]*)$/;
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
 * The windows of a text that grows: `list` of {start, end, language}. They are cut between blocks of Markdown, at the first such
 * place behind `soft` characters. One without such a place ends at `most` characters: long fenced code goes on in windows with
 * its `language`, which is null for Markdown.
 *
 * All windows but the last stay as they are, and they are the same however the text came.
 */
export class Windows {
  #fence; // that is open: {language, closing, nested}; a nested one may be in a list, which ends without a mark
  #safe = 0;
  #blank = false;
  #scanned = 0;

  /** With `language`, even "", the whole text is code. */
  constructor({ soft = 8000, most = 30000, language = null } = {}) {
    this.soft = soft;
    this.most = most;
    this.#fence = language === null ? null : { language };
    this.list = [{ start: 0, end: 0, language }];
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
    return this.list.at(-1);
  }

  #cut(end, start = end, language = null) {
    this.#last.end = end;
    this.list.push({ start, end: start, language });
    this.#safe = start;
  }

  #line(line, start, next) {
    if (this.#fence) {
      if (!this.#fence.closing?.test(line)) return;
      if (this.#last.language !== null) this.#cut(start, next);
      this.#fence = null;
      this.#blank = false;
      return;
    }
    const [opens, indent, mark, info] = FENCE.exec(line) || [];
    if ((opens && !indent) || (this.#blank && FRESH.test(line))) {
      this.#safe = start;
      if (start - this.#last.start >= this.soft) this.#cut(start);
    }
    if (opens) {
      const closing = new RegExp(`^\\s*${mark}${mark[0]}*[ \\t\\r]*$`);
      this.#fence = { language: info.trim().split(/\s/)[0], closing, nested: indent !== "" };
    }
    this.#blank = BLANK.test(line);
  }

  #force(text) {
    const { start } = this.#last;
    const end = cutIn(text, start, start + this.most);
    if (this.#safe > start) this.#cut(this.#safe);
    else if (this.#fence && !this.#fence.nested) this.#cut(end, end, this.#fence.language);
    else {
      this.#cut(end);
      this.#fence = null;
      this.#blank = false;
    }
    this.#scanned = Math.max(this.#scanned, this.#last.start);
  }
}
