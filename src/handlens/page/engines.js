// Who answers: the service that the page comes from, or the browser itself. Both have the same face:
//
//   load(progress) -> facts      what is known of the model, as GET /v1/model tells it
//   predict(file) -> answer      {guesses: [{name, probability}], unknown, score, ms}; of a service {model, version} too
//   look(video) -> answer        of the frame that a <video> shows
//   save(file, name) -> boolean  whether the engine has kept a photo under its right class; "" takes it back

const TOP = 5;
const FRAME_PX = 640; // longer side of a video frame that is sent to the service

// What the service's refusals mean to a person: sentences of strings.js by status. Its own words are for programs.
const REFUSALS = {
  400: "unread",
  403: "notFromHere",
  408: "tooSlow",
  413: "tooLarge",
  415: "unread",
  422: "unread",
  503: "busy",
  507: "noRoom",
};
const BYTES = { "Content-Type": "application/octet-stream" }; // whatever the file's name says: it is taken as a photo

/** Something that a person can mend: `key` is a sentence of strings.js; `status` the service's, if it refused. */
export class Trouble extends Error {
  constructor(key, values = {}, status = 0) {
    super(key);
    Object.assign(this, { key, values, status });
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
      headers: BYTES,
    });
    return { ...answers[0], ms, model, version };
  }

  async look(video) {
    const scale = Math.min(1, FRAME_PX / Math.max(video.videoWidth, video.videoHeight));
    return this.predict(await frame(video, scale));
  }

  async save(file, name) {
    const options = { method: "POST", body: await bytes(file), headers: BYTES };
    const refusals = { ...REFUSALS, 400: "noClass", 403: "keepsNone" };
    await this.#ask(`v1/corrections?name=${encodeURIComponent(name)}`, options, refusals);
    return true;
  }

  async #ask(path, options = {}, refusals = REFUSALS) {
    const headers = { ...options.headers, ...(this.#key && { "X-API-Key": this.#key }) };
    let response;
    try {
      response = await fetch(path, { ...options, headers, signal: AbortSignal.timeout(60_000) });
    } catch {
      throw new Trouble("noService");
    }
    const found = await response.json().catch(() => null);
    if (response.ok && found) return found;
    const { status } = response;
    const key = status === 401 ? (this.#key ? "wrongKey" : "wantsKey") : (refusals[status] ?? "noAnswer");
    throw new Trouble(key, { status }, status);
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
    this.#worker?.terminate(); // of a start that failed
    this.#worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data: { id, progress, result, trouble } }) => {
      if (progress) return this.#progress(...progress);
      const { resolve, reject } = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (trouble) reject(new Trouble(trouble.key, trouble.values));
      else resolve(result);
    };
    this.#worker.onerror = async () => {
      const trouble = await whyNoWorker();
      for (const { reject } of this.#waiting.values()) reject(trouble);
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

/** A worker that does not begin gives no reason: one of its scripts is not there, or the browser cannot read them. */
async function whyNoWorker() {
  for (const file of ["worker.js", "local.js", "pixels.js"]) {
    const found = await fetch(new URL(file, import.meta.url)).catch(() => null);
    if (!found?.ok) return new Trouble("noFile", { file });
  }
  return new Trouble("tooOld");
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
