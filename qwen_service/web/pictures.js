// The pictures that the next message takes along: by paste, drop or button, made small enough to send and to keep.

import { byId, h, icon } from "./dom.js";

const SIDE = 1280;  // px; models see fewer
const QUALITY = 0.85;
const MOST = 4;

export class Pictures {
  /** `say(words)` tells what did not work. */
  constructor(say) {
    Object.assign(this, { say, uris: [], strip: byId("pictures"), file: byId("attach-file") });
    byId("attach").addEventListener("click", () => this.file.click());
    this.file.addEventListener("change", () => { this.add(this.file.files); this.file.value = ""; });
    byId("composer-text").addEventListener("paste", (event) => this.onPaste(event));
    document.addEventListener("dragover", (event) => hasFiles(event.dataTransfer) && event.preventDefault());
    document.addEventListener("drop", (event) => this.onDrop(event));
  }

  /** The button is there for models that see. What is pasted for another is sent, and the service says which ones do. */
  offer(offered) {
    byId("attach").hidden = !offered;
  }

  take() {
    const taken = this.uris;
    this.uris = [];
    this.draw();
    return taken;
  }

  onPaste(event) {
    if (this.add(event.clipboardData.files)) event.preventDefault();
  }

  onDrop(event) {
    if (!hasFiles(event.dataTransfer)) return;
    event.preventDefault();
    this.add(event.dataTransfer.files);
  }

  /** Whether there were any among these files. */
  add(files) {
    const pictures = [...files].filter((file) => file.type.startsWith("image/"));
    this.adding = this.addAll(pictures);
    return pictures.length > 0;
  }

  async addAll(files) {
    for (const file of files) {
      if (this.uris.length >= MOST) { this.say(`A message takes up to ${MOST} pictures.`); break; }
      const uri = await smaller(file).catch(() => null);
      if (uri) this.uris.push(uri);
      else this.say(`${file.name || "This"} is no picture that this browser can read.`);
    }
    this.draw();
  }

  draw() {
    this.strip.hidden = !this.uris.length;
    this.strip.replaceChildren(...this.uris.map((uri, index) => this.thumbnail(uri, index)));
  }

  thumbnail(uri, index) {
    const remove = h("button", { class: "icon-button", type: "button", "aria-label": "Leave this picture out", onclick: () => this.drop(index) }, icon("close"));
    return h("figure", { class: "picture" }, h("img", { src: uri, alt: `Picture ${index + 1} of the next message` }), remove);
  }

  drop(index) {
    this.uris.splice(index, 1);
    this.draw();
  }
}

const hasFiles = (transfer) => [...(transfer?.types ?? [])].includes("Files");

async function smaller(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = h("canvas", { width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale)) });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";  // JPEG has no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return canvas.toDataURL("image/jpeg", QUALITY);
}
