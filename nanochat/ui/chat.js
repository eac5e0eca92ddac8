// The chat page: what a person does, and what follows from it. store.js keeps the chats, view.js draws them, api.js asks the server.

import { ApiError, fetchModel, renderMarkdown, streamChat } from "./api.js";
import { defaults, listenToSettings, sampling, settings, showSettings } from "./settings.js";
import * as store from "./store.js";
import { closeAlternatives, readTokens, tokenView } from "./tokens.js";
import * as view from "./view.js";

const EXAMPLES = ["What is the Moon?", "What is 1234 * 56?", 'How many r are in "strawberry"?', "Who are you?"];
const RENDER_EVERY = 120; // ms between two renderings of an answer that is still being written
const $ = (id) => document.getElementById(id);

let chats = store.loadChats();
let chat = chats.find((one) => `#${one.id}` === location.hash) ?? store.newChat();
let modelName = "";
const writing = new Map(); // chat -> {node, controller} of its answer in progress
let toastTimer = 0;
const rendered = new Map(); // text -> safe HTML, only in memory: HTML is never read back from storage
const RENDERED_MAX = 500;
const dissected = new Map(); // id of an answer that is shown as tokens -> {tokens, ids}, or null while they are asked for
const ALTERNATIVES = 8;

// --------------------------------------------------------------------------------------------------------------------
// Drawing

const actions = {
  switchTo: (node) => !isWriting() && (store.switchTo(chat, node), save(chat), draw()),
  edit: startEditing,
  retry: (node) => removeAndAnswer(node),
  shorten: (node) => startEditing(chat.nodes.find((other) => other.id === node.parent)),
  regenerate: (node) => !isWriting() && answer(chat, node.parent),
  goOn: (node) => !isWriting() && answer(chat, node.parent, beginOf(node)),
  tokens: toggleTokens,
  isDissected: (node) => dissected.has(node.id),
  open: (other) => openChat(other),
  rename: startRenaming,
  remove: removeChat,
};

const isWriting = () => writing.has(chat);

function draw() {
  const path = store.pathOf(chat);
  $("empty").hidden = path.length > 0;
  $("thread").replaceChildren(...path.map((node) => (node.role === "user" ? view.userMessage : view.answerMessage)(chat, node, actions)));
  for (const node of path) if (node.role === "assistant") drawAnswer(node);
  drawHorizon(path);
  $("title").textContent = store.titleOf(chat);
  document.title = path.length ? `${store.titleOf(chat)} · nanochat` : "nanochat";
  history.replaceState(null, "", path.length ? `#${chat.id}` : location.pathname); // a reload comes back to this chat
  drawList();
  drawSend();
}

const itemOf = (node) => $("thread").querySelector(`[data-id="${node.id}"]`);

function drawAnswer(node, blocks = view.blocksOf(node.parts)) {
  const item = itemOf(node);
  if (!item) return;
  item.querySelector(".answer-foot").replaceWith(view.answerFoot(chat, node, actions));
  const found = dissected.get(node.id);
  if (found) return item.querySelector(".body").replaceChildren(tokenView(found.tokens, (token, other) => goOnFrom(node, token, other)));
  item.querySelector(".token-view")?.remove();
  view.showBlocks(item.querySelector(".body"), blocks, (text) => rendered.get(text));
  const missing = blocks.filter((block) => block.kind === "text" && !rendered.has(block.text)).map((block) => block.text);
  if (missing.length && !node.writing) render(missing).then((done) => done && itemOf(node) && drawAnswer(node));
}

// Of the messages that are sent, those that stay when the first `leftOut` turns do not fit (the server joins messages of
// one role to a turn).
function seenOf(path, leftOut = 0) {
  const sent = path.filter(isSent);
  const first = sent.findIndex((node, index) => node.role !== sent[index - 1]?.role && leftOut-- === 0);
  return sent.slice(Math.max(0, first));
}

// A line above the first message that was in the context of the last answer, if others were not.
function drawHorizon(path = store.pathOf(chat)) {
  $("thread").querySelector(".horizon")?.remove();
  const leftOut = path.findLast((node) => node.role === "assistant" && isSent(node))?.left_out;
  if (leftOut) itemOf(seenOf(path, leftOut)[0])?.before(view.element("li", { class: "horizon" }, `The model no longer sees what is above: its context holds ${$("max_tokens").max || "few"} tokens.`));
}

