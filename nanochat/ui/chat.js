// The chat page: the chat that is open, and what a person does with it. answer.js gets the answers, render.js their HTML,
// sidebar.js has the other chats, view.js draws, store.js keeps.

import { beginOf, describe, dissect, horizonOf, write } from "./answer.js";
import { fetchModel } from "./api.js";
import { follow, htmlOf, render } from "./render.js";
import { defaults, listenToSettings, settings, showSettings } from "./settings.js";
import { chats, drawList, keep, listenToSidebar, reload } from "./sidebar.js";
import * as store from "./store.js";
import { tokenView } from "./tokens.js";
import * as view from "./view.js";
import { $, announce, toast } from "./view.js";

const EXAMPLES = ["What is the capital of France?", "What is 1234 * 56?", "How many r's are in strawberry?", "Who are you?"];
const DRAFT = "nanochat.draft";

const addressOf = (one) => (one.nodes.length ? `#${one.id}` : "");
const chatOfAddress = () => chats.find((one) => addressOf(one) === location.hash);
let chat = chatOfAddress() ?? store.newChat();
let modelName = "";
const writing = new Map(); // chat -> {node, controller} of its answer in progress
const dissected = new Map(); // id of an answer that is shown as tokens -> {tokens, ids}, or null while they are asked for

const isWriting = (one = chat) => writing.has(one);
const stop = (one = chat) => writing.get(one)?.controller.abort();

// --------------------------------------------------------------------------------------------------------------------
// Drawing

const actions = {
  switchTo: (node) => !isWriting() && (store.switchTo(chat, node), keep(chat, chat.updated), draw()),
  edit: startEditing,
  retry: (node) => !isWriting() && answer(chat, node.parent, null, node.parts.length ? null : node),
  shorten: (node) => startEditing(chat.nodes.find((other) => other.id === node.parent)),
  regenerate: (node) => !isWriting() && answer(chat, node.parent),
  goOn: (node) => !isWriting() && answer(chat, node.parent, beginOf(node, modelName)),
  tokens: toggleTokens,
  isDissected: (node) => dissected.has(node.id),
};

function draw() {
  const path = store.pathOf(chat);
  $("empty").hidden = path.length > 0;
  $("thread").replaceChildren(...path.map((node) => (node.role === "user" ? view.userMessage : view.answerMessage)(chat, node, actions)));
  for (const node of path) if (node.role === "assistant") drawAnswer(node);
  drawHorizon(path);
  $("title").textContent = store.titleOf(chat);
  document.title = path.length ? `${store.titleOf(chat)} · nanochat` : "nanochat";
  history.replaceState(null, "", location.pathname + addressOf(chat)); // a reload comes back to this chat
  drawList();
  drawSend();
}

const itemOf = (node) => $("thread").querySelector(`[data-id="${node.id}"]`);

function drawAnswer(node) {
  const item = itemOf(node);
  if (!item) return;
  item.querySelector(".answer-foot").replaceWith(view.answerFoot(chat, node, actions));
  const found = dissected.get(node.id);
  if (found) return item.querySelector(".body").replaceChildren(tokenView(found.tokens, (token, other) => goOnFrom(node, token, other)));
  item.querySelector(".token-view")?.remove();
  view.showBlocks(item.querySelector(".body"), view.blocksOf(node.parts), htmlOf);
  if (!node.writing) render(node.parts).then((done) => done && drawAnswer(node));
}

// A line above the first message that was in the context of the last answer, if others were not.
function drawHorizon(path = store.pathOf(chat)) {
  $("thread").querySelector(".horizon")?.remove();
  const first = horizonOf(path);
  if (first) itemOf(first)?.before(view.element("li", { class: "horizon" }, `The model no longer sees what is above: its context holds ${$("max_tokens").max || "few"} tokens.`));
}

