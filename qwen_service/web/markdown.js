// Markdown -> DOM nodes. The text comes from a model and is hostile: no HTML is ever parsed, links go to http, https
// and mailto only, images become links, and every step is linear in the length of the text.

import { h } from "./dom.js";
import { codeBlock } from "./code.js";
import { inline } from "./inline.js";

const MAX_DEPTH = 10;
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t](.*))?$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:( {1,4})(?=\S)| *$)/;
const TABLE_RULE = /^:?-+:?$/;
const BLANK = /^[ \t]*$/;

/** Shows `text` in `container`. Called again with a longer text it renders only the blocks that changed. */
export function renderMarkdown(container, text) {
  const blocks = parseBlocks(text.split("\n"), 0);
  const shown = container.markdownBlocks ?? [];
  let same = 0;
  while (same < blocks.length && same < shown.length && blocks[same].source === shown[same].source) same += 1;
  for (const stale of shown.slice(same)) stale.node.remove();
  for (const block of blocks.slice(same)) container.append(block.node = block.build());
  container.markdownBlocks = [...shown.slice(0, same), ...blocks.slice(same)];
}

function parseBlocks(lines, depth) {
  const blocks = [];
  for (let at = 0; at < lines.length;) {
    if (BLANK.test(lines[at])) { at += 1; continue; }
    const [end, build] = blockAt(lines, at, depth);
    blocks.push({ source: lines.slice(at, end).join("\n"), build });
    at = end;
  }
  return blocks;
}

const nodesOf = (lines, depth) => parseBlocks(lines, depth).map((block) => block.build());

function blockAt(lines, at, depth) {
  if (depth >= MAX_DEPTH) return paragraph(lines, at);
  const line = lines[at];
  if (FENCE.test(line)) return fence(lines, at);
  if (HEADING.test(line)) return heading(lines, at);
  if (RULE.test(line)) return [at + 1, () => h("hr")];
  if (QUOTE.test(line)) return quote(lines, at, depth);
  if (ITEM.test(line)) return list(lines, at, depth);
  if (isTable(lines, at)) return table(lines, at);
  return paragraph(lines, at);
}

function heading(lines, at) {
  const [, marks, rest = ""] = HEADING.exec(lines[at]);
  const title = rest.trim().replace(/(^|[^#])#+$/, "$1");
  // The page's own title is h1, so the model's headings start below it.
  return [at + 1, () => h(`h${Math.min(6, marks.length + 1)}`, {}, inline(title))];
}

function fence(lines, at) {
  const [, marks, info] = FENCE.exec(lines[at]);
  const closing = new RegExp(`^ {0,3}\\${marks[0]}{${marks.length},}\\s*$`);
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) end += 1;
  const code = lines.slice(at + 1, end).join("\n");
  return [Math.min(end + 1, lines.length), () => codeBlock(code, info.trim().split(/\s+/)[0])];
}

function quote(lines, at, depth) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [end, () => h("blockquote", {}, nodesOf(inner, depth + 1))];
}

function paragraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && !interruptsParagraph(lines, end)) end += 1;
  return [end, () => h("p", {}, inline(lines.slice(at, end).join("\n")))];
}

function interruptsParagraph(lines, at) {
  const line = lines[at];
  return [BLANK, FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(line)) || isTable(lines, at);
}

function list(lines, at, depth) {
  const ordered = /\d/.test(ITEM.exec(lines[at])[2]);
  const items = [];
  let end = at;
  while (end < lines.length && startsItem(lines[end], ordered)) {
    const next = itemEnd(lines, end);
    items.push(itemLines(lines.slice(end, next)));
    end = next;
    if (startsItem(lines[skipBlank(lines, end)] ?? "", ordered)) end = skipBlank(lines, end);
  }
  const start = ordered ? parseInt(ITEM.exec(lines[at])[2], 10) : 1;
  return [end, () => h(ordered ? "ol" : "ul", start === 1 ? {} : { start }, items.map((item) => listItem(item, depth)))];
}

function startsItem(line, ordered) {
  const match = ITEM.exec(line);
  return match !== null && !RULE.test(line) && /\d/.test(match[2]) === ordered;
}

function skipBlank(lines, at) {
  while (at < lines.length && BLANK.test(lines[at])) at += 1;
  return at;
}

function itemEnd(lines, at) {
  const width = contentColumn(lines[at]);
  let end = at + 1;
  while (end < lines.length) {
    const next = skipBlank(lines, end);
    if (next >= lines.length) return end;
    const indented = indentOf(lines[next]) >= Math.min(width, 2);
    if (!indented && (next > end || interruptsParagraph(lines, next))) return end;
    end = next + 1;
  }
  return end;
}

const indentOf = (line) => line.length - line.trimStart().length;

function contentColumn(line) {
  const [, lead, mark, gap = " "] = ITEM.exec(line);
  return lead.length + mark.length + gap.length;
}

function itemLines(lines) {
  const width = contentColumn(lines[0]);
  return [lines[0].slice(width), ...lines.slice(1).map((line) => line.slice(Math.min(width, indentOf(line))))];
}

function listItem(lines, depth) {
  const task = /^\[([ xX])\] /.exec(lines[0]);
  if (task) lines = [lines[0].slice(4), ...lines.slice(1)];
  const nodes = nodesOf(lines, depth + 1);
  const tight = nodes[0]?.tagName === "P" && !lines.some((line) => BLANK.test(line));
  const content = tight ? [...nodes[0].childNodes, ...nodes.slice(1)] : nodes;
  return task ? h("li", { class: "task" }, h("input", taskBox(task[1] !== " ")), content) : h("li", {}, content);
}

const taskBox = (done) => ({ type: "checkbox", disabled: true, checked: done, "aria-label": done ? "done" : "to do" });

function isTable(lines, at) {
  const next = lines[at + 1];
  if (!lines[at].includes("|") || !next?.includes("-")) return false;
  const rule = cells(next);
  return rule.every((cell) => TABLE_RULE.test(cell)) && cells(lines[at]).length === rule.length;
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function table(lines, at) {
  const head = cells(lines[at]);
  const align = cells(lines[at + 1]).map((rule) => alignment(rule));
  let end = at + 2;
  while (end < lines.length && !BLANK.test(lines[end]) && lines[end].includes("|")) end += 1;
  const body = lines.slice(at + 2, end).map((line) => cells(line).slice(0, head.length));
  const row = (tag, texts) => h("tr", {}, texts.map((text, i) => h(tag, { class: align[i] }, inline(text))));
  return [end, () => h("div", { class: "table-frame", tabindex: "0", role: "group", "aria-label": "Table" },
    h("table", {}, h("thead", {}, row("th", head)), h("tbody", {}, body.map((texts) => row("td", texts)))))];
}

function alignment(rule) {
  if (rule.endsWith(":")) return rule.startsWith(":") ? "centre" : "right";
  return "left";
}
