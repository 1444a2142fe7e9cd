// What stands there before the first message.

import { byId, h } from "./dom.js";
import { inline } from "./inline.js";

const IDEAS = ["Explain to a curious child how a transistor works.", "Write a Python function that finds the median of a stream of numbers.",
  "Plan a vegetarian dinner for six, ready in an hour."];

const NO_MODEL = "The service runs, and has no model to run yet. In a terminal of its machine, `qwen-service setup` chooses one that fits and installs it"
  + " (`sudo qwen-service setup` where the Debian package is installed). This page goes on as soon as there is one.";

export class Welcome {
  constructor(onIdea) {
    this.node = byId("welcome");
    this.promise = h("p", { class: "promise" });
    this.stopgap = h("p", { class: "promise" });
    this.greeting = h("p", { class: "greeting" });
    this.ideas = h("div", { class: "ideas" }, IDEAS.map((idea) => h("button", { type: "button", onclick: () => onIdea(idea) }, idea)));
    this.node.append(this.greeting, this.promise, this.stopgap, this.ideas);
  }

  show(shown, { name, where, model }, stopgap) {
    this.node.hidden = !shown;
    document.body.classList.toggle("fresh", shown);
    this.ideas.hidden = model.state === "none";
    this.greeting.textContent = this.ideas.hidden ? "First, a model." : "What is on your mind?";
    if (this.ideas.hidden) return this.promise.replaceChildren(...inline(NO_MODEL));
    this.promise.textContent = `You talk to ${name || "a model"} ${where ? `${where} of` : "on"} your own machine. What you write stays there.`;
    this.stopgap.hidden = !stopgap;
    this.stopgap.replaceChildren(...(stopgap ? [h("strong", {}, name), ": ", ...inline(stopgap)] : []));
  }
}
