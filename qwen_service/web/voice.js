// Hold to talk, and listen to a reply: where the service has ears and a voice.

import { spokenText, transcription } from "./api.js";
import { byId } from "./dom.js";

const EAR_RATE = 16_000;  // Hz, of what is sent
const VOICE_RATE = 24_000;  // Hz, of what comes
const SHORTEST = 300;  // ms; less is a click

/** The button that is held while one talks; `heard(text)` gets what was said, `say(words)` what did not work. */
export class Ear {
  constructor({ apiKey, heard, say }) {
    Object.assign(this, { apiKey, heard, say, button: byId("hold") });
    this.button.addEventListener("pointerdown", (event) => { event.preventDefault(); this.button.setPointerCapture(event.pointerId); this.begin(); });
    for (const name of ["pointerup", "pointercancel"]) this.button.addEventListener(name, () => this.end());
    this.button.addEventListener("keydown", (event) => isPress(event) && !event.repeat && (event.preventDefault(), this.begin()));
    this.button.addEventListener("keyup", (event) => isPress(event) && this.end());
  }

  /** Browsers give the microphone to pages of this machine and of https only. */
  offer(offered) {
    this.button.hidden = !(offered && navigator.mediaDevices?.getUserMedia);
  }

  async begin() {
    this.held = true;
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      if (this.held) this.record(stream);
      else stop(stream);
    } catch {
      this.say("This browser does not give the microphone to this page.");
    }
  }

  record(stream) {
    const parts = [];
    const begun = performance.now();
    this.recorder = new MediaRecorder(stream);
    this.recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
    this.recorder.addEventListener("stop", () => {
      stop(stream);
      if (performance.now() - begun > SHORTEST) this.send(new Blob(parts));
    });
    this.recorder.start();
    this.button.classList.add("live");
  }

  end() {
    this.held = false;
    this.button.classList.remove("live");
    if (this.recorder?.state === "recording") this.recorder.stop();
  }

  async send(blob) {
    this.button.disabled = true;
    try {
      this.heard(await transcription(await asWav(blob), this.apiKey()));
    } catch (error) {
      this.say(error.message);
    } finally {
      this.button.disabled = false;
    }
  }
}

/** Plays a text while it is made. */
export class Voice {
  constructor(say) {
    this.say = say;
  }

  stop() {
    this.abort?.abort();
    this.context?.close();
    this.context = this.abort = null;
  }

  /** Resolves when all has been heard, or it was stopped. */
  async play(text, apiKey) {
    this.stop();
    const abort = this.abort = new AbortController();
    const context = this.context = new AudioContext({ sampleRate: VOICE_RATE });
    let at = context.currentTime;
    try {
      for await (const samples of spokenText(text, { apiKey, signal: abort.signal })) {
        if (abort.signal.aborted) return;
        at = schedule(context, samples, Math.max(at, context.currentTime + 0.05));
      }
      await new Promise((resolve) => { setTimeout(resolve, (at - context.currentTime) * 1000); abort.signal.addEventListener("abort", resolve); });
    } catch (error) {
      if (!abort.signal.aborted) this.say(error.message);
    } finally {
      if (this.abort === abort) this.stop();
    }
  }
}

function schedule(context, samples, at) {
  const buffer = context.createBuffer(1, samples.length, VOICE_RATE);
  buffer.copyToChannel(Float32Array.from(samples, (sample) => sample / 32768), 0);
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  source.start(at);
  return at + buffer.duration;
}

const isPress = (event) => event.key === " " || event.key === "Enter";
const stop = (stream) => stream.getTracks().forEach((track) => track.stop());

/** One channel, 16 bit: what every speech program takes, without a converter. */
async function asWav(blob) {
  const context = new OfflineAudioContext(1, 1, EAR_RATE);
  const sound = await context.decodeAudioData(await blob.arrayBuffer());  // resampled on the way
  const channel = sound.getChannelData(0);
  const wav = new DataView(new ArrayBuffer(44 + channel.length * 2));
  const words = (at, text) => [...text].forEach((letter, i) => wav.setUint8(at + i, letter.charCodeAt(0)));
  words(0, "RIFF"); words(8, "WAVEfmt "); words(36, "data");
  wav.setUint32(4, 36 + channel.length * 2, true); wav.setUint32(16, 16, true); wav.setUint16(20, 1, true); wav.setUint16(22, 1, true);
  wav.setUint32(24, EAR_RATE, true); wav.setUint32(28, EAR_RATE * 2, true); wav.setUint16(32, 2, true); wav.setUint16(34, 16, true);
  wav.setUint32(40, channel.length * 2, true);
  channel.forEach((value, i) => wav.setInt16(44 + i * 2, Math.max(-1, Math.min(1, value)) * 32767, true));
  return new Blob([wav], { type: "audio/wav" });
}
