// The page: photos come in by file, drop, paste and camera; answers go to the screen, the table and the status line.

import { csv } from "./csv.js";
import { Alone, Service, Trouble, frame } from "./engines.js";
import { STRINGS, firstLanguage, say } from "./strings.js";

const $ = (id) => document.getElementById(id);
const engine = document.querySelector("meta[name=handlens-engine]").content === "browser" ? new Alone() : new Service();
const visit = []; // {name, file, url, answer, trouble, right, kept, pause}
const SAID_MS = 2000; // between sentences that come by themselves: often enough for who listens
const PAUSE_MS = 800; // after which a choice stands: the arrow keys pass by other classes on their way
let facts = null;
let failed = false; // the start: it is tried again with the next photo
let language = firstLanguage();
let shown = null; // the visit's photo whose answer is on the screen
let status = () => t("loading");

const t = (key, values) => say(language, key, values);
const percent = (share) => share.toLocaleString(language, { style: "percent", maximumFractionDigits: share < 0.1 ? 1 : 0 });
const why = (trouble) => (trouble instanceof Trouble ? t(trouble.key, trouble.values) : String(trouble));

/** Say a sentence on the status line, where screen readers hear it, in whatever language is chosen later too. */
function tell(sentence) {
  status = sentence;
  $("said").textContent = sentence();
}

function askForKey({ status }) {
  if (status === 401) $("key-form").hidden = false;
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// ---- language --------------------------------------------------------------------------------------------------
function translate() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = t(element.dataset.text);
  for (const element of document.querySelectorAll("[data-label]")) element.ariaLabel = t(element.dataset.label);
  const other = language === "en" ? "zh" : "en";
  Object.assign($("language"), { textContent: STRINGS[other].language, lang: other });
  $("said").textContent = status();
  if (facts) describe();
  if (shown) show(shown);
  $("rows").replaceChildren(...visit.map(row).reverse());
}

$("language").onclick = () => {
  language = language === "en" ? "zh" : "en";
  try {
    localStorage.setItem("handlens-language", language);
  } catch {
    // storage may be forbidden
  }
  translate();
};

// ---- answers ---------------------------------------------------------------------------------------------------
function bars(list, { guesses, unknown }) {
  list.classList.toggle("unknown", unknown);
  list.replaceChildren(
    ...guesses.map(({ name, probability }) => {
      const fill = make("i");
      fill.style.width = `${100 * probability}%`;
      const bar = make("span", { className: "bar", ariaHidden: "true" }, fill);
      return make("li", {}, make("span", { textContent: name }), make("span", { className: "share", textContent: percent(probability) }), bar);
    }),
  );
}

function show(entry) {
  shown = entry;
  $("answer").hidden = false;
  if ($("photo").src !== entry.url) $("photo").src = entry.url;
  $("photo").alt = entry.name;
  const { answer } = entry;
  $("verdict").textContent = answer.unknown ? t("unknown") : answer.guesses[0].name;
  bars($("guesses"), answer);
  const took = t("took", { name: entry.name, ms: Math.round(answer.ms) });
  $("took").textContent = answer.unknown ? `${t("unknownHint")} ${took}` : took;
}

function sentenceOf({ name, answer }) {
  const [best] = answer.guesses;
  return answer.unknown ? t("saidUnknown", { name }) : t("said", { name, answer: best.name, share: percent(best.probability) });
}

/** What is known of the model that gave an answer: the service may have taken a new version meanwhile. */
async function follow({ version }) {
  if (!version || version === facts?.version) return;
  if (failed) return begin(); // the service is there now
  try {
    facts = await engine.load();
    translate();
  } catch {
    // the photo is answered, and the next answer asks again
  }
}

let begun; // resolves when the network is there: photos that come before wait for it
let queue = new Promise((resolve) => (begun = resolve));

/** Answer a photo after those before it. */
function add(file, name = file.name) {
  const entry = { name, file, url: URL.createObjectURL(file), answer: null, trouble: null, right: "", kept: "", pause: 0 };
  if (failed) begin();
  queue = queue.then(async () => {
    tell(() => t("working", { name }));
    try {
      entry.answer = await engine.predict(file);
      await follow(entry.answer);
      show(entry);
      tell(() => sentenceOf(entry));
    } catch (trouble) {
      entry.trouble = trouble;
      tell(() => t("wrong", { name, why: why(trouble) }));
      askForKey(trouble);
    }
    visit.push(entry);
    $("visit").hidden = false;
    $("rows").prepend(row(entry));
  });
}

