// One reply: asks, measures, waits where waiting helps, and fills a message. Knows nothing of the screen.

import { Failure, streamChat } from "./api.js";
import { tokensIn } from "./figures.js";
import { pause } from "./health.js";

const MOST_RETRIES = 5;
const LONGEST_WAIT = 30;  // seconds; a longer Retry-After is shown as an error instead

export const newReply = () => ({ role: "assistant", content: "", reasoning: "", state: "running" });

export class Reply {
  /** `onChange(event)` is called after every change of `message`. */
  constructor({ message, body, apiKey, health, onChange }) {
    Object.assign(this, { message, body, apiKey, health, onChange });
    this.abort = new AbortController();
    this.pieces = [];  // [when, how many tokens it may be]
  }

  stop() {
    this.abort.abort();
  }

  async run() {
    this.health.setWaiting(true);
    this.watch = setInterval(() => this.lookAtQueue(), 1000);
    try {
      await this.askUntilTaken();
      this.message.state = "done";
    } catch (error) {
      this.fail(error);
    } finally {
      clearInterval(this.watch);
      this.health.setWaiting(false);
      this.message.waiting = "";
      this.onChange({ ended: true });
    }
  }

  fail(error) {
    if (this.abort.signal.aborted) {
      this.message.state = "stopped";
    } else {
      this.message.state = "failed";
      this.message.error = error instanceof Failure ? error.message : `This page failed: ${error.message}`;
      this.message.status = error.status ?? 0;
    }
  }

  async askUntilTaken() {
    for (let attempt = 0; ; attempt += 1) {
      try {
        return await this.ask();
      } catch (error) {
        if (this.firstToken || attempt >= MOST_RETRIES || !await this.worthWaiting(error)) throw error;
      }
    }
  }

  /** Waits and returns true where the service only asked for patience. */
  async worthWaiting(error) {
    if (![429, 503].includes(error.status)) return false;
    const { level } = await this.health.now();
    if (level === "loading") {
      this.say("Your message is kept. It is sent as soon as the model is ready.");
      await this.health.untilReady(this.abort.signal);
      return true;
    }
    if (level === "down" || error.retryAfter === null || error.retryAfter > LONGEST_WAIT) return false;
    this.say(`The line is full. Trying again in ${Math.ceil(error.retryAfter)} s.`);
    await pause(error.retryAfter * 1000, this.abort.signal);
    return true;
  }

  async ask() {
    this.say("");
    this.begun = performance.now();
    for await (const event of streamChat(this.body, { apiKey: this.apiKey, signal: this.abort.signal })) {
      this.take(event);
      this.onChange(event);
    }
  }

  take({ headers, text, reasoning, finish, usage, model }) {
    const stats = (this.message.stats ??= {});
    if (headers) Object.assign(stats, headers);
    if (reasoning) this.message.reasoning += reasoning;
    if (text) this.message.content += text;
    if (text || reasoning) this.measure(text, tokensIn(text ?? reasoning));
    if (finish) stats.finish = finish;
    if (usage) this.count(usage, model);
  }

  measure(text, tokens) {
    const now = performance.now();
    this.firstToken ??= now;
    this.pieces.push([now, tokens]);
    if (text && this.message.reasoning) this.message.thoughtFor ??= now - this.begun;
    Object.assign(this.message.stats, { ttft: this.firstToken - this.begun, tps: this.recentRate() });
  }

  /** Tokens per second over the last five seconds, estimated until the usage at the end tells the truth. */
  recentRate() {
    const now = this.pieces.at(-1)[0];
    const [first, ...rest] = this.pieces.filter(([time]) => time > now - 5000);
    const span = now - first[0];
    return span > 500 ? (rest.reduce((sum, [, tokens]) => sum + tokens, 0) * 1000) / span : null;  // less is noise
  }

  count(usage, model) {
    const { stats } = this.message;
    const span = this.pieces.length ? this.pieces.at(-1)[0] - this.firstToken : 0;
    Object.assign(stats, { model, prompt: usage.prompt_tokens, completion: usage.completion_tokens,
      cached: usage.prompt_tokens_details?.cached_tokens ?? null });
    if (span > 0 && usage.completion_tokens > 1) stats.tps = ((usage.completion_tokens - 1) * 1000) / span;
  }

  lookAtQueue() {
    if (this.firstToken || this.message.waiting) return;
    const { waiting = 0 } = this.health.state.queue;
    const ahead = this.ahead = Math.min(this.ahead ?? Infinity, Math.max(0, waiting - 1));
    const seconds = Math.round((performance.now() - this.begun) / 1000);
    const line = waiting > 0 ? (ahead > 0 ? `In line, about ${ahead} before you` : "Next in line") : "Reading your message";
    this.onChange({ line: `${line} · ${seconds} s` });
    this.message.line = `${line} · ${seconds} s`;
  }

  say(words) {
    this.message.waiting = words;
    this.onChange({});
  }
}

/** The request that OpenAI's API takes, with only those settings that the model honours. */
export function requestBody(talk, settings, honoured) {
  const history = talk.messages.filter((message) => message.content || message.images?.length)
    .map(({ role, content, images }) => ({ role, content: images?.length ? withPictures(content, images) : content }));
  const system = settings.system.trim() ? [{ role: "system", content: settings.system }] : [];
  return {
    messages: [...system, ...history],
    ...(settings.model && { model: settings.model }),
    ...(settings.temperature !== null && honoured("temperature") && { temperature: settings.temperature }),
    ...(settings.maxTokens !== null && { max_tokens: settings.maxTokens }),
    ...(settings.thinking && { chat_template_kwargs: { enable_thinking: true } }),
  };
}

function withPictures(text, images) {
  const pictures = images.map((url) => ({ type: "image_url", image_url: { url } }));
  return text ? [...pictures, { type: "text", text }] : pictures;
}
