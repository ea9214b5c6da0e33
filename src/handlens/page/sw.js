// Keeps the site for use offline: every file under one name that changes with any of them. Used by exported sites only.
//
// A new version is fetched whole beside the old one and takes over when no page uses the old one any more.

const SITE = { version: "", files: [], more: [] }; // filled in by `handlens export --to web`

const urls = (names) => names.map((name) => new URL(name, self.location).href);
const files = urls(SITE.files); // kept from the first visit on
const all = [...files, ...urls(SITE.more)]; // the others once they are used
const page = new URL("./", self.location).href;
const OURS = `handlens ${new URL(page).pathname} `; // another site may be on the same host
const CACHE = OURS + SITE.version;

addEventListener("install", (event) => {
  event.waitUntil(
    (async () => {
      const cache = await caches.open(CACHE);
      for (const url of files) {
        if (!(await cache.match(url))) await cache.add(new Request(url, { cache: "no-cache" }));
      }
    })(),
  );
});

addEventListener("activate", (event) => {
  event.waitUntil(
    (async () => {
      for (const name of await caches.keys()) {
        if (name.startsWith(OURS) && name !== CACHE) await caches.delete(name);
      }
      await clients.claim();
    })(),
  );
});

addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  url.search = url.hash = "";
  const wanted = url.href === page ? `${page}index.html` : url.href;
  if (event.request.method !== "GET" || !all.includes(wanted)) return;
  event.respondWith(answer(wanted, event.request));
});

async function answer(url, request) {
  const cache = await caches.open(CACHE);
  const kept = await cache.match(url);
  const response = kept ?? (await fetch(request));
  // Some servers send /index.html on to /. What was kept of that is given anew below: browsers refuse it as it is.
  if (!response.ok || (!kept && response.redirected)) return response;
  if (!kept) await cache.put(url, response.clone()).catch(() => {}); // the store is full: it was fetched all the same
  // With these two headers the browser lets the network use several threads. No server needs to know.
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Cross-Origin-Resource-Policy", "same-origin");
  return new Response(response.body, { status: response.status, headers });
}