// Without HTML the plain text stays on the page, which is a fine answer too.
async function render(texts, into = rendered, writing = false) {
  try {
    const html = await renderMarkdown(texts, writing, settings.api_key);
    texts.forEach((text, index) => into.set(text, html[index]));
    for (const old of rendered.keys()) if (rendered.size > RENDERED_MAX) rendered.delete(old);
  } catch {
    return false;
  }
  return true;
}

function drawList() {
  const wanted = $("search").value.trim().toLowerCase();
  const found = chats.filter((one) => !wanted || store.titleOf(one).toLowerCase().includes(wanted) || one.nodes.some((node) => store.textOf(node).toLowerCase().includes(wanted)));
  $("chats").replaceChildren(...found.map((one) => view.chatItem(one, store.titleOf(one), one.id === chat.id, actions)));
  $("no-chats").hidden = found.length > 0;
  $("no-chats").textContent = wanted ? "No chat has these words." : "Your chats stay in this browser.";
  $("export").disabled = chats.length === 0;
}

function drawSend() {
  const stop = isWriting();
  $("send").replaceChildren(view.icon(stop ? "stop" : "send"));
  $("send").setAttribute("aria-label", stop ? "Stop the answer" : "Send");
  $("send").title = stop ? "Stop (Esc)" : "Send (Enter)";
  $("send").classList.toggle("stop", stop);
  $("send").disabled = !stop && !$("prompt").value.trim();
}

