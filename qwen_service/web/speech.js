// Tells a screen reader what happens, in whole sentences, while the visible text streams in small pieces.

import { byId, h } from "./dom.js";

const SENTENCE = /^[\s\S]*?(?:[.!?。！？]["')\]]?(?=\s)|\n)/;
const KEEP = 8;  // sentences in the live region; older ones have been spoken

export class Speaker {
  constructor() {
    this.region = byId("spoken");
    this.begin();
  }

  begin() {
    this.taken = 0;
    this.inCode = false;
  }

  say(words) {
    this.region.append(h("p", {}, words));
    while (this.region.childElementCount > KEEP) this.region.firstElementChild.remove();
  }

  /** `text` is the reply so far; what has become a whole sentence since the last call is spoken. */
  follow(text) {
    for (;;) {
      const found = SENTENCE.exec(text.slice(this.taken));
      if (!found) return;
      this.taken += found[0].length;
      this.sentence(found[0].trim());
    }
  }

  finish(text) {
    this.follow(text);
    this.sentence(text.slice(this.taken).trim());
  }

  sentence(words) {
    if (/^(```|~~~)/.test(words)) {
      this.inCode = !this.inCode;
      if (this.inCode) this.say("Code block.");
    } else if (words && !this.inCode) {
      this.say(words.replace(/[*_`#>|]+/g, " "));
    }
  }
}