// ---- the visit's table -----------------------------------------------------------------------------------------
// Roles are named because the style sheet lays rows out anew on a phone, and browsers then forget that it is a table.
function row(entry) {
  const { name, url, answer } = entry;
  const thumbnail = make("img", { src: url, alt: "", loading: "lazy" });
  thumbnail.onerror = () => thumbnail.remove(); // a format that only the service reads
  const title = make("th", { scope: "row", role: "rowheader" }, thumbnail, name);
  if (!answer) return make("tr", { role: "row" }, title, make("td", { role: "cell", colSpan: 3, textContent: why(entry.trouble) }));
  const [best] = answer.guesses;
  const right = make("select", { ariaLabel: t("rightOf", { name }) }, make("option", { value: "", textContent: t("asAnswered") }));
  right.append(...facts.classes.map((known) => make("option", { value: known, textContent: known })));
  right.value = entry.right;
  const choose = () => {
    clearTimeout(entry.pause);
    entry.pause = 0;
    marking = marking.then(() => mark(entry));
  };
  right.onchange = () => {
    entry.right = right.value;
    clearTimeout(entry.pause);
    entry.pause = setTimeout(choose, PAUSE_MS);
  };
  right.onblur = () => {
    if (entry.pause) choose();
  };
  return make(
    "tr",
    { role: "row" },
    title,
    make("td", { role: "cell", textContent: answer.unknown ? t("unknown") : best.name }),
    make("td", { role: "cell", className: "share", textContent: percent(best.probability) }),
    make("td", { role: "cell" }, right),
  );
}

let marking = Promise.resolve(); // one after the other: the last word on a photo is to come last

/** Keep a photo under its right class, or take back what was kept. */
async function mark(entry) {
  const { name, file, right, kept } = entry;
  if (right === kept) return;
  entry.kept = right;
  try {
    if (await engine.save(file, right)) {
      return tell(() => (right ? t("savedService", { name, right }) : t("takenBack", { name })));
    }
    if (!right) return; // what was downloaded is the user's
    download(file, `${right}--${name}`);
    tell(() => t("savedHere", { name, right }));
  } catch (trouble) {
    const keepsNone = trouble.status === 403;
    if (keepsNone && !right) return; // as above
    if (!keepsNone) entry.kept = kept;
    askForKey(trouble);
    if (right) download(file, `${right}--${name}`);
    tell(() => t(right ? "notSaved" : "noPage", { why: why(trouble) }));
  }
}

function download(blob, name) {
  const types = { "image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp" };
  const ending = /\.\w{2,5}$/.test(name) ? "" : (types[blob.type] ?? "");
  const link = make("a", { href: URL.createObjectURL(blob), download: name.replace(/[\\/:*?"<>|\x00-\x1f]/g, "_") + ending });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** The table of a visit as CSV. */
function table(entries, { name, version }) {
  const head = ["photo", "answer", "probability", "unknown", "score", "right_class", "ms", "model", "version", "error"];
  const lines = entries.map(({ name: photo, answer, trouble, right }) => {
    const best = answer?.guesses[0];
    const figures = [best?.name, best?.probability.toFixed(6), answer && Number(answer.unknown), answer?.score?.toFixed(6)];
    const model = answer?.version ? [answer.model, answer.version] : [name, version];
    return [photo, ...figures, right, answer?.ms.toFixed(1), ...model, trouble && why(trouble)];
  });
  return csv([head, ...lines]);
}

$("csv").onclick = () => download(new Blob(["\ufeff", table(visit, facts)], { type: "text/csv" }), "handlens.csv");

// ---- photos in -------------------------------------------------------------------------------------------------
$("files").onchange = ({ target }) => {
  for (const file of target.files) add(file);
  target.value = ""; // the same file may be chosen again
};

const early = $("files"); // what was chosen before this script was there
if (early.files.length) early.onchange({ target: early });

addEventListener("paste", ({ clipboardData }) => {
  const files = [...clipboardData.files];
  for (const file of files) add(file, files.length === 1 && /^image\.\w+$/.test(file.name) ? t("pasted") : file.name);
  if (!files.length && !["INPUT", "TEXTAREA"].includes(document.activeElement?.tagName)) tell(() => t("noPhoto"));
});

addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) document.body.classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const files = [...event.dataTransfer.files];
  for (const file of files) add(file);
  if (!files.length) tell(() => t("noPhoto"));
});

$("key-form").onsubmit = (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!/^[!-~]+$/.test(key)) return tell(() => t("noKey")); // no header could carry it
  engine.useKey(key);
  begin();
};

// ---- the camera ------------------------------------------------------------------------------------------------
const video = $("video");
let stream = null;
let asking = false; // for a camera: pressed twice, a second one would stay on
let taken = 0;

$("camera").onclick = async () => {
  if (!navigator.mediaDevices) return tell(() => t("cameraInsecure"));
  if (asking) return;
  asking = true;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: { ideal: "environment" } } });
  } catch (error) {
    const keys = { NotAllowedError: "cameraDenied", NotFoundError: "noCamera", NotReadableError: "cameraBusy" };
    return tell(() => t(keys[error.name] ?? "noCamera"));
  } finally {
    asking = false;
  }
  const own = stream;
  video.srcObject = own;
  $("live").hidden = false; // before it plays, which may take long: it can be stopped meanwhile
  $("camera").hidden = true;
  $("keep").focus();
  await video.play().catch(() => {});
  watch(own);
};

