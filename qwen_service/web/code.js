// A code block: language, copy, and just enough colour to read by.

import { copyButton, h } from "./dom.js";

const HASH_COMMENTS = /^(?:py|python|sh|bash|zsh|shell|console|ya?ml|toml|ini|conf|rb|ruby|r|perl|make|makefile|dockerfile|cmake)$/;
const SLASH_COMMENTS = /^(?:c|cc|cpp|c\+\+|h|hpp|cs|csharp|java|js|jsx|mjs|ts|tsx|javascript|typescript|go|rust|rs|swift|kotlin|kt|php|dart|scala|zig|css|scss|json|jsonc)$/;
const DASH_COMMENTS = /^(?:sql|lua|haskell|hs)$/;
// Bounded, and an open comment runs to the end: no hostile text makes these patterns slow.
const STRING = String.raw`"(?:[^"\\\n]|\\.){0,400}"|'(?:[^'\\\n]|\\.){0,400}'`;
const KEYWORDS = "and|as|assert|async|await|break|case|catch|class|const|continue|def|default|del|do|elif|else|enum|except|export|extends|extern|false|False|final|finally|fn|for|from|func|function|if|impl|implements|import|in|interface|is|lambda|let|loop|match|mod|mut|new|nil|None|not|null|or|package|pass|private|protected|pub|public|raise|return|static|struct|super|switch|then|throw|trait|true|True|try|type|typeof|undefined|use|using|var|void|while|with|yield|fi|done|esac|SELECT|FROM|WHERE|JOIN|ON|GROUP|ORDER|BY|INSERT|INTO|VALUES|UPDATE|SET|DELETE|CREATE|TABLE|LIMIT|AND|OR|NOT";

export function codeBlock(code, language) {
  const head = h("figcaption", {}, h("span", {}, language || "text"), copyButton("Copy the code", () => code));
  const body = h("pre", { tabindex: "0", "aria-label": `Code, ${language || "text"}` }, h("code", {}, highlight(code, language.toLowerCase())));
  return h("figure", { class: "code" }, head, body);
}

function highlight(code, language) {
  const comment = commentPattern(language);
  if (!comment || code.length > 50_000) return [code];
  const pattern = new RegExp(`(${comment})|(${STRING})|\\b(${KEYWORDS})\\b|\\b(\\d[\\w.]*)`, "g");
  const nodes = [];
  let at = 0;
  for (const found of code.matchAll(pattern)) {
    nodes.push(code.slice(at, found.index), h("span", { class: tokenClass(found) }, found[0]));
    at = found.index + found[0].length;
  }
  return [...nodes, code.slice(at)];
}

function commentPattern(language) {
  if (HASH_COMMENTS.test(language)) return String.raw`(?<![\w$])#[^\n]*|"""[\s\S]*?(?:"""|$)`;
  if (SLASH_COMMENTS.test(language)) return String.raw`\/\/[^\n]*|\/\*[\s\S]*?(?:\*\/|$)`;
  return DASH_COMMENTS.test(language) ? String.raw`--[^\n]*` : null;
}

function tokenClass([, comment, string, keyword]) {
  if (comment) return "comment";
  if (string) return "string";
  return keyword ? "keyword" : "number";
}
