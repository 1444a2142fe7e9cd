// What stands there before the first message.

import { byId, h } from "./dom.js";
import { inline } from "./inline.js";

const IDEAS = ["Explain to a curious child how a transistor works.", "Write a Python function that finds the median of a stream of numbers.",
  "Plan a vegetarian dinner for six, ready in an hour."];

export class Welcome {
  constructor(onIdea) {
    this.node = byId("welcome");
    this.promise = h("p", { class: "promise" });
    this.stopgap = h("p", { class: "promise" });
    this.node.append(h("p", { class: "greeting" }, "What is on your mind?"), this.promise, this.stopgap,
      h("div", { class: "ideas" }, IDEAS.map((idea) => h("button", { type: "button", onclick: () => onIdea(idea) }, idea))));
  }

  show(shown, { name, where }, stopgap) {
    this.node.hidden = !shown;
    document.body.classList.toggle("fresh", shown);
    this.promise.textContent = `You talk to ${name || "a model"} ${where ? `${where} of` : "on"} your own machine. What you write stays there.`;
    this.stopgap.hidden = !stopgap;
    this.stopgap.replaceChildren(...(stopgap ? [h("strong", {}, name), ": ", ...inline(stopgap)] : []));
  }
}
