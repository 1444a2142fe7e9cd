// The composition of the page: which conversation is shown, which replies run, and what the keys do.

import { Composer } from "./composer.js";
import { byId, icon } from "./dom.js";
import { tokensIn } from "./figures.js";
import { HealthWatch } from "./health.js";
import { Models } from "./models.js";
import { Pictures } from "./pictures.js";
import { newReply, Reply, requestBody } from "./reply.js";
import { SettingsSheet } from "./settings.js";
import { Shelf } from "./shelf.js";
import { Speaker } from "./speech.js";
import { Status } from "./status.js";
import { Ear, Voice } from "./voice.js";
import * as store from "./store.js";
import { TalkView } from "./talk.js";
import { Welcome } from "./welcome.js";

const SAVE_EVERY = 1000;  // ms, while a reply streams
const LEAVING = 3000;  // ms
const NEAR_END = 80;  // px

class Page {
  constructor() {
    this.settings = store.loadSettings();
    this.talk = store.newTalk();
    this.replies = new Map();  // talk id -> running Reply
    this.models = new Models(() => this.drawWelcome());
    this.leftAt = 0;
    this.status = new Status();
    this.speaker = new Speaker();
    this.health = new HealthWatch((health) => this.onHealth(health));
    this.view = new TalkView(byId("talk"), {
      edit: (index, text) => this.editAndSend(index, text),
      regenerate: () => this.regenerate(),
      continueReply: () => this.send("Continue."),
      openSettings: (field) => this.sheet.open(field),
      listen: (text) => this.listenTo(text),
      canSpeak: () => this.canSpeak,
    });
    this.shelf = new Shelf(byId("shelf-list"), { open: (talk) => this.open(talk), remove: (talk) => this.remove(talk) });
    this.sheet = new SettingsSheet(byId("settings"), this.settings, {
      models: this.models, honours: (parameter) => this.honours(parameter), onChange: () => this.onSettings(), forgetAll: () => this.forgetAll(),
    });
    this.composer = new Composer({ send: (text) => this.send(text, this.pictures.take()), stop: () => this.stop(), editLast: () => this.view.editLast(),
      hasMore: () => this.pictures.uris.length > 0 });
    this.pictures = new Pictures((words) => this.tell(words));
    this.ear = new Ear({ apiKey: () => this.settings.apiKey, say: (words) => this.tell(words),
      heard: (text) => { this.composer.write(`${this.composer.text.value} ${text}`.trim()); this.composer.focus(); } });
    this.voice = new Voice((words) => this.tell(words));
    this.welcome = new Welcome((idea) => { this.composer.write(idea); this.composer.focus(); });
    this.scroller = byId("scroller");
  }

  start() {
    drawIcons();
    this.listen();
    if (this.settings.panel) this.togglePanel(true);
    const latest = store.allTalks()[0];
    this.open(latest && location.hash !== "#new" ? latest : store.newTalk());
    this.health.now();
    this.models.load(this.settings.apiKey);
  }

  honours(parameter) {
    return this.models.honours(this.settings.model || this.health.state.name, parameter);
  }

  listen() {
    this.scroller.addEventListener("scroll", () => this.onScroll());
    document.addEventListener("keydown", (event) => this.onKey(event));
    for (const id of ["new-talk", "bar-new"]) byId(id).addEventListener("click", () => this.startNew());
    for (const id of ["shelf-open", "shelf-close"]) byId(id).addEventListener("click", () => this.toggleShelf());
    byId("settings-open").addEventListener("click", () => this.sheet.open());
    byId("status").addEventListener("click", () => this.togglePanel());
    byId("latest").addEventListener("click", () => this.scrollToEnd());
    window.addEventListener("beforeunload", () => this.onLeaving());
    store.onForeignChange((id) => this.onForeignChange(id));
  }

  // --- which conversation ---

