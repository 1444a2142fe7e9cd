// The conversation on the screen: one list item per message, updated in place while a reply streams.

import { copyButton, h, icon, iconButton } from "./dom.js";
import { inline } from "./inline.js";
import { renderMarkdown } from "./markdown.js";
import { seconds, speed } from "./figures.js";

export class TalkView {
  /** `actions`: edit(index, text), regenerate(), openSettings(), listen(text), canSpeak(). */
  constructor(list, actions) {
    Object.assign(this, { list, actions, turns: [] });
  }

  show(messages) {
    this.turns = messages.map((message, index) => this.turnFor(message, index));
    this.list.replaceChildren(...this.turns.map((turn) => turn.node));
    this.markLast();
  }

  add(message) {
    const turn = this.turnFor(message, this.turns.length);
    this.turns.push(turn);
    this.list.append(turn.node);
    this.markLast();
  }

  refresh(message) {
    this.turns.find((turn) => turn.message === message)?.update();
  }

  /** Something that all turns show has changed. */
  update() {
    for (const turn of this.turns) turn.update();
  }

  editLast() {
    this.turns.findLast((turn) => turn instanceof UserTurn)?.edit();
  }

  turnFor(message, index) {
    return message.role === "user" ? new UserTurn(message, index, this.actions) : new AssistantTurn(message, this.actions);
  }

  markLast() {
    this.turns.forEach((turn, i) => turn.node.classList.toggle("last", i === this.turns.length - 1));
  }
}

class UserTurn {
  constructor(message, index, actions) {
    Object.assign(this, { message, index, actions });
    this.node = h("li", { class: "turn user" });
    this.read();
  }

  read() {
    this.editButton = iconButton("edit", "Edit and send again", () => this.edit());
    this.node.replaceChildren(h("h2", { class: "unseen" }, "You"), ...this.pictures(), this.message.content ? h("div", { class: "bubble" }, this.message.content) : "",
      h("div", { class: "tools" }, this.editButton, copyButton("Copy your message", () => this.message.content)));
  }

  pictures() {
    return (this.message.images ?? []).map((src, i) => h("img", { class: "sent-picture", src, alt: `Picture ${i + 1} that you sent` }));
  }

  edit() {
    const area = h("textarea", { class: "edit-text", "aria-label": "Edit your message", onkeydown: (event) => this.onKey(event, area) });
    area.value = this.message.content;
    const send = h("button", { class: "pill strong", type: "button", onclick: () => this.send(area) }, "Send again");
    const cancel = h("button", { class: "pill", type: "button", onclick: () => this.cancel() }, "Cancel");
    const hint = h("span", { class: "hint" }, "What follows it is replaced.");
    this.node.replaceChildren(h("div", { class: "edit" }, area, h("div", { class: "edit-tools" }, hint, cancel, send)));
    area.style.height = `${Math.min(area.scrollHeight + 4, innerHeight / 2)}px`;
    area.focus();
  }

  onKey(event, area) {
    if (event.isComposing) return;
    if (event.key === "Escape") { event.stopPropagation(); this.cancel(); }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey || !event.shiftKey)) { event.preventDefault(); this.send(area); }
  }

  send(area) {
    if (area.value.trim() || this.message.images?.length) this.actions.edit(this.index, area.value.trim());
  }

  cancel() {
    this.read();
    this.editButton.focus();
  }

  update() {}
}

class AssistantTurn {
  constructor(message, actions) {
    Object.assign(this, { message, actions });
    this.thought = h("div", { class: "prose" });
    this.thoughtTitle = h("summary", {});
    this.thinking = h("details", { class: "thinking" }, this.thoughtTitle, this.thought);
    this.prose = h("div", { class: "prose" });
    this.waiting = h("p", { class: "waiting" });
    this.after = h("div", { class: "after" });
    this.node = h("li", { class: "turn assistant" }, h("h2", { class: "unseen" }, "Reply"),
      this.thinking, this.prose, this.waiting, this.after);
    this.thinking.addEventListener("toggle", () => this.update());
    this.update();
  }

  update() {
    const { content, state } = this.message;
    this.node.classList.toggle("running", state === "running");
    this.updateThinking();
    renderMarkdown(this.prose, content);
    this.updateWaiting();
    if (state !== "running") this.finish();
  }

  updateThinking() {
    const { reasoning, thoughtFor, content, state } = this.message;
    this.thinking.hidden = !reasoning;
    const thinks = state === "running" && !content;
    this.thoughtTitle.textContent = thinks ? "Thinking" : thoughtFor ? `Thought for ${seconds(thoughtFor)}` : "Thoughts";
    this.thoughtTitle.classList.toggle("live", thinks);
    if (this.thinking.open) renderMarkdown(this.thought, reasoning);
  }

  updateWaiting() {
    const { content, reasoning, state, waiting, line } = this.message;
    this.waiting.hidden = state !== "running" || Boolean(content || reasoning);
    this.waiting.textContent = waiting || line || "Sent";
  }

  finish() {
    this.after.replaceChildren(...this.notes(), this.tools());
  }

  notes() {
    const { state, error, stats = {}, content } = this.message;
    const notes = [];
    if (state === "failed") notes.push(this.failure(error));
    if (state === "stopped") notes.push(note("Stopped."));
    if (state === "interrupted") notes.push(note("This page was closed before the reply was complete."));
    if (stats.finish === "length") notes.push(note("The reply reached its longest allowed length. “Continue” goes on from here."));
    if (stats.trimmed) notes.push(note(`The oldest ${stats.trimmed === 1 ? "message" : `${stats.trimmed} messages`} no longer fit and were left out.`));
    if (stats.ignored?.length) notes.push(note(`This model's runtime does not take: ${stats.ignored.join(", ")}.`));
    if (state === "done" && !content) notes.push(note("The model ended without a word."));
    return notes;
  }

  failure(error) {
    const key = this.message.status === 401 &&
      h("button", { class: "pill", type: "button", onclick: () => this.actions.openSettings("apiKey") }, "Enter the API key");
    const again = h("button", { class: "pill", type: "button", onclick: () => this.actions.regenerate() }, "Try again");
    return h("div", { class: "failure", role: "alert" }, h("p", {}, inline(error)), h("div", { class: "failure-tools" }, key, again));
  }

  tools() {
    const { stats = {}, content, state } = this.message;
    if (state === "failed" && !content) return "";  // the failure has its own button
    const goOn = stats.finish === "length" &&
      h("button", { class: "pill", type: "button", onclick: () => this.actions.continueReply() }, "Continue");
    return h("div", { class: "tools" }, h("span", { class: "figures" }, figuresOf(stats)), goOn,
      content && this.actions.canSpeak() && iconButton("listen", "Listen", () => this.actions.listen(content)),
      content && copyButton("Copy the reply", () => content), this.again());
  }

  again() {
    const button = iconButton("again", "Answer again", () => this.actions.regenerate());
    button.classList.add("only-last");
    return button;
  }
}

const note = (words) => h("p", { class: "note" }, words);

function figuresOf({ tps, ttft, completion, servedBy }) {
  return [speed(tps), ttft && `first token ${seconds(ttft)}`, completion && `${completion} tokens`,
    /fallback/.test(servedBy ?? "") && "answered by the CPU stand-in"].filter(Boolean).join(" · ");
}
