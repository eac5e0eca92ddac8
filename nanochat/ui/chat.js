// The chat page: what a person does, and what follows from it. store.js keeps the chats, view.js draws them, api.js asks the server.

import { ApiError, fetchModel, renderMarkdown, streamChat } from "./api.js";
import * as store from "./store.js";
import * as view from "./view.js";

const EXAMPLES = ["What is the Moon?", "What is 1234 * 56?", 'How many r are in "strawberry"?', "Who are you?"];
const RENDER_EVERY = 120; // ms between two renderings of an answer that is still being written
const $ = (id) => document.getElementById(id);

let chats = store.loadChats();
let chat = chats.find((one) => `#${one.id}` === location.hash) ?? store.newChat();
let settings = store.loadSettings();
let defaults = { temperature: 0.8, top_p: 1, top_k: 50, max_tokens: 512 };
let writing = null; // {chat, node, controller} of the answer in progress
let toastTimer = 0;
const rendered = new Map(); // text -> safe HTML, only in memory: HTML is never read back from storage
const RENDERED_MAX = 500;

// --------------------------------------------------------------------------------------------------------------------
// Drawing

const actions = {
  switchTo: (node) => !writing && (store.switchTo(chat, node), save(chat), draw()),
  edit: startEditing,
  retry: (node) => removeAndAnswer(node),
  regenerate: (node) => !writing && answer(chat, node.parent),
  open: (other) => openChat(other),
  rename: startRenaming,
  remove: removeChat,
};

function draw() {
  const path = store.pathOf(chat);
  $("empty").hidden = path.length > 0;
  $("thread").replaceChildren(...path.map((node) => (node.role === "user" ? view.userMessage : view.answerMessage)(chat, node, actions)));
  for (const node of path) if (node.role === "assistant") drawAnswer(node);
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
  view.showBlocks(item.querySelector(".body"), blocks, (text) => rendered.get(text));
  item.querySelector(".answer-foot").replaceWith(view.answerFoot(chat, node, actions));
  const missing = blocks.filter((block) => block.kind === "text" && !rendered.has(block.text)).map((block) => block.text);
  if (missing.length && !node.writing) render(missing).then((done) => done && itemOf(node) && drawAnswer(node));
}