function drawSend() {
  const [name, label, title] = isWriting() ? ["stop", "Stop the answer", "Stop (Esc)"] : ["send", "Send", "Send (Enter)"];
  $("send").replaceChildren(view.icon(name));
  $("send").setAttribute("aria-label", label);
  $("send").title = title;
  $("send").disabled = !isWriting() && !$("prompt").value.trim();
}

const nearEnd = () => $("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight < 80;
const toEnd = () => ($("scroll").scrollTop = $("scroll").scrollHeight);

// Change the page; who was at its end stays there.
function atEnd(change) {
  const stay = nearEnd();
  change();
  if (stay) toEnd();
}

// --------------------------------------------------------------------------------------------------------------------
// Asking

function send(text) {
  if (isWriting() || !text.trim()) return;
  const node = store.addNode(chat, chat.leaf, "user", [{ type: "text", text: text.trim() }]);
  $("prompt").value = "";
  growPrompt();
  answer(chat, node.id);
}

// begin: token ids or text that the answer starts with. again: an empty answer that takes this one's place.
async function answer(target, parent, begin = null, again = null) {
  target.leaf = parent;
  const path = store.pathOf(target);
  const node = again ?? store.addNode(target, parent, "assistant", []);
  const controller = new AbortController();
  Object.assign(node, { writing: true, model: modelName, error: undefined, tooLong: undefined });
  target.leaf = node.id;
  writing.set(target, { node, controller });
  keep(target);
  draw();
  toEnd();
  announce("nanochat is answering.");
  const endOfRendering = follow(node, () => itemOf(node), (html) => atEnd(() => showNewest(node, html)));
  await write(node, path, begin, controller.signal);
  delete node.writing;
  writing.delete(target);
  await endOfRendering();
  if (chats.includes(target)) keep(target); // else it was deleted meanwhile
  atEnd(() => drawAnswer(node));
  if (target === chat) drawHorizon();
  drawList();
  drawSend();
  announce(node.error ? "" : `nanochat: ${store.textOf(node)}`);
  if (node.error) greet(); // is the server still there, with the same model?
  return node;
}

function showNewest(node, html) {
  const item = itemOf(node);
  view.showBlocks(item.querySelector(".body"), view.blocksOf(node.parts), html);
  if (item.querySelector(".thinking") && node.parts.length) item.querySelector(".answer-foot").replaceWith(view.answerFoot(chat, node, actions));
  const rate = item.querySelector(".rate");
  if (rate && node.stats) rate.textContent = view.rateText(node.stats);
}

async function toggleTokens(node) {
  if (isWriting()) return;
  if (dissected.delete(node.id)) return drawAnswer(node);
  dissected.set(node.id, null);
  drawAnswer(node);
  try {
    dissected.set(node.id, await dissect(node, store.pathOf({ ...chat, leaf: node.parent }), modelName));
  } catch (error) {
    dissected.delete(node.id);
    toast(describe(error));
  }
  drawAnswer(node);
  if (!itemOf(node)) return;
  announce("The tokens of the answer are shown.");
  itemOf(node).querySelector(".token")?.focus({ preventScroll: true });
}

async function goOnFrom(node, token, other) {
  if (isWriting()) return;
  const { ids } = dissected.get(node.id);
  const begun = await answer(chat, node.parent, [...ids.slice(0, token.at), other.id]);
  if (!begun.error && chat.nodes.includes(begun)) toggleTokens(begun);
}

function startEditing(node) {
  if (isWriting()) return;
  const item = itemOf(node);
  const box = view.editor(store.textOf(node),
    (text) => answer(chat, store.addNode(chat, node.parent, "user", [{ type: "text", text }]).id),
    () => (draw(), itemOf(node).querySelector("[aria-label^=Edit]").focus()));
  item.replaceChildren(box);
  const area = box.querySelector("textarea");
  area.focus();
  area.setSelectionRange(area.value.length, area.value.length);
}

function open(other) {
  const address = addressOf(other);
  if (location.hash !== address) history.pushState(null, "", location.pathname + address); // so one can go back
  chat = other;
  draw();
  toEnd();
  $("sidebar").hidePopover();
  if (!isTouch()) $("prompt").focus(); // else a keyboard would cover the chat
}

// --------------------------------------------------------------------------------------------------------------------
// The server

async function greet() {
  try {
    const model = await fetchModel(settings.api_key);
    Object.assign(defaults, model.defaults);
    defaults.max_tokens = Math.min(defaults.max_tokens, model.context);
    modelName = [model.id, model.about?.stage, model.about?.step].join(" ");
    $("model").textContent = [model.id, model.about?.parameters].filter(Boolean).join(" · ");
    $("model").title = Object.entries(model.about ?? {}).map(([name, value]) => `${name}: ${value}`).join("\n");
    $("max_tokens").max = model.context;
  } catch (error) {
    if (error.status === 401) {
      toast("This server asks for an API key.", "Settings", () => $("open-settings").click());
    } else {
      $("model").textContent = "not connected";
      $("model").title = error.message;
      clearTimeout(greet.timer);
      greet.timer = setTimeout(greet, 3000);
    }
  }
  if (!$("settings").open) showSettings();
}

// --------------------------------------------------------------------------------------------------------------------
// Events

const isTouch = () => matchMedia("(pointer: coarse)").matches;

function growPrompt() {
  const area = $("prompt");
  sessionStorage.setItem(DRAFT, area.value); // for a reload
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, innerHeight * 0.4)}px`;
  drawSend();
}

async function copyFrom(button) {
  const figure = button.closest("figure");
  const node = chat.nodes.find((one) => one.id === button.closest(".message")?.dataset.id);
  const text = figure ? figure.querySelector("pre").textContent : store.textOf(node);
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    return toast("The browser did not allow copying.");
  }
  button.replaceChildren(view.icon("check"));
  announce("Copied.");
  setTimeout(() => button.replaceChildren(view.icon("copy")), 1500);
}

// Another tab has changed a chat. What is written or edited here stays as it is.
function hearOtherTab({ key }) {
  if (!store.isChatKey(key)) return;
  reload();
  if (key === store.keyOf(chat) && !isWriting() && !$("thread").querySelector(".editor")) draw();
  else drawList();
}

function hearKey(event) {
  if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) (event.preventDefault(), open(store.newChat()));
  if (event.key === "Escape" && !document.querySelector("dialog[open], [popover=auto]:popover-open")) stop();
}

// The address was changed by a link or by going back. One that is no chat's, such as the skip link's, is forgotten.
function hearAddress() {
  const found = location.hash ? chatOfAddress() : store.newChat();
  if (found && found !== chat) open(found);
  else history.replaceState(null, "", location.pathname + addressOf(chat));
}

function listen() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (isWriting()) stop();
    else send($("prompt").value);
  });
  $("prompt").addEventListener("input", growPrompt);
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !isTouch()) (event.preventDefault(), send($("prompt").value));
  });
  document.addEventListener("keydown", hearKey);
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copyFrom(button);
  });
  $("scroll").addEventListener("scroll", () => ($("jump").hidden = nearEnd()), { passive: true });
  $("jump").addEventListener("click", toEnd);
  listenToSidebar({ current: () => chat, open, draw, isWriting, stop });
  listenToSettings(greet);
  addEventListener("storage", hearOtherTab);
  addEventListener("hashchange", hearAddress);
  addEventListener("pagehide", () => [...writing.keys()].forEach((one) => keep(one))); // what was said so far is not lost
}

$("examples").append(...EXAMPLES.map((text) => view.element("li", {}, view.element("button", { type: "button", class: "example", onclick: () => send(text) }, text))));
listen();
draw();
$("prompt").value = sessionStorage.getItem(DRAFT);
growPrompt();
greet();
$("prompt").focus();