  open(talk) {
    this.talk = this.replies.get(talk.id)?.talk ?? talk;
    for (const message of this.talk.messages) {
      if (message.state === "running" && !this.replies.has(talk.id)) message.state = "interrupted";
    }
    this.following = true;
    this.view.show(this.talk.messages);
    this.status.setStats(this.talk.messages.findLast((message) => message.stats)?.stats ?? {}, false);
    this.draw();
    this.scrollToEnd();
    document.body.classList.remove("shelf-shown");
    this.composer.focus({ evenOnGlass: false });
  }

  startNew() {
    this.open(store.newTalk());
  }

  remove(talk) {
    this.replies.get(talk.id)?.stop();
    store.deleteTalk(talk.id);
    if (talk.id === this.talk.id) this.startNew();
    else this.drawShelf();
  }

  forgetAll() {
    for (const reply of this.replies.values()) reply.stop();
    for (const talk of store.allTalks()) store.deleteTalk(talk.id);
    this.startNew();
  }

  onForeignChange(id) {
    const changed = store.allTalks().find((talk) => talk.id === id);
    if (changed && id === this.talk.id && !this.replies.has(id)) this.open(changed);
    else this.drawShelf();
  }

  // --- talking ---

  send(text, images = []) {
    const message = { role: "user", content: text, ...(images.length && { images }) };
    this.talk.title ||= titleFrom(text || "A picture");
    this.talk.messages.push(message);
    this.view.add(message);
    this.answer();
  }

  editAndSend(index, text) {
    this.stop();
    const { images } = this.talk.messages[index];
    this.talk.messages.length = index;
    if (index === 0) this.talk.title = "";
    this.view.show(this.talk.messages);
    this.send(text, images);
    this.composer.focus();
  }

  regenerate() {
    if (this.running) return;
    while (this.talk.messages.at(-1)?.role === "assistant") this.talk.messages.pop();
    if (!this.talk.messages.length) return;
    this.view.show(this.talk.messages);
    this.answer();
  }

  /** A second press stops it. */
  listenTo(text) {
    if (this.listening === text) { this.voice.stop(); this.listening = ""; return; }
    this.listening = text;
    this.voice.play(text, this.settings.apiKey).finally(() => { if (this.listening === text) this.listening = ""; });
  }

  tell(words) {
    this.speaker.say(words);
    this.status.tell(words);
  }

  get running() {
    return this.replies.get(this.talk.id);
  }

  stop() {
    this.running?.stop();
  }

  answer() {
    const { talk } = this;
    const body = requestBody(talk, this.settings, (parameter) => this.honours(parameter));
    const message = newReply();
    talk.messages.push(message);
    this.view.add(message);
    const reply = new Reply({ message, body, apiKey: this.settings.apiKey, health: this.health,
      onChange: (event) => this.onReply(reply, event) });
    reply.talk = talk;
    this.replies.set(talk.id, reply);
    this.keep(talk);
    this.following = true;
    this.speaker.begin();
    this.speaker.say("Message sent.");
    this.draw();
    this.scrollToEnd();
    reply.run();
  }

  onReply(reply, event) {
    const { talk, message } = reply;
    if (event.text || event.reasoning) this.status.beat(tokensIn(event.text ?? event.reasoning));
    if (event.ended) this.onEnded(reply);
    else if (Date.now() - (reply.savedAt ?? 0) > SAVE_EVERY) { reply.savedAt = Date.now(); store.saveTalk(talk); }
    if (talk.id === this.talk.id) this.drawSoon(message);
  }

  onLeaving() {
    this.leftAt = Date.now();
    for (const { talk } of this.replies.values()) store.saveTalk(talk);
  }

  onEnded({ talk, message }) {
    // A reload breaks the stream before it takes the page away: that is no failure of the service.
    if (message.state === "failed" && Date.now() - this.leftAt < LEAVING) message.state = "interrupted";
    if (this.replies.get(talk.id)?.message === message) this.replies.delete(talk.id);
    this.keep(talk);
    if (talk.id === this.talk.id) this.speaker.finish(message.state === "failed" ? "" : message.content);
    this.draw();
  }

  keep(talk) {
    if (!talk.messages.length) return;
    talk.changed = Date.now();
    if (!store.saveTalk(talk)) byId("title").title = "This browser does not keep the conversation: its storage is blocked.";
  }