// Without HTML the plain text stays on the page, which is a fine answer too.
async function render(texts) {
  try {
    const html = await renderMarkdown(texts, settings.api_key);
    texts.forEach((text, index) => rendered.set(text, html[index]));
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
  const stop = writing?.chat === chat;
  $("send").replaceChildren(view.icon(stop ? "stop" : "send"));
  $("send").setAttribute("aria-label", stop ? "Stop the answer" : "Send");
  $("send").title = stop ? "Stop (Esc)" : "Send (Enter)";
  $("send").classList.toggle("stop", stop);
  $("send").disabled = !stop && (!$("prompt").value.trim() || Boolean(writing));
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
  if (writing || !text.trim()) return;
  const node = store.addNode(chat, chat.leaf, "user", [{ type: "text", text: text.trim() }]);
  $("prompt").value = "";
  growPrompt();
  answer(chat, node.id);
}

function removeAndAnswer(node) {
  if (writing) return;
  chat.nodes = chat.nodes.filter((other) => other !== node);
  chat.leaf = node.parent;
  answer(chat, node.parent);
}

function requestBody(path) {
  const messages = path.filter((node) => node.parts.some((part) => part.text)).map((node) => {
    const plain = node.parts.every((part) => part.type === "text");
    return { role: node.role, content: plain ? store.textOf(node) : node.parts };
  });
  if (settings.system?.trim()) messages.unshift({ role: "system", content: settings.system.trim() });
  const body = { messages };
  for (const name of ["temperature", "top_p", "top_k", "max_tokens", "seed"]) {
    const value = settings[name] ?? defaults[name];
    if (value !== undefined && value !== null) body[name] = value;
  }
  return body;
}

async function answer(target, parent) {
  target.leaf = parent;
  const messages = store.pathOf(target);
  const node = store.addNode(target, parent, "assistant", []);
  const controller = new AbortController();
  node.writing = true;
  writing = { chat: target, node, controller };
  if (!chats.includes(target)) chats.unshift(target);
  save(target);
  draw();
  toEnd();
  announce("nanochat is answering.");
  const clock = { started: performance.now(), first: 0, tokens: 0 };
  const loop = renderLoop(node);
  try {
    for await (const event of streamChat(requestBody(messages), settings.api_key, controller.signal)) readEvent(node, event, clock);
  } catch (error) {
    if (error.name === "AbortError") node.finish = "stopped";
    else node.error = describe(error);
  } finally {
    const seconds = (performance.now() - clock.first) / 1000;
    node.stats = { tokens: clock.tokens, rate: clock.tokens > 1 && seconds > 0 ? (clock.tokens - 1) / seconds : 0 };
    delete node.writing;
    writing = null;
    await loop.end();
    save(target);
    if (target === chat) {
      const follow = nearEnd();
      drawAnswer(node);
      drawList();
      drawSend();
      if (follow) toEnd();
    }
    announce(node.error ? "" : `nanochat: ${store.textOf(node)}`);
  }
}

function readEvent(node, event, clock) {
  if (event.usage) clock.tokens = event.usage.completion_tokens;
  const choice = event.choices?.[0];
  if (!choice) return;
  if (choice.finish_reason) node.finish = choice.finish_reason;
  const part = choice.delta.part ?? (choice.delta.content ? { type: "text", text: choice.delta.content } : null);
  if (!part) return;
  if (!clock.first) clock.first = performance.now();
  clock.tokens += 1;
  const last = node.parts.at(-1);
  if (last?.type === part.type) last.text += part.text;
  else node.parts.push({ type: part.type, text: part.text });
  const seconds = (performance.now() - clock.first) / 1000;
  node.stats = { tokens: clock.tokens, rate: seconds > 0.5 ? (clock.tokens - 1) / seconds : 0 };
}

// While an answer is written: its newest HTML, one request at a time, never more often than RENDER_EVERY.
function renderLoop(node) {
  let ended = false;
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  const run = (async () => {
    while (!ended) {
      await pause(RENDER_EVERY);
      if (!itemOf(node)) continue;
      const blocks = view.blocksOf(node.parts);
      const texts = blocks.filter((block) => block.kind === "text" && !rendered.has(block.text)).map((block) => block.text);
      if (texts.length && !(await render(texts))) await pause(1000);
      if (ended || !itemOf(node)) continue;
      const follow = nearEnd();
      drawAnswer(node, blocks);
      const rate = itemOf(node).querySelector(".rate");
      if (rate && node.stats) rate.textContent = view.rateText(node.stats);
      if (follow) toEnd();
    }
  })();
  return { end: () => ((ended = true), run) };
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
// Editing, and the list of chats

function startEditing(node) {
  if (writing) return;
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
  if (writing?.chat === other) writing.controller.abort();
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
    chats = store.loadChats();
    chat = chats.find((one) => one.id === chat.id) ?? chat;
    draw();
    toast(`${found.length} chat${found.length === 1 ? "" : "s"} imported.`);
  } catch {
    toast("That file is not an export of nanochat.");
  }
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
// Settings

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];

function showSettings() {
  for (const name of NUMBERS) $(name).value = settings[name] ?? defaults[name] ?? "";
  for (const name of ["system", "api_key"]) $(name).value = settings[name] ?? "";
  for (const name of ["temperature", "top_p"]) $(`${name}-value`).textContent = Number($(name).value).toFixed(2);
}

function readSettings() {
  for (const name of NUMBERS) {
    const input = $(name);
    if (input.value === "" || !input.validity.valid) delete settings[name];
    else settings[name] = Number(input.value);
  }
  for (const name of ["system", "api_key"]) settings[name] = $(name).value;
  for (const name of ["temperature", "top_p"]) $(`${name}-value`).textContent = Number($(name).value).toFixed(2);
  store.saveSettings(settings);
}

async function greet() {
  try {
    const model = await fetchModel(settings.api_key);
    defaults = { ...defaults, ...model.defaults };
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
    if (writing?.chat === chat) writing.controller.abort();
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
    if (event.key !== "Escape" || $("settings").open) return;
    if (document.body.classList.contains("sidebar-open")) closeSidebar();
    else if (writing?.chat === chat) writing.controller.abort();
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
  $("open-settings").addEventListener("click", () => (showSettings(), $("settings").showModal()));
  $("settings-form").addEventListener("input", readSettings);
  $("settings").addEventListener("click", (event) => event.target === $("settings") && $("settings").close());
  $("settings").addEventListener("close", greet);
  $("reset-settings").addEventListener("click", () => {
    settings = { api_key: settings.api_key };
    store.saveSettings(settings);
    showSettings();
  });
  addEventListener("storage", () => {
    if (writing) return;
    chats = store.loadChats();
    chat = chats.find((one) => one.id === chat.id) ?? chat;
    draw();
  });
}

$("examples").append(...EXAMPLES.map((text) => view.element("li", {}, view.element("button", { type: "button", class: "example", onclick: () => send(text) }, text))));
listen();
draw();
greet();
$("prompt").focus();
