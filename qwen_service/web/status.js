// The quiet line under the message field, the panel of charts that it opens, and the notice above.

import { chart, History, Pulse } from "./charts.js";
import { byId, h } from "./dom.js";
import { gigabytes, seconds, speed } from "./figures.js";
import { inline } from "./inline.js";

const NOTICE = 6000;  // ms

export class Status {
  constructor() {
    this.line = byId("status");
    this.panel = byId("panel");
    this.notice = byId("notice");
    this.history = new History();
    this.pulse = new Pulse();
    this.health = { level: "unknown", headline: "Connecting", model: {}, queue: {}, cards: [] };
    this.stats = {};
    this.words = h("span", { class: "words" });
    this.dot = h("span", { class: "dot", "aria-hidden": "true" });
    this.line.append(this.dot, this.words, this.pulse.node, h("span", { class: "unseen" }, "Open or close the charts"));
    setInterval(() => this.tick(), 500);
  }

  get open() {
    return !this.panel.hidden;
  }

  toggle(open = !this.open) {
    this.panel.hidden = !open;
    this.line.setAttribute("aria-expanded", String(open));
    if (open) this.drawPanel();
  }

  setHealth(health) {
    this.health = health;
    const [card] = health.cards;
    this.history.add("running", (health.queue.running ?? 0) + (health.queue.waiting ?? 0));
    if (card) {
      this.history.add("temperature", card.heat);
      this.history.add("memory", card.used / 1_048_576);
    }
    this.draw();
  }

  setStats(stats, live) {
    this.stats = stats;
    if (live && stats.tps) this.history.add("speed", stats.tps);
    if (this.live && !live) this.history.add("speed", 0);
    this.live = live;
    this.drawLine();
  }

  beat(tokens) {
    this.pulse.beat(tokens);
  }

  tick() {
    const moving = this.pulse.tick();
    this.pulse.node.classList.toggle("moving", moving);
    if (this.open) this.drawPanel();
  }

  draw() {
    this.drawLine();
    this.drawNotice();
    if (this.open) this.drawPanel();
  }

  drawLine() {
    this.dot.dataset.level = this.health.level;
    this.words.replaceChildren(...this.items().map(([kind, text]) => h("span", { class: `item ${kind}` }, text)));
  }

  items() {
    const { level, headline, name, where, cards, queue } = this.health;
    const { tps, ttft, prompt, cached } = this.stats;
    const known = level === "ok" || level === "degraded" || level === "loading";
    return [
      ["name", known ? [name || "Ready", where].filter(Boolean).join(" ") : headline],
      ["speed", speed(tps)],
      ["ttft", ttft ? `first token ${seconds(ttft)}` : ""],
      ["prompt", prompt ? `prompt ${prompt}${cached ? `, ${cached} cached` : ""}` : ""],
      ["line", queue.waiting ? `${queue.waiting} in line` : ""],
      ...cards.flatMap((card) => cardItems(card).filter(([kind]) => kind !== "load")),
    ].filter(([, text]) => text);
  }

  drawNotice() {
    const { level, headline, detail, progress } = this.health;
    const quiet = level === "ok" || level === "unknown";
    const key = JSON.stringify([level, headline, detail, progress]);
    if (this.noticed === key) return;  // a live region: told once, not at every look at /health
    this.noticed = key;
    this.notice.hidden = quiet;
    this.notice.dataset.level = level;
    if (quiet) { this.notice.replaceChildren(); return; }
    const bar = level === "loading" && h("progress", { "aria-label": headline, ...(progress == null ? {} : { value: progress, max: 1 }) });
    this.notice.replaceChildren(h("strong", {}, headline), detail ? h("span", {}, inline(detail)) : "", bar || "");
  }

  /** What did not work, for a while; then the notice is of the service again. */
  tell(words) {
    clearTimeout(this.telling);
    this.noticed = words;
    this.notice.hidden = false;
    this.notice.dataset.level = "degraded";
    this.notice.replaceChildren(h("span", {}, words));
    this.telling = setTimeout(() => { this.noticed = null; this.drawNotice(); }, NOTICE);
  }

  drawPanel() {
    const { cards, queue } = this.health;
    const charts = [
      chart({ title: "Speed", unit: " tok/s", digits: 1, floor: 5, steps: true }, this.history.get("speed")),
      chart({ title: "In work and in line", unit: "", floor: 2, steps: true }, this.history.get("running")),
    ];
    if (cards.length) charts.push(
      chart({ title: "Card temperature", unit: " °C", floor: 60 }, this.history.get("temperature")),
      chart({ title: "Card memory", unit: " GB", digits: 1, floor: cards[0].total / 1_048_576 / 1.1 }, this.history.get("memory")));
    this.panel.replaceChildren(h("div", { class: "charts" }, charts), this.facts(queue, cards));
  }

  facts(queue, cards) {
    const { model, name, where } = this.health;
    const { ttft, prompt, cached, completion } = this.stats;
    const rows = [
      ["Model", [name, where].filter(Boolean).join(" ")],
      ["State", [model.state, model.restarts ? `${model.restarts} restarts` : ""].filter(Boolean).join(", ")],
      ["Queue", `${queue.running ?? 0} running, ${queue.waiting ?? 0} waiting`],
      ["Last reply", [ttft && `first token ${seconds(ttft)}`, completion && `${completion} tokens`].filter(Boolean).join(", ")],
      ["Last prompt", prompt ? `${prompt} tokens, ${cached ?? 0} from the cache` : ""],
      ...cards.map((card, i) => [cards.length > 1 ? `Card ${i}` : "Card", cardItems(card).map(([, text]) => text).join(", ")]),
    ];
    return h("dl", { class: "facts" }, rows.filter(([, text]) => text).map(([term, text]) => h("div", {}, h("dt", {}, term), h("dd", {}, text))));
  }
}

function cardItems({ heat, used, total, busy }) {
  return [["heat", heat == null ? "" : `${Math.round(heat)} °C`],
    ["memory", total ? `${gigabytes(used)} / ${gigabytes(total)} GB` : ""],
    ["load", busy == null ? "" : `${Math.round(busy)} % busy`]].filter(([, text]) => text);
}