const nearEnd = () => $("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight < 80;
const toEnd = () => ($("scroll").scrollTop = $("scroll").scrollHeight);

function toast(text, label, action) {
  clearTimeout(toastTimer);
  $("toast").replaceChildren(view.element("span", {}, text));
  if (label) $("toast").append(view.element("button", { type: "button", class: "text", onclick: () => (($("toast").hidden = true), action()) }, label));
  $("toast").hidden = false;
  toastTimer = setTimeout(() => ($("toast").hidden = true), 7000);
}

const announce = (text) => ($("status").textContent = text);

// --------------------------------------------------------------------------------------------------------------------
// Asking

function send(text) {
  if (isWriting() || !text.trim()) return;
  const node = store.addNode(chat, chat.leaf, "user", [{ type: "text", text: text.trim() }]);
  $("prompt").value = "";
  growPrompt();
  answer(chat, node.id);
}

function removeAndAnswer(node) {
  if (isWriting()) return;
  chat.nodes = chat.nodes.filter((other) => other !== node);
  chat.leaf = node.parent;
  answer(chat, node.parent);
}

const isSent = (node) => node.parts.some((part) => part.text);

function requestBody(path, begin) {
  const messages = path.filter(isSent).map((node) => {
    const plain = node.parts.every((part) => part.type === "text");
    return { role: node.role, content: plain ? store.textOf(node) : node.parts };
  });
  if (settings.system?.trim()) messages.unshift({ role: "system", content: settings.system.trim() });
  // With logprobs come the ids, by which an answer can go on.
  const body = { messages, ...sampling(), logprobs: true, truncation: "auto" };
  if (begin) body.begin_with = begin;
  return body;
}

// begin: token ids or text that the answer starts with.
async function answer(target, parent, begin = null) {
  target.leaf = parent;
  const messages = store.pathOf(target);
  const node = store.addNode(target, parent, "assistant", []);
  const controller = new AbortController();
  node.writing = true;
  node.model = modelName;
  writing.set(target, { node, controller });
  if (!chats.includes(target)) chats.unshift(target);
  save(target);
  draw();
  toEnd();
  announce("nanochat is answering.");
  const clock = { started: performance.now(), first: 0, tokens: 0, given: Array.isArray(begin) ? begin.length : 0 };
  const loop = renderLoop(node);
  try {
    for await (const event of streamChat(requestBody(messages, begin), settings.api_key, controller.signal)) readEvent(node, event, clock);
  } catch (error) {
    if (error.name === "AbortError") node.finish = "stopped";
    else Object.assign(node, { error: describe(error), tooLong: error.code === "context_length_exceeded" });
  } finally {
    delete node.writing;
    writing.delete(target);
    await loop.end();
    save(target);
    if (target === chat) {
      const follow = nearEnd();
      drawAnswer(node);
      drawHorizon();
      drawList();
      drawSend();
      if (follow) toEnd();
    }
    announce(node.error ? "" : `nanochat: ${store.textOf(node)}`);
  }
  return node;
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

// While an answer is written: its newest HTML, one request at a time, never more often than RENDER_EVERY.
function renderLoop(node) {
  let ended = false;
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const run = (async () => {
    let shown = new Map();
    while (!ended) {
      await pause(RENDER_EVERY);
      if (!itemOf(node)) continue;
      const blocks = view.blocksOf(node.parts);
      const fresh = new Map();
      const texts = blocks.filter((block) => block.kind === "text" && !rendered.has(block.text)).map((block) => block.text);
      const last = blocks.at(-1)?.kind === "text" && texts.length ? texts.pop() : null;
      if (texts.length) await render(texts);
      if (last && !shown.has(last) && !(await render([last], fresh, true))) await pause(1000);
      else if (last && shown.has(last)) fresh.set(last, shown.get(last));
      if (ended || !itemOf(node)) continue;
      shown = fresh;
      const follow = nearEnd();
      view.showBlocks(itemOf(node).querySelector(".body"), blocks, (text) => rendered.get(text) ?? fresh.get(text));
      showRate(node);
      if (follow) toEnd();
    }
  })();
  return { end: () => ((ended = true), run) };
}

function showRate(node) {
  const foot = itemOf(node).querySelector(".answer-foot");
  if (foot.querySelector(".thinking") && node.parts.length) foot.replaceWith(view.answerFoot(chat, node, actions));
  const rate = itemOf(node).querySelector(".rate");
  if (rate && node.stats) rate.textContent = view.rateText(node.stats);
}

function describe(error) {
  if (!(error instanceof ApiError)) return `Something went wrong on this page: ${error.message}`;
  if (error.status === 401) return "The server asks for an API key. Put it in the settings, then try again.";
  if (error.status === 429) return `${error.message}${error.retryAfter ? ` Try again in ${error.retryAfter} s.` : ""}`;
  return error.message;
}

function save(target) {
  target.updated = Date.now();
  chats.sort((a, b) => b.updated - a.updated);
  try {
    store.saveChat(target);
  } catch {
    toast("This browser's storage is full. Export your chats, then delete some.");
  }
}

// --------------------------------------------------------------------------------------------------------------------
// The tokens of an answer

// What an answer would begin with to be said again: its tokens, if the model that is here now wrote them, or its text.
const beginOf = (node) => (node.ids?.length && node.model === modelName ? node.ids : store.textOf(node));

// Ask for the answer once more, begun with itself: so its probabilities come, whenever and by whomever it was written.
async function toggleTokens(node) {
  if (isWriting()) return;
  if (dissected.delete(node.id)) return drawAnswer(node);
  dissected.set(node.id, null);
  drawAnswer(node);
  try {
    dissected.set(node.id, await tokensOf(node, beginOf(node)).catch((error) => {
      if (error.status !== 400) throw error;
      return tokensOf(node, store.textOf(node)); // tokens of another vocabulary, or one that only ends an answer
    }));
  } catch (error) {
    dissected.delete(node.id);
    toast(describe(error));
  }
  if (!itemOf(node)) return;
  drawAnswer(node);
  announce("The tokens of the answer are shown.");
  itemOf(node).querySelector(".token")?.focus({ preventScroll: true });
}

async function tokensOf(node, begin) {
  const path = seenOf(store.pathOf({ ...chat, leaf: node.parent }), node.left_out); // what it was an answer to
  if (node.finish === "length" && Array.isArray(begin)) begin = begin.slice(0, -1); // the context may have no room for one more
  const body = { ...requestBody(path, begin), max_tokens: 1, temperature: 0, top_logprobs: ALTERNATIVES };
  return readTokens(streamChat(body, settings.api_key), begin);
}

async function goOnFrom(node, token, other) {
  if (isWriting()) return;
  const { ids } = dissected.get(node.id);
  const begun = await answer(chat, node.parent, [...ids.slice(0, token.at), other.id]);
  if (!begun.error && chat.nodes.includes(begun)) toggleTokens(begun);
}

// --------------------------------------------------------------------------------------------------------------------
// Editing, and the list of chats

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

function openChat(other) {
  chat = other;
  draw();
  toEnd();
  closeSidebar();
  $("prompt").focus();
}

function startRenaming(other) {
  const item = $("chats").querySelector(`[data-id="${other.id}"]`);
  const input = view.element("input", { type: "text", class: "rename", "aria-label": "Name of the chat", maxlength: "200" });
  input.value = store.titleOf(other);
  let open = true;
  const close = (keep) => {
    if (!open) return;
    open = false;
    if (keep && input.value.trim() && input.value.trim() !== store.titleOf(other)) {
      other.title = input.value.trim();
      const { updated } = other;
      save(other);
      other.updated = updated;
    }
    draw();
  };
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === "Escape") (event.preventDefault(), event.stopPropagation(), close(event.key === "Enter"));
  });
  input.addEventListener("blur", () => close(true));
  item.replaceChildren(input);
  input.focus();
  input.select();
}

