// The inline half of the Markdown renderer: emphasis, code, links. Text in, array of nodes out, in linear time.

import { h } from "./dom.js";

const MAX_DEPTH = 8;
const SAFE_LINK = /^(?:https?:\/\/|mailto:)/i;
const PLAIN = /[^\\`*_~[!<\nhH]+/y;
const LINK = /(!?)\[((?:[^[\]\\]|\\.){0,2000})\]\(\s*<?([^\s()<>]{0,2000}(?:\([^\s()<>]{0,500}\)[^\s()<>]{0,500})?)>?(?:\s+"[^"]{0,500}")?\s*\)/y;
const BARE_URL = /https?:\/\/[^\s<>"'`\])}]*[^\s<>"'`\])}.,;:!?*_~]/iy;
const ESCAPE = /\\([!-/:-@[-`{-~])/y;
const TICKS = /`+/y;
const MARKS = ["***", "**", "*", "___", "__", "_", "~~"];
const TAGS = { "***": ["strong", "em"], "**": ["strong"], "*": ["em"], ___: ["strong", "em"], __: ["strong"], _: ["em"], "~~": ["del"] };

export function inline(text, depth = 0) {
  return new InlineReader(text, depth).read();
}

class InlineReader {
  constructor(text, depth) {
    this.text = text;
    this.depth = depth;
    this.at = 0;
    this.nodes = [];
    this.plain = "";
    this.unclosed = new Set();  // marks with no closer from here on: never searched again, which keeps this linear
  }

  read() {
    while (this.at < this.text.length) this.step();
    this.flush();
    return this.nodes;
  }

  step() {
    const run = this.match(PLAIN);
    if (run) this.plain += run[0];
    else if (!this.lineBreak() && !this.escape() && !this.code() && !this.link() && !this.url() && !this.emphasis()) this.literal();
  }

  match(pattern) {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text);
    if (found) this.at = pattern.lastIndex;
    return found;
  }

  literal() {
    this.plain += this.text[this.at];
    this.at += 1;
  }

  flush() {
    if (this.plain) this.nodes.push(document.createTextNode(this.plain));
    this.plain = "";
  }

  push(node) {
    this.flush();
    this.nodes.push(node);
    return true;
  }

  lineBreak() {
    if (this.text[this.at] !== "\n") return false;
    this.at += 1;
    return this.push(h("br"));  // models mean the line breaks they write
  }

  escape() {
    const found = this.match(ESCAPE);
    if (found) this.plain += found[1];
    return found !== null;
  }

  code() {
    const ticks = this.match(TICKS);
    if (!ticks) return false;
    const close = this.closingTicks(ticks[0]);
    if (close < 0) { this.plain += ticks[0]; return true; }
    const inner = this.text.slice(this.at, close);
    this.at = close + ticks[0].length;
    return this.push(h("code", {}, /^ .* $/.test(inner) ? inner.slice(1, -1) : inner));
  }

  closingTicks(ticks) {
    if (this.unclosed.has(ticks)) return -1;
    for (let from = this.at; ;) {
      const close = this.text.indexOf(ticks, from);
      if (close < 0) { this.unclosed.add(ticks); return -1; }
      let end = close + ticks.length;
      while (this.text[end] === "`") end += 1;
      if (end === close + ticks.length) return close;
      from = end;
    }
  }

  link() {
    const found = "[!".includes(this.text[this.at]) ? this.match(LINK) : null;
    if (!found) return false;
    const [whole, image, label, target] = found;
    if (!SAFE_LINK.test(target)) { this.plain += whole; return true; }
    const content = this.depth < MAX_DEPTH ? inline(label, this.depth + 1) : [label];
    // An image would be fetched from wherever the model says: it becomes a link that the reader may follow.
    return this.push(anchor(target, image ? [label || "image", " ↗"] : content));
  }

  url() {
    const found = this.match(BARE_URL);
    return found !== null && this.push(anchor(found[0], [found[0]]));
  }

  emphasis() {
    const mark = MARKS.find((candidate) => this.text.startsWith(candidate, this.at));
    if (!mark) return false;
    const close = this.opens(mark) ? this.closingMark(mark) : -1;
    if (close < 0) { this.plain += mark; this.at += mark.length; return true; }
    const inner = inline(this.text.slice(this.at + mark.length, close), this.depth + 1);
    this.at = close + mark.length;
    return this.push(TAGS[mark].reduceRight((content, tag) => [h(tag, {}, content)], inner)[0]);
  }

  opens(mark) {
    const insideWord = mark[0] === "_" && isWord(this.text[this.at - 1]);
    return this.depth < MAX_DEPTH && !insideWord && !isSpace(this.text[this.at + mark.length]);
  }

  closingMark(mark) {
    if (this.unclosed.has(mark)) return -1;
    for (let from = this.at + mark.length + 1; ;) {
      const close = this.text.indexOf(mark, from);
      if (close < 0) { this.unclosed.add(mark); return -1; }
      if (this.closes(mark, close)) return close;
      from = this.pastRun(close);
    }
  }

  closes(mark, at) {
    const after = this.text[at + mark.length];
    const longerRun = after === mark[0] || (mark.length === 1 && this.text[at - 1] === mark);
    return !longerRun && !isSpace(this.text[at - 1]) && !(mark[0] === "_" && isWord(after));
  }

  pastRun(at) {
    let end = at;
    while (this.text[end] === this.text[at]) end += 1;
    return end;
  }
}

const isSpace = (char) => char === undefined || /\s/.test(char);
const isWord = (char) => char !== undefined && /[\p{L}\p{N}_]/u.test(char);

function anchor(target, content) {
  return h("a", { href: target, target: "_blank", rel: "noopener noreferrer nofollow", referrerpolicy: "no-referrer" }, content);
}
