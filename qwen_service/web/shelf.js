// The list of conversations.

import { h, iconButton } from "./dom.js";
import { dayName } from "./figures.js";

export class Shelf {
  /** `actions`: open(talk), remove(talk). */
  constructor(container, actions) {
    Object.assign(this, { container, actions });
  }

  show(talks, currentId, runningIds) {
    const groups = groupByDay(talks);
    const sections = [...groups].map(([day, members]) => h("section", { "aria-label": day },
      h("h2", {}, day), h("ul", { role: "list" }, members.map((talk) => this.entry(talk, talk.id === currentId, runningIds.has(talk.id))))));
    this.container.replaceChildren(...(sections.length ? sections : [h("p", { class: "hint" }, "Conversations will appear here.")]));
  }

  entry(talk, current, running) {
    const open = h("button", { class: `entry${running ? " live" : ""}`, type: "button", "aria-current": current ? "true" : null,
      onclick: () => this.actions.open(talk) }, talk.title || "New conversation");
    const remove = iconButton("trash", `Delete “${talk.title}”`, () => this.confirm(remove, talk));
    return h("li", {}, open, remove);
  }

  confirm(button, talk) {
    if (button.classList.contains("sure")) return this.actions.remove(talk);
    button.classList.add("sure");
    button.setAttribute("aria-label", `Press again to delete “${talk.title}”`);
    button.title = "Press again to delete";
    button.addEventListener("blur", () => { button.classList.remove("sure"); button.title = "Delete"; }, { once: true });
  }
}

function groupByDay(talks) {
  const groups = new Map();
  for (const talk of talks) groups.set(dayName(talk.changed), [...(groups.get(dayName(talk.changed)) ?? []), talk]);
  return groups;
}
