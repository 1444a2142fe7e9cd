// The settings sheet. What the running model cannot honour is greyed out and says why.

import { h, iconButton } from "./dom.js";

const LENGTHS = [64, 128, 256, 512, 1024, 2048, 4096];
const THEMES = [["", "As the system"], ["light", "Light"], ["dark", "Dark"]];
const SHORTCUTS = [["Enter", "send"], ["Shift Enter", "new line"], ["Esc", "stop the reply"], ["↑", "edit your last message"],
  ["Alt N", "new conversation"], ["Alt R", "answer again"], ["/", "go to the message field"], ["Alt P", "open the charts"]];

export class SettingsSheet {
  /** `honours(parameter)` of the model; `onChange(settings)` after each change; `forgetAll()` deletes the conversations. */
  constructor(dialog, settings, { models, honours, onChange, forgetAll }) {
    Object.assign(this, { dialog, settings, models, honours, onChange, forgetAll });
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  }

  open(field) {
    this.build();
    this.dialog.showModal();
    if (field) this.dialog.querySelector(`#set-${field}`)?.focus();
  }

  change(name, value) {
    this.settings[name] = value;
    this.onChange(this.settings);
  }

  build() {
    const close = iconButton("close", "Close the settings", () => this.dialog.close());
    this.dialog.replaceChildren(
      h("div", { class: "sheet-head" }, h("h2", { id: "settings-title" }, "Settings"), close),
      h("div", { class: "sheet-body" }, this.model(), this.system(), this.temperature(), this.length(), this.thinking(),
        this.theme(), this.apiKey(), this.shortcuts(), this.forget()));
  }

  model() {
    const choices = [["", "Whichever is loaded"], ...this.models.entries.map(({ id, state }) => [id, state && state !== "loaded" ? `${id} (${state})` : id])];
    const select = h("select", { id: "set-model", onchange: () => this.change("model", select.value) },
      choices.map(([value, name]) => h("option", { value, selected: value === this.settings.model }, name)));
    return field("set-model", "Model", select);
  }

  system() {
    const area = h("textarea", { id: "set-system", rows: 4, placeholder: "Who the model should be, what it should know, how it should answer",
      oninput: () => this.change("system", area.value) });
    area.value = this.settings.system;
    return field("set-system", "System prompt", area, "Goes before every conversation, from the next message on.");
  }

  temperature() {
    const values = Array.from({ length: 21 }, (_, i) => i / 10);
    return this.range("temperature", "Temperature", values, (value) => value.toFixed(1), "Low repeats what is likely, high is more inventive.",
      this.honours("temperature") ? "" : "The runtime of this model samples the way it was set up when it started; it takes no temperature with a question.");
  }

  length() {
    return this.range("maxTokens", "Longest reply", LENGTHS, (value) => `${value} tokens`, "A token is about three quarters of an English word.");
  }

  /** `why` says why it cannot be set; empty where it can. */
  range(name, label, values, say, hint, why = "") {
    const id = `set-${name}`;
    const able = !why;
    const output = h("output", { for: id });
    const slider = h("input", { id, type: "range", min: 0, max: values.length - 1, step: 1, disabled: !able });
    const reset = h("button", { class: "link", type: "button", disabled: !able }, "Use the model's own");
    const show = () => {
      const value = this.settings[name];
      slider.value = value === null ? Math.floor(values.length / 2) : Math.max(0, values.indexOf(value));
      slider.classList.toggle("unset", value === null);
      output.textContent = value === null || !able ? "the model's own" : say(value);
      slider.setAttribute("aria-valuetext", output.textContent);
      reset.hidden = value === null;
    };
    slider.addEventListener("input", () => { this.change(name, values[Number(slider.value)]); show(); });
    reset.addEventListener("click", () => { this.change(name, null); show(); slider.focus(); });
    show();
    return field(id, label, h("div", { class: "range" }, slider, output), why || hint, reset, !able);
  }

  thinking() {
    const box = h("input", { id: "set-thinking", type: "checkbox", role: "switch", checked: this.settings.thinking,
      onchange: () => this.change("thinking", box.checked) });
    return h("div", { class: "field switch" }, h("label", { for: "set-thinking" }, "Think before answering"), box,
      h("p", { class: "hint" }, "Better at hard questions, and slower. Only models that can think do."));
  }

  theme() {
    const options = THEMES.map(([value, name]) => {
      const radio = h("input", { type: "radio", name: "theme", value, checked: this.settings.theme === value,
        onchange: () => this.change("theme", value) });
      return h("label", {}, radio, h("span", {}, name));
    });
    return h("fieldset", { class: "field choice" }, h("legend", {}, "Appearance"), h("div", { class: "segments" }, options));
  }

  apiKey() {
    const input = h("input", { id: "set-apiKey", type: "password", autocomplete: "off", spellcheck: "false",
      onchange: () => this.change("apiKey", input.value.trim()) });
    input.value = this.settings.apiKey;
    return field("set-apiKey", "API key", input, "Only where the service asks for one. Kept in this browser.");
  }

  shortcuts() {
    return h("details", { class: "field keys" }, h("summary", {}, "Keys"),
      h("dl", {}, SHORTCUTS.map(([key, what]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)))));
  }

  forget() {
    const button = h("button", { class: "pill danger", type: "button" }, "Delete all conversations");
    button.addEventListener("click", () => {
      if (button.classList.contains("sure")) { this.forgetAll(); this.dialog.close(); return; }
      button.classList.add("sure");
      button.textContent = "Press again: this cannot be undone";
    });
    return h("div", { class: "field" }, button);
  }
}

function field(id, label, control, hint, extra, disabled = false) {
  if (hint) (control.matches("div") ? control.firstChild : control).setAttribute("aria-describedby", `${id}-hint`);
  return h("div", { class: disabled ? "field off" : "field" }, h("div", { class: "field-head" }, h("label", { for: id }, label), extra),
    control, hint && h("p", { class: "hint", id: `${id}-hint` }, hint));
}
