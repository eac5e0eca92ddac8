// One answer: what is asked for, and the events that it comes in. Knows chats as store.js keeps them, and no page.

import { ApiError, streamChat } from "./api.js";
import { sampling, settings } from "./settings.js";
import { textOf } from "./store.js";
import { readTokens } from "./tokens.js";

const ALTERNATIVES = 8;

const isSent = (node) => node.parts.some((part) => part.text);

// Of the messages that are sent, those that stay when the first `leftOut` turns do not fit (the server joins messages of
// one role to a turn).
export function seenOf(path, leftOut = 0) {
  const sent = path.filter(isSent);
  const first = sent.findIndex((node, index) => node.role !== sent[index - 1]?.role && leftOut-- === 0);
  return sent.slice(Math.max(0, first));
}

// Where the last answer's context began, if messages were left out for it: a node, or undefined.
export function horizonOf(path) {
  const leftOut = path.findLast((node) => node.role === "assistant" && isSent(node))?.left_out;
  return leftOut ? seenOf(path, leftOut)[0] : undefined;
}

// What an answer would begin with to be said again: its tokens, if the model that is here now wrote them, or its text.
export const beginOf = (node, model) => (node.ids?.length && node.model === model ? node.ids : textOf(node));

function requestBody(path, begin) {
  const messages = path.filter(isSent).map((node) => {
    const plain = node.parts.every((part) => part.type === "text");
    return { role: node.role, content: plain ? textOf(node) : node.parts };
  });
  if (settings.system?.trim()) messages.unshift({ role: "system", content: settings.system.trim() });
  // With logprobs come the ids, by which an answer can go on.
  const body = { messages, ...sampling(), logprobs: true, truncation: "auto" };
  if (begin) body.begin_with = begin;
  return body;
}

// Fill `node` with the server's answer to the messages of `path` as it comes. `begin`: token ids or text that it starts
// with, or null. Whatever happens, node.finish or node.error says how it ended.
export async function write(node, path, begin, signal) {
  const clock = { started: performance.now(), first: 0, tokens: 0, given: Array.isArray(begin) ? begin.length : 0 };
  node.finish = "stopped"; // so a page that is left says so when it comes back
  try {
    for await (const event of streamChat(requestBody(path, begin), settings.api_key, signal)) readEvent(node, event, clock);
  } catch (error) {
    if (error.name === "AbortError") return;
    Object.assign(node, { finish: "error", error: describe(error), tooLong: error.code === "context_length_exceeded" });
  }
}

function readEvent(node, event, clock) {
  if (event.left_out) node.left_out = event.left_out;
  const choice = event.choices?.[0];
  if (!choice) return;
  if (choice.finish_reason) node.finish = choice.finish_reason;
  const { ids, part: tool, content } = choice.delta;
  const part = tool ?? (content ? { type: "text", text: content } : null);
  if (!part) return;
  if (ids) (node.ids ??= []).push(...ids);
  clock.tokens += ids?.length ?? 1;
  const last = node.parts.at(-1);
  if (last?.type === part.type) last.text += part.text;
  else node.parts.push({ type: part.type, text: part.text });
  const written = clock.tokens - clock.given; // what was given to begin with has not been written now
  if (written > 0 && !clock.first) (clock.first = performance.now()), (clock.before = clock.tokens);
  node.stats = { tokens: clock.tokens, rate: rateOf(clock) };
}

// Tokens a second from the first one on; of an answer that came in one piece, from the question on.
function rateOf({ started, first, before, tokens, given }) {
  const seconds = (performance.now() - first) / 1000;
  if (!first) return 0;
  return seconds > 0.01 ? (tokens - before) / seconds : (1000 * (tokens - given)) / (performance.now() - started);
}

// The tokens of a finished answer to the messages of `path`. It is asked for once more, begun with itself: so its
// probabilities come, whenever and by whomever it was written.
export async function dissect(node, path, model) {
  const begin = beginOf(node, model);
  try {
    return await tokensOf(node, path, begin);
  } catch (error) {
    if (error.status !== 400) throw error;
    return tokensOf(node, path, textOf(node)); // tokens of another vocabulary, or one that only ends an answer
  }
}

async function tokensOf(node, path, begin) {
  if (node.finish === "length" && Array.isArray(begin)) begin = begin.slice(0, -1); // the context may have no room for one more
  const body = { ...requestBody(seenOf(path, node.left_out), begin), max_tokens: 1, temperature: 0, top_logprobs: ALTERNATIVES };
  return readTokens(streamChat(body, settings.api_key), begin);
}

export function describe(error) {
  if (!(error instanceof ApiError)) return `Something went wrong on this page: ${error.message}`;
  if (error.status === 401) return "The server asks for an API key. Put it in the settings, then try again.";
  if (error.status === 429) return `${error.message}${error.retryAfter ? ` Try again in ${error.retryAfter} s.` : ""}`;
  return error.message;
}
