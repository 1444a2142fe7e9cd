// The message field: grows with its text; Enter sends, and stops being "send" where a keyboard is on the glass.

import { byId, icon } from "./dom.js";

export class Composer {
  /** `actions`: send(text), stop(), editLast(), hasMore(): whether there is something to send beside the text. */
  constructor(actions) {
    Object.assign(this, { actions, text: byId("composer-text"), button: byId("send"), busy: false });
    byId("composer").addEventListener("submit", (event) => { event.preventDefault(); this.submit(); });
    this.text.addEventListener("input", () => this.fit());
    this.text.addEventListener("keydown", (event) => this.onKey(event));
  }

  submit() {
    if (this.busy) return this.actions.stop();
    const text = this.text.value.trim();
    if (!text && !this.actions.hasMore()) return;
    this.write("");
    this.actions.send(text);
  }

  write(text) {
    this.text.value = text;
    this.fit();
  }

  focus({ evenOnGlass = true } = {}) {
    // On a phone, focus would raise the keyboard over the talk that was just opened.
    if (evenOnGlass || !onGlass()) this.text.focus();
  }

  setBusy(busy) {
    this.busy = busy;
    this.button.replaceChildren(icon(busy ? "stop" : "send"));
    this.button.classList.toggle("stopping", busy);
    this.button.setAttribute("aria-label", busy ? "Stop the reply" : "Send");
    this.button.title = busy ? "Stop (Esc)" : "Send (Enter)";
  }

  fit() {
    this.text.style.height = "auto";
    this.text.style.height = `${Math.min(this.text.scrollHeight, innerHeight * 0.4)}px`;
  }

  onKey(event) {
    if (event.isComposing) return;  // Enter chooses a word of the input method
    if (event.key === "Enter" && !event.shiftKey && (event.ctrlKey || !onGlass())) {
      event.preventDefault();
      if (!this.busy) this.submit();
    }
    if (event.key === "ArrowUp" && !this.text.value && !this.busy) {
      event.preventDefault();
      this.actions.editLast();
    }
  }
}

const onGlass = () => matchMedia("(pointer: coarse)").matches;
