// The network in the browser: files, session, and the way from a photo to an answer.
//
// onnxruntime-web runs the model, by WebGPU where the browser has it and the model is not INT8, else by WebAssembly,
// with threads where the page is cross-origin isolated. The model takes uint8 RGB pixels; scaling, normalisation and
// softmax are inside it, as everywhere.

import { decode, fit, pixelsOf } from "./pixels.js";

const TOP = 5;
const TOLERANCE = 1e-2; // of a probability, against what the network answered where the site was made
const MOST_THREADS = 4;
const base = new URL("./", import.meta.url);

const trouble = (key, values = {}) => Object.assign(new Error(key), { key, values });

/**
 * Fetch all that is needed and start the network: {facts, run, keep}. run(uint8 RGB pixels) -> {probabilities, logits};
 * keep() puts what was fetched into the offline cache, so that the service worker need not fetch it again.
 */
export async function load({ search = "", progress = () => {} } = {}) {
  const site = JSON.parse(new TextDecoder().decode(await content("site.json")));
  const wanted = new URLSearchParams(search).get("engine");
  const can = await Promise.all(site.engines.map((engine) => usable(engine, wanted)));
  const engines = site.engines.filter((_, i) => can[i]);
  const kept = [];
  let model;
  for (const engine of engines) {
    try {
      const total = site.files["model.onnx"].size_bytes + site.files[engine.wasm].size_bytes;
      let done = 0;
      const count = (bytes) => progress((done += bytes), total);
      const names = model ? [engine.wasm] : [engine.wasm, "model.onnx"];
      const [binary, fetched] = await Promise.all(names.map((name) => content(name, site, count, kept)));
      model ??= fetched;
      const run = await start(engine, model, binary, site);
      await check(run, site);
      const keep = async () => {
        for (const put of kept.splice(0)) await put().catch(() => {}); // no room: it works while there is a connection
      };
      return { facts: { ...site, engine: run.engine }, run, keep };
    } catch (error) {
      if (engine === engines.at(-1)) throw error; // else the next engine is tried
    }
  }
  throw trouble("noEngine", { engine: wanted });
}

async function usable(engine, wanted) {
  if (wanted && wanted !== engine.name) return false;
  if (engine.name !== "webgpu") return true;
  try {
    const adapter = await navigator.gpu?.requestAdapter();
    const emulated = adapter?.info?.isFallbackAdapter ?? adapter?.isFallbackAdapter; // slower than WebAssembly
    return Boolean(adapter) && (!emulated || wanted === "webgpu");
  } catch {
    return false;
  }
}

async function start(engine, model, wasmBinary, site) {
  const ort = await import(new URL(engine.script, base).href);
  const threads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;
  const wasmPaths = { mjs: new URL(engine.glue, base).href, wasm: new URL(engine.wasm, base).href };
  Object.assign(ort.env.wasm, { wasmBinary, numThreads: threads, wasmPaths });
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(model, { executionProviders: [engine.name] });
  const px = site.preprocess.image_px;
  const run = async (pixels) => {
    const photos = new ort.Tensor("uint8", pixels, [1, px, px, 3]);
    const { probabilities, logits } = await session.run({ photos });
    return { probabilities: probabilities.data, logits: logits.data };
  };
  run.engine = engine.name === "webgpu" ? "WebGPU" : `WebAssembly, ${threads} thread${threads > 1 ? "s" : ""}`;
  return run;
}

/** One fixed tensor, whose answer was written down when the site was made: graphics drivers are known to err. */
async function check(run, site) {
  const { probabilities } = await run(pattern(site.preprocess.image_px));
  const differs = site.check.some((expected, i) => !(Math.abs(expected - probabilities[i]) < TOLERANCE));
  if (site.precision !== "int8" && differs) throw trouble("otherAnswers");
}

export function pattern(px) {
  return Uint8Array.from({ length: 3 * px * px }, (_, i) => (i * 37 + (i >> 8) * 11) & 255);
}

/** The answer to a photo in a file, or to an ImageBitmap, which is closed. */
export async function predict({ facts, run }, photo) {
  const begun = performance.now();
  let bitmap = photo;
  if (photo instanceof Blob) {
    try {
      bitmap = await decode(photo);
    } catch {
      throw trouble("unreadable");
    }
  }
  const { width, height } = bitmap;
  const rgba = pixelsOf(bitmap);
  bitmap.close();
  const answer = judge(facts, await run(fit(rgba, width, height, facts.preprocess)));
  return { ...answer, ms: performance.now() - begun };
}

/** Names for numbers, and whether the photo is like none of them: handlens/evaluate/unknown.py. */
export function judge({ classes, rejection }, { probabilities, logits }) {
  const guesses = Array.from(probabilities, (probability, i) => ({ name: classes[i], probability }))
    .sort((a, b) => b.probability - a.probability)
    .slice(0, TOP);
  if (!rejection) return { guesses, unknown: false, score: null };
  let score = guesses[0].probability;
  if (rejection.kind === "energy") {
    const largest = logits.reduce((a, b) => Math.max(a, b), -Infinity);
    score = largest + Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - largest), 0));
  }
  return { guesses, unknown: score < rejection.threshold, score };
}

/**
 * A file of the site as bytes: from the offline cache if it is there, else fetched, with a way to put it there in
 * `later`. What site.json lists is compared with its SHA-256.
 */
async function content(name, site, count = () => {}, later = []) {
  const url = new URL(name, base).href;
  const cache = site && self.caches ? await caches.open(`handlens ${base.pathname} ${site.site_version}`).catch(() => null) : null;
  let response = await cache?.match(url);
  const cached = Boolean(response);
  try {
    response ??= await fetch(url, { cache: "no-cache" }); // a site made anew in its place has new files
  } catch {
    throw trouble("noFile", { file: name });
  }
  if (!response.ok) throw trouble("noFile", { file: name });
  const bytes = await read(response, count);
  const expected = site?.files[name].sha256;
  if (expected && self.crypto?.subtle) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (found !== expected) {
      await cache?.delete(url);
      throw trouble("damaged", { file: name });
    }
  }
  if (cache && !cached) {
    const headers = { "Content-Type": response.headers.get("Content-Type") ?? "application/octet-stream" };
    later.push(() => cache.put(url, new Response(bytes, { headers })));
  }
  return bytes;
}

async function read(response, count) {
  const parts = [];
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    count(part.value.length);
  }
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}