/** Guess what the camera sees, no more often than the engine wants and for at most half of the time. */
async function watch(own) {
  let said = "";
  let saidAt = 0;
  let before = ""; // the trouble
  while (stream === own && own.active) {
    const begun = performance.now();
    if (!document.hidden && video.videoWidth) {
      try {
        const answer = await engine.look(video);
        if (stream !== own) break;
        await follow(answer);
        before = "";
        bars($("live-guesses"), answer);
        const best = answer.unknown ? t("unknown") : answer.guesses[0].name;
        if (best !== said && begun - saidAt > SAID_MS) {
          [said, saidAt] = [best, begun];
          tell(() => best);
        }
      } catch (trouble) {
        if (why(trouble) !== before) tell(() => why(trouble)); // once, for who listens
        before = why(trouble);
        askForKey(trouble);
      }
    }
    const spent = performance.now() - begun;
    await new Promise((resolve) => setTimeout(resolve, Math.max(spent, engine.everyMs - spent)));
  }
  if (stream !== own) return; // it was stopped here
  $("stop").onclick();
  tell(() => t("cameraGone"));
}

$("keep").onclick = async () => {
  const photo = video.videoWidth && (await frame(video)); // before its first picture there is none
  if (photo) add(photo, t("taken", { number: ++taken }));
};

$("stop").onclick = () => {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  video.srcObject = null;
  $("live").hidden = true;
  $("camera").hidden = false;
  $("camera").focus();
};

// ---- the beginning ---------------------------------------------------------------------------------------------
function describe() {
  document.title = `${facts.name} · handlens`;
  $("title").textContent = facts.name;
  const names = facts.classes.length > 12 ? [...facts.classes.slice(0, 12), "…"] : facts.classes;
  $("about").textContent = `${facts.net} ${facts.precision} ${facts.version} · ${facts.classes.length}: ${names.join(", ")}`;
  $("where").textContent = engine.alone ? t("onThisDevice", { engine: facts.engine }) : t("onService", { host: location.host });
}

/** That this page works without a connection, or that it is no longer the site's newest. */
function tellOffline(key) {
  $("offline").dataset.text = key;
  $("offline").textContent = t(key);
}

let total = 0;

async function begin() {
  failed = false;
  let saidAt = -SAID_MS;
  try {
    facts = await engine.load((done, all) => {
      total = Math.max(total, all);
      const now = performance.now();
      if (facts || now - saidAt < SAID_MS) return;
      saidAt = now;
      const mb = (bytes) => (bytes / 1e6).toFixed(1);
      tell(() => t("loadingBytes", { done: mb(done), total: mb(total) }));
    });
  } catch (trouble) {
    failed = !facts;
    askForKey(trouble);
    $("trouble").hidden = false;
    $("trouble").textContent = why(trouble);
    return tell(() => "");
  }
  $("trouble").hidden = true;
  if ($("key-form").contains(document.activeElement)) $("files").focus();
  $("key-form").hidden = true;
  describe();
  tell(() => t("ready"));
  begun();
  if (engine.alone && "serviceWorker" in navigator) {
    try {
      await queue; // first the photos that wait
      await engine.keep();
      const registration = await navigator.serviceWorker.register("sw.js", { updateViaCache: "none" });
      await navigator.serviceWorker.ready;
      tellOffline("offline");
      const look = () => registration.waiting && tellOffline("newer");
      const follow = (worker) => worker?.addEventListener("statechange", look);
      registration.addEventListener("updatefound", () => follow(registration.installing));
      follow(registration.installing);
      look();
    } catch {
      // not a secure context, or storage is forbidden: it works while there is a connection
    }
  }
}

translate();
begin();
