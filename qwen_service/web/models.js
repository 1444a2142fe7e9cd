// What the service can answer with, and which settings that honours.

import { getJson } from "./api.js";

export class Models {
  constructor(onLoad) {
    this.entries = [];
    this.onLoad = onLoad;
  }

  /** A service that does not answer now is asked again when it is well. */
  async load(apiKey) {
    const answer = await getJson("v1/models", apiKey).catch(() => null);
    this.entries = answer?.data.filter(chats) ?? this.entries;
    this.onLoad();
  }

  /** What is better than this model, where it is only a stopgap. */
  stopgap(name) {
    return (this.entries.find(({ id }) => id === name) ?? this.entries[0])?.stopgap ?? "";
  }

  sees(name) {
    return Boolean((this.entries.find(({ id }) => id === name) ?? this.entries[0])?.capabilities?.includes("vision"));
  }

  honours(name, parameter) {
    const model = this.entries.find(({ id }) => id === name) ?? this.entries[0];
    const known = model?.sampling && model.state === "loaded";  // an engine that does not run names nothing
    return !known || model.sampling.includes(parameter);
  }
}

/** A model for embeddings does not. */
function chats({ capabilities }) {
  return capabilities?.includes("completion") ?? true;
}
