// What this browser keeps: conversations, one key each, and the settings. Nothing of it is sent anywhere but to /v1.

const SETTINGS = "qwen.settings";
const TALK = "qwen.talk.";
const DEFAULTS = { system: "", temperature: null, maxTokens: null, thinking: false, model: "", apiKey: "", theme: "", panel: false };

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;  // storage is blocked, or another program wrote nonsense: start fresh
  }
}

/** True when it was kept. A full storage gives up its oldest conversations first; a blocked one keeps nothing. */
function write(key, value) {
  const text = JSON.stringify(value);
  for (;;) {
    try {
      localStorage.setItem(key, text);
      return true;
    } catch (error) {
      if (error.name !== "QuotaExceededError" || !dropOldest(key)) return false;
    }
  }
}

function dropOldest(keep) {
  const oldest = allTalks().findLast((talk) => TALK + talk.id !== keep);
  if (oldest) localStorage.removeItem(TALK + oldest.id);
  return oldest !== undefined;
}

export const loadSettings = () => ({ ...DEFAULTS, ...read(SETTINGS) });
export const saveSettings = (settings) => write(SETTINGS, settings);

/** Newest first. */
export function allTalks() {
  let keys = [];
  try {
    keys = Object.keys(localStorage).filter((key) => key.startsWith(TALK));
  } catch {
    return keys;
  }
  return keys.map(read).filter(isTalk).sort((a, b) => b.changed - a.changed);
}

function isTalk(value) {
  return typeof value?.id === "string" && Array.isArray(value.messages) && value.messages.every(isMessage);
}

const isMessage = (value) => ["user", "assistant"].includes(value?.role) && typeof value.content === "string";

export function newTalk() {
  return { id: `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`, title: "", changed: Date.now(), messages: [] };
}

export function saveTalk(talk) {
  return write(TALK + talk.id, talk);
}

export function deleteTalk(id) {
  localStorage.removeItem(TALK + id);
}

/** Called when another tab changed something. */
export function onForeignChange(callback) {
  window.addEventListener("storage", (event) => event.key?.startsWith(TALK) && callback(event.key.slice(TALK.length)));
}
