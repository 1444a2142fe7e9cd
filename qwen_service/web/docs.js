// The reference: made from openapi.json, with a form to try each route.

import { Failure, authorization, getJson } from "./api.js";
import { codeBlock } from "./code.js";
import { byId, h } from "./dom.js";
import { Schemas } from "./docs.schema.js";
import { loadSettings, saveSettings } from "./store.js";

const ADMINISTRATION = "administration";  // the service refuses these to web pages
const settings = loadSettings();

show();

async function show() {
  const routes = byId("routes");
  try {
    const [description, models] = await Promise.all(["openapi.json", "v1/models"].map((path) => getJson(path, settings.apiKey)));
    routes.replaceChildren(...groups(description, new Schemas(description, nameOfModel(models.data))));
    showKeyField(false);
    openNamedRoute();
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    routes.replaceChildren(h("p", { class: "failed", role: "alert" }, failure.message));
    showKeyField(failure.status === 401);
  }
}

function showKeyField(needed) {
  if (!needed && !settings.apiKey) return byId("key").replaceChildren();
  const input = h("input", { type: "password", autocomplete: "off", value: settings.apiKey });
  const use = (event) => {
    event.preventDefault();
    settings.apiKey = input.value.trim();
    saveSettings({ ...loadSettings(), apiKey: settings.apiKey });
    show();
  };
  byId("key").replaceChildren(h("form", { class: "key", onsubmit: use }, h("label", {}, "API key", input), h("button", { class: "pill strong" }, "Use this key")));
}

const nameOfModel = (models) => (models.find(({ state }) => state === "loaded") ?? models[0])?.id ?? "";

function groups(description, schemas) {
  const byTag = new Map();
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags?.[0] ?? "other";
      byTag.set(tag, [...(byTag.get(tag) ?? []), route(path, method, operation, schemas)]);
    }
  }
  return [...byTag].map(([tag, routes]) => h("section", {}, h("h2", {}, tag[0].toUpperCase() + tag.slice(1)), routes));
}

function route(path, method, operation, schemas) {
  const details = h("details", { class: "route", id: `${method}${path.replace(/[^a-z0-9]+/gi, "-")}` },
    h("summary", {}, h("span", { class: "method", "data-method": method }, method.toUpperCase()), h("code", {}, path), h("span", {}, operation.summary ?? "")));
  details.addEventListener("toggle", () => details.append(inside(path, method, operation, schemas)), { once: true });
  return details;
}

function openNamedRoute() {
  const named = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!named) return;
  named.open = true;
  named.scrollIntoView();
}

function inside(path, method, operation, schemas) {
  const body = jsonSchema(operation.requestBody);
  const answer = jsonSchema(operation.responses?.[200]);
  return h("div", { class: "inside" },
    tryIt(path, method, operation, body && asText(schemas.sample(body))),
    body && [h("h3", {}, "Fields of the body"), fieldTable(schemas.fields(body))],
    answer?.$ref && h("details", {}, h("summary", {}, "Fields of the answer"), fieldTable(schemas.fields(answer))));
}

const jsonSchema = (holder) => holder?.content?.["application/json"]?.schema;

function fieldTable(fields) {
  return h("table", { class: "fields" }, h("tbody", {}, fields.map(({ name, type, description, required }) =>
    h("tr", {}, h("td", {}, name, required && h("i", {}, "needed")), h("td", {}, type), h("td", {}, description)))));
}

function tryIt(path, method, operation, sample) {
  const parameters = (operation.parameters ?? []).map(({ name }) => [name, h("input", { required: true, value: "" })]);
  const text = sample && h("textarea", { rows: sample.split("\n").length, spellcheck: "false" });
  if (text) text.value = sample;
  const call = () => ({
    url: new URL(parameters.reduce((url, [name, input]) => url.replace(`{${name}}`, encodeURIComponent(input.value)), path.slice(1)), document.baseURI).href,
    method: method.toUpperCase(),
    body: text?.value,
  });
  const curl = h("div", {});
  const answer = h("div", { role: "status" });
  const showCurl = () => curl.replaceChildren(codeBlock(asCurl(call()), "sh"));
  showCurl();
  const send = operation.tags?.[0] === ADMINISTRATION ? null : h("button", { class: "pill strong" }, "Send");
  const submit = (event) => {
    event.preventDefault();
    if (send) ask(call(), send, answer);
  };
  return h("form", { class: "try", onsubmit: submit, oninput: showCurl },
    parameters.map(([name, input]) => h("label", {}, name, input)),
    text && h("label", {}, "Body to send", text),
    send && h("div", {}, send), answer, curl);
}

function asCurl({ url, method, body }) {
  const quoted = (string) => `'${string.replaceAll("'", String.raw`'\''`)}'`;
  const parts = [`curl ${quoted(url)}`];
  if (method !== (body ? "POST" : "GET")) parts[0] += ` -X ${method}`;
  if (settings.apiKey) parts.push(`-H "Authorization: Bearer $API_KEY"`);
  if (body) parts.push("-H 'Content-Type: application/json'", `-d ${quoted(body)}`);
  return parts.join(" \\\n  ");
}

/** Shows the answer while it comes. The button stops it. */
async function ask({ url, method, body }, button, place) {
  if (button.stop) return button.stop();
  const aborter = new AbortController();
  const caption = h("figcaption", {}, "…");
  const output = h("code");
  place.replaceChildren(h("figure", { class: "code answer" }, caption, h("pre", { tabindex: "0" }, output)));
  button.stop = () => aborter.abort();
  button.textContent = "Stop";
  try {
    const headers = { ...authorization(settings.apiKey), ...(body ? { "Content-Type": "application/json" } : {}) };
    const began = performance.now();
    const response = await fetch(url, { method, headers, body, signal: aborter.signal });
    caption.textContent = `${response.status} ${response.statusText} after ${Math.round(performance.now() - began)} ms`;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let read = await reader.read(); !read.done; read = await reader.read()) output.append(read.value);
    if (response.headers.get("Content-Type") === "application/json") output.textContent = indented(output.textContent);
  } catch (error) {
    caption.textContent = error.name === "AbortError" ? "Stopped" : `The connection failed: ${error.message}`;
  } finally {
    button.stop = null;
    button.textContent = "Send";
  }
}

const asText = (value) => JSON.stringify(value, null, 2);
const indented = (json) => asText(JSON.parse(json));