  // --- the machine and the settings ---

  onHealth(health) {
    const cameBack = health.level === "ok" && this.wasLevel !== "ok";
    this.wasLevel = health.level;
    this.status.setHealth(health);
    this.drawWelcome();
    this.offerSenses(health.speech ?? {});
    if (cameBack) this.models.load(this.settings.apiKey);
  }

  offerSenses({ speech_to_text: ears, text_to_speech: voice }) {
    this.ear.offer(ears?.state === "ready");
    const canSpeak = voice?.state === "ready";
    if (canSpeak !== Boolean(this.canSpeak)) { this.canSpeak = canSpeak; this.view.update(); }
  }

  onSettings() {
    store.saveSettings(this.settings);
    document.documentElement.dataset.theme = this.settings.theme;
    if (this.settings.apiKey !== this.keyUsed) { this.keyUsed = this.settings.apiKey; this.models.load(this.keyUsed); }
  }

  // --- the screen ---

  drawSoon(message) {
    this.toDraw = message;
    if (this.drawing) return;
    this.drawing = true;
    // Hidden tabs get no animation frames: a timer keeps the talk current there.
    (document.hidden ? setTimeout : requestAnimationFrame)(() => this.drawReply());
  }

  drawReply() {
    this.drawing = false;
    const message = this.toDraw;
    this.view.refresh(message);
    if (message.stats) this.status.setStats(message.stats, message.state === "running");
    if (message.state === "running") this.speaker.follow(message.content);
    if (this.following) this.scrollToEnd();
  }

  draw() {
    byId("title").textContent = this.talk.title || "New conversation";
    document.title = this.talk.title ? `${this.talk.title} · Qwen` : "Qwen";
    this.composer.setBusy(Boolean(this.running));
    this.drawWelcome();
    this.drawShelf();
  }

  drawShelf() {
    this.shelf.show(store.allTalks(), this.talk.id, new Set(this.replies.keys()));
  }

  drawWelcome() {
    const { state } = this.health;
    this.pictures.offer(this.models.sees(this.settings.model || state.name));
    this.welcome.show(this.talk.messages.length === 0, state, this.models.stopgap(this.settings.model || state.name));
  }

  onScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroller;
    this.following = scrollHeight - scrollTop - clientHeight < NEAR_END;
    byId("latest").hidden = this.following;
  }

  scrollToEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  toggleShelf() {
    const narrow = matchMedia("(max-width: 899px)").matches;
    const shown = document.body.classList.toggle(narrow ? "shelf-shown" : "shelf-hidden") === narrow;
    byId(narrow && shown ? "shelf-close" : "shelf-open").focus();
  }

  togglePanel(open) {
    this.status.toggle(open);
    this.health.watched = this.settings.panel = this.status.open;
    store.saveSettings(this.settings);
    if (this.following) this.scrollToEnd();
    this.health.now();
  }

  // --- keys ---

  onKey(event) {
    if (event.key === "Escape" && !byId("settings").open) this.escape();
    if (event.altKey && !event.ctrlKey) this.onAltKey(event);
    if (event.key === "/" && !isTyping(event.target)) { event.preventDefault(); this.composer.focus(); }
  }

  escape() {
    if (document.body.classList.contains("shelf-shown")) this.toggleShelf();
    else this.stop();
  }

  onAltKey(event) {
    const action = { KeyN: () => this.startNew(), KeyR: () => this.regenerate(), KeyP: () => this.togglePanel() }[event.code];
    if (action) { event.preventDefault(); action(); }
  }
}

const isTyping = (node) => node.matches("input, textarea, select");

function titleFrom(text) {
  const line = text.split("\n", 1)[0].trim();
  return line.length > 60 ? `${line.slice(0, 57).trimEnd()}…` : line;
}

function drawIcons() {
  const icons = { "shelf-open": "menu", "shelf-close": "close", "bar-new": "plus", "settings-open": "sliders", latest: "down", attach: "picture", hold: "ear" };
  for (const [id, name] of Object.entries(icons)) byId(id).prepend(icon(name));
}

new Page().start();
