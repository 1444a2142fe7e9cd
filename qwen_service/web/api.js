// The service's own HTTP API, as any OpenAI client sees it.

export class Failure extends Error {
  constructor(message, { status = 0, retryAfter = null, code = "" } = {}) {
    super(message);
    Object.assign(this, { status, retryAfter, code });
  }
}

const COME_BACK = new Set(["busy", "queue_full", "queue_timeout", "model_loading"]);
const RETRY_AFTER = 5;  // seconds
const UNREACHABLE = "The service cannot be reached. Is it running, and is this device still on its network?";
const CUT = "The reply was cut off: the connection to the service ended in the middle.";

export async function getJson(path, apiKey, signal) {
  const response = await request(path, { headers: authorization(apiKey), signal, cache: "no-store" });
  return response.json();
}

/** /health answers 503 with a body when the service is down: that body is what we want to show. */
export async function getHealth(signal) {
  const response = await fetch("health", { signal, cache: "no-store" });
  return response.json();
}

/** Yields {text}, {reasoning}, {usage}, {finish} and first {headers}; throws Failure, also in mid-stream. */
export async function* streamChat(body, { apiKey, signal }) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...authorization(apiKey) },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  yield { headers: notes(response.headers) };
  let finished = false;
  for await (const data of sseData(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw failureIn(chunk.error);
    for (const event of eventsOf(chunk)) {
      finished ||= event.finish !== undefined;
      yield event;
    }
  }
  if (!finished) throw new Failure(CUT);
}

/** What a recording says. */
export async function transcription(wav, apiKey) {
  const form = new FormData();
  form.append("file", wav, "speech.wav");
  const response = await request("v1/audio/transcriptions", { method: "POST", headers: authorization(apiKey), body: form });
  return (await response.json()).text;
}

/** Yields 16 bit samples of a text that is spoken, as they come. */
export async function* spokenText(text, { apiKey, signal }) {
  const response = await request("v1/audio/speech", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...authorization(apiKey) },
    body: JSON.stringify({ model: "tts-1", input: text, response_format: "pcm" }),
    signal,
  });
  const reader = response.body.getReader();
  let odd = new Uint8Array(0);
  for (;;) {
    const { value, done } = await reader.read().catch(asCut);
    if (done) return;
    const bytes = new Uint8Array([...odd, ...value]);
    odd = bytes.slice(bytes.length - (bytes.length % 2));
    if (bytes.length > 1) yield new Int16Array(bytes.buffer, 0, bytes.length >> 1);
  }
}

/** An error in the stream has no status: what came too late for one is told by its code. */
function failureIn(error) {
  const code = error.code ?? "";
  const patience = COME_BACK.has(code) ? { status: 503, retryAfter: RETRY_AFTER } : {};
  return new Failure(error.message ?? String(error), { code, ...patience });
}

export function authorization(apiKey) {
  return apiKey ? { Authorization: `Bearer ${apiKey}` } : {};
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Failure(UNREACHABLE);
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

async function failureOf(response) {
  const text = await response.text();
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  return new Failure(messageIn(text) ?? `The service answered with status ${response.status}.`, { status: response.status, retryAfter });
}

function messageIn(text) {
  try {
    const { error, detail } = JSON.parse(text);
    return error?.message ?? (typeof error === "string" ? error : detail) ?? null;
  } catch {
    return null;
  }
}

function notes(headers) {
  return {
    ignored: (headers.get("X-Ignored-Parameters") ?? "").split(/[,\s]+/).filter(Boolean),
    trimmed: Number(headers.get("X-Context-Trimmed-Messages")) || 0,
    servedBy: headers.get("X-Served-By") ?? "",
  };
}

function* eventsOf(chunk) {
  const choice = chunk.choices?.[0];
  if (choice?.delta?.reasoning_content) yield { reasoning: choice.delta.reasoning_content };
  if (choice?.delta?.content) yield { text: choice.delta.content };
  if (choice?.finish_reason) yield { finish: choice.finish_reason };
  if (chunk.usage) yield { usage: chunk.usage, model: chunk.model };
}

async function* sseData(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read().catch(asCut);
    if (done) return;
    const lines = (held + value).split("\n");
    held = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

function asCut(error) {
  throw error.name === "AbortError" ? error : new Failure(CUT);
}