function removeChat(other) {
  writing.get(other)?.controller.abort();
  chats = chats.filter((one) => one !== other);
  store.removeChat(other.id);
  if (chat === other) chat = store.newChat();
  draw();
  toast("The chat was deleted.", "Undo", () => (chats.push(other), save(other), openChat(other)));
}

function exportAll() {
  const url = URL.createObjectURL(new Blob([store.exportChats(chats)], { type: "application/json" }));
  view.element("a", { href: url, download: `nanochat-${new Date().toISOString().slice(0, 10)}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

async function importFile(file) {
  try {
    const found = store.importChats(await file.text());
    for (const one of found) store.saveChat(one);
    reload();
    toast(`${found.length} chat${found.length === 1 ? "" : "s"} imported.`);
  } catch {
    toast("That file is not an export of nanochat.");
  }
}

// What is in storage, but chats that are being answered as they are here.
function reload() {
  const here = new Map([...writing.keys()].map((one) => [one.id, one]));
  chats = store.loadChats().map((one) => here.get(one.id) ?? one);
  chat = chats.find((one) => one.id === chat.id) ?? chat;
  draw();
}

function openSidebar() {
  document.body.classList.add("sidebar-open");
  $("scrim").hidden = false;
  $("page").inert = true;
  $("open-sidebar").setAttribute("aria-expanded", "true");
  $("close-sidebar").focus();
}

function closeSidebar() {
  if (!document.body.classList.contains("sidebar-open")) return;
  document.body.classList.remove("sidebar-open");
  $("scrim").hidden = true;
  $("page").inert = false;
  $("open-sidebar").setAttribute("aria-expanded", "false");
  $("open-sidebar").focus();
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
      setTimeout(greet, 3000);
    }
  }
  showSettings();
}

// --------------------------------------------------------------------------------------------------------------------
// Events

function growPrompt() {
  const area = $("prompt");
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

function listen() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (isWriting()) writing.get(chat).controller.abort();
    else send($("prompt").value);
  });
  $("prompt").addEventListener("input", growPrompt);
  $("prompt").addEventListener("keydown", (event) => {
    const touch = matchMedia("(pointer: coarse)").matches;
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !touch) {
      event.preventDefault();
      send($("prompt").value);
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() === "o" && event.shiftKey && (event.ctrlKey || event.metaKey)) (event.preventDefault(), openChat(store.newChat()));
    if (event.key !== "Escape" || $("settings").open) return;
    if (document.body.classList.contains("sidebar-open")) closeSidebar();
    else writing.get(chat)?.controller.abort();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copyFrom(button);
  });
  $("scroll").addEventListener("scroll", () => ($("jump").hidden = nearEnd()), { passive: true });
  $("jump").addEventListener("click", toEnd);
  $("new-chat").addEventListener("click", () => openChat(store.newChat()));
  $("search").addEventListener("input", drawList);
  $("export").addEventListener("click", exportAll);
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", () => $("import-file").files[0] && importFile($("import-file").files[0]).then(() => ($("import-file").value = "")));
  $("open-sidebar").addEventListener("click", openSidebar);
  $("close-sidebar").addEventListener("click", closeSidebar);
  $("scrim").addEventListener("click", closeSidebar);
  listenToSettings(greet);
  addEventListener("storage", () => isWriting() || reload());
}

$("examples").append(...EXAMPLES.map((text) => view.element("li", {}, view.element("button", { type: "button", class: "example", onclick: () => send(text) }, text))));
listen();
draw();
greet();
$("prompt").focus();
