// The tokens of an answer: how likely each one was, what else could have stood there, and going on from another one.

import { element, icon } from "./view.js";

const SHADES = [0.9, 0.6, 0.3, 0.1, 0.02]; // the probabilities between one shade and the next

// Streamed events of an answer that began with `begin`, ids or text -> what it began with:
// {ids, tokens: [{at, id, text, logprob, top: [{id, text, logprob}]} | {tool, text}]}.
// `at` is the place among `ids`, where also special tokens and tools stand, which have no probability to show.
export async function readTokens(events, begin) {
  const ids = [];
  const tokens = [];
  let written = 0;
  for await (const { choices } of events) {
    const delta = choices?.[0]?.delta;
    if (!delta?.ids || (typeof begin === "string" ? written : ids.length) >= begin.length) continue;
    const entries = choices[0].logprobs?.content ?? [];
    let next = 0;
    for (const id of delta.ids) {
      const entry = entries[next]?.id === id ? entries[next++] : null;
      if (entry) tokens.push({ at: ids.length, id, text: textOf(entry), logprob: entry.logprob, top: (entry.top_logprobs ?? []).map(alternative) });
      ids.push(id);
    }
    if (delta.part) addTool(tokens, delta.part);
    written += delta.content?.length ?? 0;
  }
  return { ids, tokens };
}

function addTool(tokens, part) {
  const last = tokens.at(-1);
  if (last?.tool === part.type) last.text += part.text;
  else tokens.push({ tool: part.type, text: part.text });
}

const alternative = (entry) => ({ id: entry.id, text: textOf(entry), logprob: entry.logprob });

// A token can be a piece of a character: then its bytes are its name.
const textOf = ({ token, bytes }) => (token.includes("\ufffd") && bytes ? bytes.map((byte) => `‹${byte.toString(16).padStart(2, "0")}›`).join("") : token);

const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");
const shadeOf = (logprob) => SHADES.filter((bound) => Math.exp(logprob) < bound).length;

export function percent(logprob) {
  const value = 100 * Math.exp(logprob);
  return value >= 10 ? `${value.toFixed(0)}%` : value >= 0.1 ? `${value.toFixed(1)}%` : "<0.1%";
}

// choose(token, alternative): go on from it.
export function tokenView(tokens, choose) {
  const real = tokens.filter((token) => !token.tool);
  const surprise = real.reduce((sum, token) => sum - token.logprob, 0) / Math.max(1, real.length);
  const text = element("div", { class: "tokens", role: "group", "aria-label": "Tokens of this answer. The arrow keys move, Enter shows the alternatives." });
  for (const token of tokens) text.append(token.tool ? toolChip(token) : tokenSpan(token, choose));
  text.querySelector(".token")?.setAttribute("tabindex", "0");
  text.addEventListener("keydown", moveWithKeys);
  const legend = element("p", { class: "token-legend quiet" }, element("span", {}, "likely"));
  for (let shade = 0; shade <= SHADES.length; shade++) legend.append(element("i", { class: `shade-${shade}`, "aria-hidden": "true" }));
  legend.append(element("span", {}, "surprising"),
    element("span", { class: "perplexity", title: "As if the model had chosen among so many equally likely tokens each time" }, `perplexity ${Math.exp(surprise).toFixed(2)}`));
  return element("div", { class: "token-view" }, text, legend);
}

const toolChip = (token) => element("code", { class: "token-tool" }, token.tool === "python_output" ? `→ ${token.text}` : token.text);

function tokenSpan(token, choose) {
  const span = element("span", {
    class: `token shade-${shadeOf(token.logprob)}`, role: "button", tabindex: "-1", "aria-haspopup": "dialog",
    "aria-label": `${visible(token.text)}, ${percent(token.logprob)}`,
    onclick: () => showAlternatives(span, token, choose),
  }, token.text.endsWith("\n") ? `↵${token.text}` : token.text);
  return span;
}

function moveWithKeys(event) {
  const all = [...this.querySelectorAll(".token")];
  const at = all.indexOf(event.target.closest(".token"));
  const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
  if (at < 0) return;
  if (event.key === "Enter" || event.key === " ") (event.preventDefault(), all[at].click());
  if (to === undefined || !all[to]) return;
  event.preventDefault();
  all[at].tabIndex = -1;
  all[to].tabIndex = 0;
  all[to].focus();
}

function showAlternatives(span, token, choose) {
  closeAlternatives();
  const all = token.top.some((one) => one.id === token.id) ? token.top : [...token.top, token];
  const list = element("ul", { class: "alternatives" }, ...all.map((one) => element("li", {}, alternativeButton(one, one.id === token.id, () => (closeAlternatives(), choose(token, one))))));
  const box = element("div", { id: "alternatives", class: "popover", popover: "auto", role: "dialog", "aria-label": `Alternatives to ${visible(token.text)}` },
    element("div", { class: "popover-top" }, element("code", {}, visible(token.text)), element("span", {}, percent(token.logprob)),
      element("button", { type: "button", class: "icon small", "aria-label": "Close the alternatives", onclick: closeAlternatives }, icon("close"))),
    list, element("p", { class: "quiet" }, "Choose one, and the answer goes on from it. This version is kept."));
  box.addEventListener("keydown", (event) => moveInList(event, list));
  box.addEventListener("toggle", (event) => event.newState === "closed" && (span.classList.remove("chosen"), box.contains(document.activeElement) && span.focus(), box.remove()));
  document.body.append(box);
  span.classList.add("chosen");
  box.showPopover();
  place(box, span.getClientRects()[0]);
  list.querySelector("[aria-current]")?.focus();
}

function alternativeButton(one, chosen, onclick) {
  const bar = element("span", { class: "bar", "aria-hidden": "true" }, element("i"));
  bar.firstChild.style.width = `${100 * Math.exp(one.logprob)}%`;
  return element("button", { type: "button", class: "alternative", "aria-current": chosen ? "true" : null, "aria-label": `${visible(one.text)}, ${percent(one.logprob)}${chosen ? ", in this answer" : ""}`, onclick },
    element("code", {}, visible(one.text)), bar, element("span", { class: "percent" }, percent(one.logprob)));
}

function moveInList(event, list) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const buttons = [...list.querySelectorAll("button")];
  buttons.at((buttons.indexOf(document.activeElement) + step) % buttons.length).focus();
}

// Under the token, or above it where there is more room; on a phone the style sheet puts it at the bottom.
function place(box, rect) {
  if (matchMedia("(max-width: 30rem)").matches) return;
  const below = rect.bottom + 8 + box.offsetHeight < innerHeight || rect.top < innerHeight / 2;
  box.style.left = `${Math.max(8, Math.min(rect.left - 16, innerWidth - box.offsetWidth - 8))}px`;
  box.style.top = `${Math.max(8, below ? Math.min(rect.bottom + 8, innerHeight - box.offsetHeight - 8) : rect.top - box.offsetHeight - 8)}px`;
}

export const closeAlternatives = () => document.getElementById("alternatives")?.hidePopover();
