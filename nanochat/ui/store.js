// Chats and settings in this browser. One localStorage key a chat, so that two tabs do not overwrite each other.
// A chat is a tree: editing a message or asking again adds a sibling, and nothing that was said is lost.
// chat = {version, id, title, created, updated, leaf, nodes: [{id, parent, role, parts: [{type, text}], ...}]}

const PREFIX = "nanochat.chat.";
const SETTINGS = "nanochat.settings";
const KINDS = ["text", "python", "python_output"];

export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (b) => b.toString(16).padStart(2, "0")).join("");

export function newChat() {
  const now = Date.now();
  return { version: 1, id: newId(), title: "", created: now, updated: now, leaf: null, nodes: [] };
}

export function addNode(chat, parent, role, parts) {
  const node = { id: newId(), parent, role, parts, created: Date.now() };
  chat.nodes.push(node);
  chat.leaf = node.id;
  return node;
}

export const textOf = (node) => node.parts.filter((part) => part.type === "text").map((part) => part.text).join("");

// The messages that are shown, first to last.
export function pathOf(chat) {
  const byId = new Map(chat.nodes.map((node) => [node.id, node]));
  const path = [];
  for (let node = byId.get(chat.leaf); node && path.length <= chat.nodes.length; node = byId.get(node.parent)) path.unshift(node);
  return path;
}

export const siblingsOf = (chat, node) => chat.nodes.filter((other) => other.parent === node.parent && other.role === node.role);

// Show this node and whatever was said last after it.
export function switchTo(chat, node) {
  let last = node;
  for (let child = node; child; child = chat.nodes.findLast((other) => other.parent === last.id)) last = child;
  chat.leaf = last.id;
}

export function titleOf(chat) {
  if (chat.title) return chat.title;
  const first = pathOf(chat).find((node) => node.role === "user");
  const text = first ? textOf(first).replace(/\s+/g, " ").trim() : "";
  return text.length > 60 ? text.slice(0, 58).trimEnd() + "…" : text || "New chat";
}

export const keyOf = (chat) => PREFIX + chat.id;
export const isChatKey = (key) => Boolean(key?.startsWith(PREFIX));

// `mine` with all that `other`, the same chat in another tab, has and it lacks: nodes are only added, and only grow.
export function merge(mine, other) {
  const theirs = new Map(other.nodes.map((node) => [node.id, node]));
  for (const node of mine.nodes) {
    const their = theirs.get(node.id);
    if (their && JSON.stringify(their.parts).length > JSON.stringify(node.parts).length) Object.assign(node, their);
    theirs.delete(node.id);
  }
  mine.nodes.push(...theirs.values());
  return mine;
}

// Throws if the browser's storage is full; the caller says so.
export function saveChat(chat) {
  const stored = loadChat(keyOf(chat));
  localStorage.setItem(keyOf(chat), JSON.stringify(stored ? merge(chat, stored) : chat));
}

export const removeChat = (chat) => localStorage.removeItem(keyOf(chat));

// A damaged entry is left where it is: not shown, not lost.
function loadChat(key) {
  try {
    return checkChat(JSON.parse(localStorage.getItem(key)));
  } catch {
    return null;
  }
}

export const loadChats = () => Object.keys(localStorage).filter(isChatKey).map(loadChat).filter(Boolean).sort((a, b) => b.updated - a.updated);

// What comes from a file or from storage is not trusted: only known fields of the right type are kept.
export function checkChat(value) {
  if (!value || value.version !== 1 || typeof value.id !== "string" || !/^[\w-]{1,64}$/.test(value.id) || !Array.isArray(value.nodes)) {
    throw new Error("not a chat");
  }
  const seen = new Set();
  const nodes = value.nodes.map((node) => {
    const known = typeof node.id === "string" && ["user", "assistant"].includes(node.role) && Array.isArray(node.parts);
    if (!known || seen.has(node.id) || (node.parent !== null && !seen.has(node.parent))) throw new Error("not a chat");
    seen.add(node.id);
    const parts = node.parts.filter((part) => KINDS.includes(part.type)).map((part) => ({ type: part.type, text: String(part.text) }));
    const kept = { id: node.id, parent: node.parent, role: node.role, parts, created: Number(node.created) || 0 };
    if (node.stats) kept.stats = { tokens: Number(node.stats.tokens) || 0, rate: Number(node.stats.rate) || 0 };
    if (["stop", "length", "stopped"].includes(node.finish)) kept.finish = node.finish;
    if (typeof node.error === "string") kept.error = node.error.slice(0, 1000);
    if (node.tooLong === true) kept.tooLong = true;
    if (Array.isArray(node.ids) && node.ids.every(Number.isInteger)) kept.ids = node.ids;
    if (Number.isInteger(node.left_out) && node.left_out > 0) kept.left_out = node.left_out;
    if (typeof node.model === "string") kept.model = node.model.slice(0, 200);
    return kept;
  });
  return {
    version: 1, id: value.id, nodes,
    title: typeof value.title === "string" ? value.title.slice(0, 200) : "",
    created: Number(value.created) || 0, updated: Number(value.updated) || 0,
    leaf: seen.has(value.leaf) ? value.leaf : nodes.length ? nodes.at(-1).id : null,
  };
}

export const exportChats = (chats) => JSON.stringify({ format: "nanochat-chats", version: 1, chats }, null, 1);

export function importChats(text) {
  const file = JSON.parse(text);
  if (file.format !== "nanochat-chats" || !Array.isArray(file.chats)) throw new Error("not an export of nanochat");
  return file.chats.map(checkChat);
}

export function loadSettings() {
  try {
    const value = JSON.parse(localStorage.getItem(SETTINGS));
    return value && typeof value === "object" ? value : {};
  } catch {
    return {};
  }
}

export const saveSettings = (settings) => localStorage.setItem(SETTINGS, JSON.stringify(settings));
