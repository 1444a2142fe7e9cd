// Asks /health at a pace that fits the moment, and says in plain words what it means.

import { getHealth } from "./api.js";

const PACE = { waiting: 1000, watched: 3000, idle: 10_000 };  // ms

export class HealthWatch {
  constructor(onChange) {
    this.onChange = onChange;
    this.waiting = 0;  // replies that somebody waits for
    this.watched = false;  // the panel is open
    this.state = { level: "unknown", headline: "Connecting", detail: "", model: {}, queue: {}, cards: [] };
    document.addEventListener("visibilitychange", () => !document.hidden && this.now());
  }

  /** Somebody waits for a reply, or no longer does. */
  setWaiting(waiting) {
    this.waiting += waiting ? 1 : -1;
    this.now();
  }

  /** Ask at once; resolves to the state. Who asks meanwhile gets the same answer. */
  now() {
    clearTimeout(this.timer);
    this.asking ??= this.ask().finally(() => { this.asking = null; });
    return this.asking;
  }

  async ask() {
    this.state = await readHealth();
    this.onChange(this.state);
    clearTimeout(this.timer);
    if (!document.hidden) this.timer = setTimeout(() => this.now(), this.pace());
    return this.state;
  }

  pace() {
    if (this.waiting || this.state.level === "loading" || this.state.level === "down") return PACE.waiting;
    return this.watched ? PACE.watched : PACE.idle;
  }

  /** Resolves when a question can be taken; rejects with the signal's reason when the wait is given up. */
  async untilReady(signal) {
    for (;;) {
      signal.throwIfAborted();
      const { level } = await this.now();
      if (level === "ok" || level === "degraded") return;
      await pause(PACE.waiting, signal);
    }
  }
}

export function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}

async function readHealth() {
  try {
    return describe(await getHealth(AbortSignal.timeout(5000)));
  } catch {
    return { level: "unreachable", headline: "The service cannot be reached", model: {}, queue: {}, cards: [],
      detail: "Is it running, and is this device still on its network? On its machine: ./scripts/start_qwen.sh, or sudo systemctl status qwen." };
  }
}

export function describe({ status, details = {} }) {
  const model = details.model ?? {};
  const cards = (details.npu?.cards ?? []).map(cardOf);
  const common = { model, cards, queue: details.queue ?? {}, speech: details.speech ?? {}, where: placeOf(model), name: model.name ?? "" };
  return { ...common, ...verdict(status, model, cards, details) };
}

function cardOf({ temperature_celsius: heat, cmm_used_kib: used, cmm_total_kib: total, npu_percent: busy, reason }) {
  return { heat, used, total, busy, reason };
}

function verdict(status, model, cards, details) {
  const name = model.name || "The model";
  const reason = details.trouble || model.error || cards.find((card) => card.reason)?.reason || details.npu?.error || "";
  if (status === "ok") return { level: "ok", headline: "", detail: "" };
  if (status === "degraded") return { level: "degraded", ...limits(details.fallback, reason) };
  if (isLoading(model)) {
    return { level: "loading", headline: `${name} is loading`, detail: progressWords(model), progress: fraction(model.progress) };
  }
  const headline = model.state === "none" ? "No model yet" : `${name} is down`;
  return { level: "down", headline, detail: reason || "The service gave no reason. Its log has more: journalctl -u qwen, or service.log." };
}

function limits(fallback, reason) {
  const headline = fallback ? `${fallback.name} on the CPU answers meanwhile` : "Running with limits";
  return { headline, detail: reason || "/health tells what is missing." };
}

const isLoading = (model) => ["loading", "starting", "restarting"].includes(model.state);

function progressWords({ progress, state, restarts, error }) {
  const step = typeof progress === "string" ? progress.replace(/^loading\s*/i, "").replace("/", " of ") : "";
  const again = state === "restarting" || restarts > 0 ? `Started again after: ${error || "a failure"}` : "";
  return [step, again].filter(Boolean).join(" · ");
}

/** 0..1, or null when how far it is cannot be known. */
function fraction(progress) {
  if (typeof progress === "number") return progress > 1 ? progress / 100 : progress;
  const found = /(\d+)\s*\/\s*(\d+)/.exec(progress ?? "");
  return found && Number(found[2]) > 0 ? Number(found[1]) / Number(found[2]) : null;
}

function placeOf({ runtime = "" }) {
  if (/^ax/.test(runtime)) return "on the card";
  return runtime ? "on the CPU" : "";
}
