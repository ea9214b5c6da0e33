// Where the browser computes by itself: calls come in from engines.js, answers go back.

import { load, predict } from "./local.js";

let ready;
let last = Promise.resolve();

onmessage = ({ data: { id, call, argument } }) => {
  last = last.then(async () => {
    try {
      if (call === "load") {
        ready = await load({ search: argument, progress: (...progress) => postMessage({ progress }) });
        postMessage({ id, result: ready.facts });
      } else if (call === "keep") {
        postMessage({ id, result: await ready.keep() });
      } else {
        postMessage({ id, result: await predict(ready, argument) });
      }
    } catch (error) {
      const { key = "noPage", values = { why: String(error?.message ?? error) } } = error ?? {};
      postMessage({ id, trouble: { key, values } });
    }
  });
};
