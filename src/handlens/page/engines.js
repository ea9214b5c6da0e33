// Who answers: the service that the page comes from, or the browser itself. Both have the same face:
//
//   load(progress) -> facts      what is known of the model, as GET /v1/model tells it
//   predict(file) -> answer      {guesses: [{name, probability}], unknown, score, ms}; of a service {model, version} too
//   look(video) -> answer        of the frame that a <video> shows
//   save(file, name) -> boolean  whether the engine has kept a photo under its right class; "" takes it back

const TOP = 5;
const FRAME_PX = 640; // longer side of a video frame that is sent to the service

/** Something that a person can mend: `key` is a sentence of strings.js; `told` one that the service said itself. */
export class Trouble extends Error {
  constructor(key, values = {}, told = "") {
    super(told || key);
    Object.assign(this, { key, values, told });
  }
}

export class Service {
  alone = false;
  everyMs = 400; // between the live guesses, at least

  #key = sessionStorageOr("handlens-key");

  useKey(key) {
    this.#key = key;
    sessionStorageOr("handlens-key", key);
  }

  async load() {
    return this.#ask("v1/model");
  }

  async predict(file) {
    const { answers, time_ms: ms, model, version } = await this.#ask(`v1/predict?top=${TOP}`, {
      method: "POST",
      body: await bytes(file),
      headers: { "Content-Type": file.type || "application/octet-stream" },
    });
    const [answer] = answers;
    if (answer.error) throw new Trouble("noPage", {}, answer.error);
    return { ...answer, ms, model, version };
  }

  async look(video) {
    const scale = Math.min(1, FRAME_PX / Math.max(video.videoWidth, video.videoHeight));
    return this.predict(await frame(video, scale));
  }

  async save(file, name) {
    await this.#ask(`v1/corrections?name=${encodeURIComponent(name)}`, {
      method: "POST",
      body: await bytes(file),
      headers: { "Content-Type": file.type || "application/octet-stream" },
    });
    return true;
  }

  async #ask(path, options = {}) {
    const headers = { ...options.headers, ...(this.#key && { "X-API-Key": this.#key }) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, signal: AbortSignal.timeout(60_000) });
    } catch {
      throw new Trouble("noService");
    }
    const found = await response.json().catch(() => null);
    if (response.ok && found) return found;
    const told = [found?.error, found?.hint].filter(Boolean).join("; ") || `HTTP ${response.status}`;
    throw Object.assign(new Trouble("noPage", {}, told), { status: response.status });
  }
}

/** The browser itself, in a worker, so that the page answers to fingers while the network computes. */
export class Alone {
  alone = true;
  everyMs = 120;

  #worker;
  #waiting = new Map();
  #next = 0;
  #progress = () => {};

  async load(progress) {
    if (!("WebAssembly" in window)) throw new Trouble("noWasm");
    if (!("OffscreenCanvas" in window) || !("Worker" in window)) throw new Trouble("tooOld");
    this.#progress = progress;
    this.#worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data: { id, progress, result, trouble } }) => {
      if (progress) return this.#progress(...progress);
      const { resolve, reject } = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (trouble) reject(new Trouble(trouble.key, trouble.values));
      else resolve(result);
    };
    this.#worker.onerror = () => {
      for (const { reject } of this.#waiting.values()) reject(new Trouble("tooOld"));
      this.#waiting.clear();
    };
    return this.#ask("load", location.search);
  }

  predict(file) {
    return this.#ask("predict", file);
  }

  /** Keep what `load` has fetched for use offline. */
  keep() {
    return this.#ask("keep");
  }

  async look(video) {
    const bitmap = await createImageBitmap(video);
    return this.#ask("predict", bitmap, [bitmap]);
  }

  async save() {
    return false;
  }

  #ask(call, argument, transfer = []) {
    return new Promise((resolve, reject) => {
      const id = this.#next++;
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, call, argument }, transfer);
    });
  }
}

/** What a <video> shows, as a JPEG file. */
export async function frame(video, scale = 1) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(video.videoWidth * scale));
  canvas.height = Math.max(1, Math.round(video.videoHeight * scale));
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

/** A file's content; of a folder, or of one that was moved since it was chosen, there is none. */
async function bytes(file) {
  try {
    return await file.arrayBuffer();
  } catch {
    throw new Trouble("noContent");
  }
}

function sessionStorageOr(name, value) {
  try {
    if (value !== undefined) sessionStorage.setItem(name, value);
    return sessionStorage.getItem(name) ?? "";
  } catch {
    return value ?? ""; // storage may be forbidden
  }
}
