// Builds what is on the page from plain data. Text of people and models enters only as text nodes; HTML comes only from
// the server's renderer, which has made it safe.

import { siblingsOf, textOf } from "./store.js";

export const $ = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export const iconButton = (name, label, onclick, extra = {}) =>
  element("button", { type: "button", class: "icon small", "aria-label": label, title: label, onclick, ...extra }, icon(name));

// Swap only the blocks that changed, so that a stream does not flicker and a selection above it survives.
export function patch(target, fragment) {
  const fresh = [...fragment.childNodes];
  let same = 0;
  while (same < fresh.length && target.childNodes[same]?.isEqualNode(fresh[same])) same++;
  while (target.childNodes.length > same) target.lastChild.remove();
  target.append(...fresh.slice(same));
}

export function showMarkdown(target, html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  for (const code of template.content.querySelectorAll("figure.code")) {
    code.prepend(element("figcaption", {}, element("span", {}, code.querySelector("code")?.dataset.language || "text"), copyButton("Copy the code")));
  }
  for (const table of template.content.querySelectorAll("table")) {
    const frame = element("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  target.classList.remove("plain");
  patch(target, template.content);
}

// For a screen reader.
export const announce = (text) => ($("status").textContent = text);

let toastTimer = 0;

// Say something for a while, above everything else, with a button that does something about it.
export function toast(text, label, action) {
  const box = $("toast");
  clearTimeout(toastTimer);
  box.replaceChildren(element("span", {}, text));
  if (label) box.append(element("button", { type: "button", class: "text", onclick: () => (box.hidePopover(), action()) }, label));
  box.hidePopover();
  box.showPopover();
  toastTimer = setTimeout(() => box.hidePopover(), 7000);
}

export const copyButton = (label) => element("button", { type: "button", class: "icon small", "data-copy": true, "aria-label": label, title: label }, icon("copy"));

// [{type, text}] -> [{kind: "text", text} | {kind: "tool", code, output}]
export function blocksOf(parts) {
  const blocks = [];
  for (const part of parts) {
    const last = blocks.at(-1);
    if (part.type === "text") blocks.push({ kind: "text", text: part.text });
    else if (part.type === "python") blocks.push({ kind: "tool", code: part.text, output: null });
    else if (last?.kind === "tool" && last.output === null) last.output = part.text;
    else blocks.push({ kind: "tool", code: null, output: part.text });
  }
  return blocks.filter((block) => block.kind === "tool" || block.text.trim());
}

const LOOKUP = /^look up /; // a question to the encyclopedia, in words
const PROGRAM = /\n|;|\b(print|import|for|def)\b|[^=!<>]=[^=]/; // what is more than an expression

function toolCard(block) {
  const long = `${block.code}${block.output}`.includes("\n");
  const words = LOOKUP.test(block.code ?? "");
  const name = words ? "Encyclopedia" : PROGRAM.test(block.code ?? "") ? "Python" : "Calculator";
  const look = `tool${long ? " long" : ""}${words ? " words" : ""}`;
  const title = words ? "Encyclopedia: from Wikipedia, CC BY-SA 4.0" : name;
  const card = element("div", { class: look, role: "group", "aria-label": name, title }, icon(words ? "book" : "tool"));
  if (block.code !== null) card.append(element("code", { class: "tool-code" }, block.code));
  if (block.output !== null) {
    card.append(element("span", { class: "tool-arrow" }, "→"), element("code", { class: "tool-output" }, block.output));
  } else {
    card.append(element("span", { class: "tool-arrow waiting" }, "…"));
  }
  return card;
}

// Make `body` show these blocks. htmlOf(text) is finished HTML, or undefined while there is none.
export function showBlocks(body, blocks, htmlOf) {
  blocks.forEach((block, index) => {
    let child = body.children[index];
    if (block.kind === "tool") {
      const card = toolCard(block);
      if (!child) body.append(card);
      else if (!child.isEqualNode(card)) child.replaceWith(card);
      return;
    }
    if (!child || !child.classList.contains("markdown")) {
      const fresh = element("div", { class: "markdown plain", dir: "auto" });
      if (child) child.replaceWith(fresh);
      else body.append(fresh);
      child = fresh;
    }
    const html = htmlOf(block.text);
    if (html !== undefined) showMarkdown(child, html);
    else if (child.classList.contains("plain")) child.textContent = block.text;
  });
  while (body.children.length > blocks.length) body.lastChild.remove();
}

function pager(chat, node, actions) {
  const all = siblingsOf(chat, node);
  if (all.length < 2) return null;
  const at = all.indexOf(node);
  return element("span", { class: "pager" },
    iconButton("left", "Previous version", () => actions.switchTo(all[at - 1]), { disabled: at === 0 }),
    element("span", { class: "pager-count", "aria-label": `Version ${at + 1} of ${all.length}` }, `${at + 1}/${all.length}`),
    iconButton("right", "Next version", () => actions.switchTo(all[at + 1]), { disabled: at === all.length - 1 }));
}

export function userMessage(chat, node, actions) {
  return element("li", { class: "message user", "data-id": node.id },
    element("h3", { class: "visually-hidden" }, "You"),
    element("div", { class: "bubble", dir: "auto" }, textOf(node)),
    element("div", { class: "tools" }, pager(chat, node, actions), iconButton("edit", "Edit this message", () => actions.edit(node)),
      copyButton("Copy this message")));
}

export function answerMessage(chat, node, actions) {
  const item = element("li", { class: "message answer", "data-id": node.id }, element("h3", { class: "visually-hidden" }, "nanochat"), element("div", { class: "body" }));
  item.append(answerFoot(chat, node, actions));
  return item;
}

export function answerFoot(chat, node, actions) {
  const foot = element("div", { class: "answer-foot" });
  if (node.writing) {
    if (!node.parts.length) foot.append(element("span", { class: "thinking", "aria-hidden": "true" }, element("i"), element("i"), element("i")));
    else foot.append(element("span", { class: "rate", "aria-hidden": "true" }));
    return foot;
  }
  const button = (label, act) => element("button", { type: "button", class: "text", onclick: () => act(node) }, label);
  const goOn = node.parts.length ? button("Go on", actions.goOn) : null;
  if (node.error) {
    const again = node.tooLong ? button("Edit the message", actions.shorten) : button("Try again", actions.retry);
    foot.append(element("div", { class: "problem", role: "alert" }, element("p", {}, node.error), element("span", {}, goOn ?? "", " ", again)));
  }
  const unfinished = { length: "The answer was cut off at its limit of tokens. ", stopped: "This answer was stopped. " }[node.finish];
  if (unfinished) foot.append(element("p", { class: "note" }, unfinished, goOn));
  const tools = element("div", { class: "tools" }, pager(chat, node, actions));
  if (node.parts.length) tools.append(copyButton("Copy this answer"));
  if (!node.error) tools.append(iconButton("again", "Answer again", () => actions.regenerate(node)));
  if (node.parts.length) tools.append(iconButton("tokens", "Tokens and their probabilities", () => actions.tokens(node), { "aria-pressed": String(actions.isDissected(node)) }));
  if (node.stats?.tokens) tools.append(element("span", { class: "rate" }, rateText(node.stats)));
  foot.append(tools);
  return foot;
}

export function rateText({ tokens, rate }) {
  const speed = rate >= 100 ? Math.round(rate) : rate.toFixed(1);
  return `${tokens.toLocaleString("en")} token${tokens === 1 ? "" : "s"}${rate ? ` · ${speed} tokens/s` : ""}`;
}

export function editor(text, onsave, oncancel) {
  const area = element("textarea", { "aria-label": "Edit your message", dir: "auto", rows: Math.min(10, text.split("\n").length + 1) });
  area.value = text;
  const save = () => area.value.trim() && onsave(area.value.trim());
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") (event.stopPropagation(), oncancel());
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) (event.preventDefault(), save());
  });
  return element("div", { class: "editor" }, area, element("div", { class: "editor-buttons" },
    element("button", { type: "button", class: "text", onclick: oncancel }, "Cancel"),
    element("button", { type: "button", class: "primary", onclick: save }, "Send")));
}

export function chatItem(chat, title, current, actions) {
  return element("li", { class: current ? "chat current" : "chat", "data-id": chat.id },
    element("a", { class: "chat-open", href: `#${chat.id}`, dir: "auto", "aria-current": current ? "page" : null, title }, title),
    iconButton("edit", `Rename ${title}`, () => actions.rename(chat)),
    iconButton("trash", `Delete ${title}`, () => actions.remove(chat)));
}
