// The list of chats: searched, renamed, deleted, carried elsewhere. On a phone it lies over the page.

import * as store from "./store.js";
import { $, chatItem, element, toast } from "./view.js";

export let chats = store.loadChats(); // newest first
let page = null; // {current, open, draw, isWriting, stop}: what chat.js does with a chat

export function drawList() {
  if ($("chats").querySelector(".rename")) return; // a name is being written
  const wanted = $("search").value.trim().toLowerCase();
  const says = (text) => text.toLowerCase().includes(wanted);
  const found = chats.filter((one) => says(store.titleOf(one)) || one.nodes.some((node) => says(store.textOf(node))));
  $("chats").replaceChildren(...found.map((one) => chatItem(one, store.titleOf(one), one === page.current(), { rename, remove })));
  $("no-chats").hidden = found.length > 0;
  $("no-chats").textContent = wanted ? "No chat has these words." : "Your chats stay in this browser.";
  $("export").disabled = chats.length === 0;
}

// Put a chat into the list and into storage. `updated`: the time that it is listed by.
export function keep(chat, updated = Date.now()) {
  if (!chats.includes(chat)) chats.push(chat);
  chat.updated = updated;
  chats.sort((a, b) => b.updated - a.updated);
  try {
    store.saveChat(chat);
  } catch {
    toast("This browser's storage is full. Export your chats, then delete some.");
  }
}

// What is in storage now, since another tab or a file has changed it.
export function reload() {
  const mine = new Map(chats.map((one) => [one.id, one]));
  chats = store.loadChats().map((one) => {
    const here = mine.get(one.id);
    if (!here) return one;
    return page.isWriting(here) ? store.merge(here, one) : Object.assign(here, one);
  });
}

function rename(chat) {
  const item = $("chats").querySelector(`[data-id="${chat.id}"]`);
  const title = store.titleOf(chat);
  const input = element("input", { type: "text", class: "rename", "aria-label": "Name of the chat", maxlength: "200" });
  input.value = title;
  const close = (event) => {
    input.removeEventListener("blur", close); // taking it away is a blur too
    const name = input.value.trim();
    input.remove();
    if (event.key !== "Escape" && name && name !== title) (chat.title = name), keep(chat, chat.updated);
    page.draw();
  };
  input.addEventListener("keydown", (event) => {
    if (["Enter", "Escape"].includes(event.key)) (event.preventDefault(), event.stopPropagation(), close(event));
  });
  input.addEventListener("blur", close);
  item.replaceChildren(input);
  input.select();
}

function remove(chat) {
  page.stop(chat);
  chats = chats.filter((one) => one !== chat);
  store.removeChat(chat);
  const isOpen = chat === page.current();
  if (isOpen) page.open(store.newChat());
  drawList();
  toast("The chat was deleted.", "Undo", () => (keep(chat, chat.updated), isOpen ? page.open(chat) : drawList()));
}

function exportAll() {
  const url = URL.createObjectURL(new Blob([store.exportChats(chats)], { type: "application/json" }));
  element("a", { href: url, download: `nanochat-${new Date().toISOString().slice(0, 10)}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

async function importFile(file) {
  try {
    const found = store.importChats(await file.text());
    for (const one of found) store.saveChat(one);
    reload();
    page.draw();
    toast(`${found.length} chat${found.length === 1 ? "" : "s"} imported.`);
  } catch {
    toast("That file is not an export of nanochat.");
  }
}

export function listenToSidebar(callbacks) {
  page = callbacks;
  $("search").addEventListener("input", drawList);
  $("new-chat").addEventListener("click", () => page.open(store.newChat()));
  $("chats").addEventListener("click", (event) => event.target.closest("a") && $("sidebar").hidePopover());
  $("export").addEventListener("click", exportAll);
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", async (event) => {
    if (event.target.files[0]) await importFile(event.target.files[0]);
    event.target.value = "";
  });
}
