// The HTML of answers, by their text: made safe by the server, asked for once. It is kept in memory only, since HTML is
// never read back from storage.

import { renderMarkdown } from "./api.js";
import { settings } from "./settings.js";
import { blocksOf } from "./view.js";

const EVERY = 120; // ms between two renderings of an answer that is still being written
const MOST = 500; // texts
const kept = new Map(); // text -> safe HTML

export const htmlOf = (text) => kept.get(text);

const missing = (parts) => blocksOf(parts).filter((block) => block.kind === "text" && !kept.has(block.text)).map((block) => block.text);

// Without HTML the plain text stays on the page, which is a fine answer too: then false.
async function ask(texts, writing, into) {
  try {
    const html = await renderMarkdown(texts, writing, settings.api_key);
    texts.forEach((text, index) => into.set(text, html[index]));
  } catch {
    return false;
  }
  return true;
}

// Get what htmlOf does not know yet of a finished answer. True if there is anything new.
export async function render(parts) {
  const texts = missing(parts);
  const done = texts.length > 0 && (await ask(texts, false, kept));
  for (const old of kept.keys()) if (kept.size > MOST) kept.delete(old);
  return done;
}

// While an answer is written: show(htmlOf) with its newest HTML, one request at a time, never more often than EVERY.
// Returns a function that ends this, and waits for the last request.
export function follow(node, isShown, show) {
  let ended = false;
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const run = (async () => {
    let half = new Map(); // of the text that is still growing
    while (!ended) {
      await pause(EVERY);
      if (!isShown()) continue;
      const texts = missing(node.parts);
      const growing = node.parts.at(-1)?.type === "text" ? texts.pop() : undefined;
      if (texts.length) await ask(texts, false, kept);
      if (growing !== undefined && !half.has(growing)) {
        const fresh = new Map();
        if (await ask([growing], true, fresh)) half = fresh;
        else await pause(1000);
      }
      if (!ended && isShown()) show((text) => kept.get(text) ?? half.get(text));
    }
  })();
  return () => ((ended = true), run);
}
