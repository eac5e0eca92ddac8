// A run that can be watched: reads its log from the server as it grows, and shows its curves and what the model says.

import { ApiError, fetchHealth, fetchRun, fetchRuns } from "./api.js";
import { Chart, short, smooth } from "./chart.js";
import { loadSettings } from "./store.js";
import { $, element } from "./view.js";

const STAGES = { base: "Pretraining", mid: "Midtraining", sft: "Finetuning", rl: "Reinforcement learning" };
const NOT_CURVES = ["step", "loss", "multiplier", "seconds", "tokens", "progress", "epoch", "samples"];
const LIVE_EVERY = 2000; // ms between two looks at a run that is going on
const IDLE_EVERY = 6000;
const QUIET = 60; // s without a new line, after which a run is not called live
const key = loadSettings().api_key;

let run = null; // {name, rows, after, file, quiet_for}
let charts = new Map();
let chosenSample = null; // index, or null for the newest

// --------------------------------------------------------------------------------------------------------------------
// Reading

async function look() {
  let wait = IDLE_EVERY;
  try {
    const runs = await fetchRuns(key);
    drawRuns(runs);
    await showHealth();
    const wanted = location.hash.slice(1);
    const name = runs.some((one) => one.name === wanted) ? wanted : runs[0]?.name;
    if (name) wait = (await follow(name)) ? LIVE_EVERY : IDLE_EVERY;
  } catch (error) {
    say(error instanceof ApiError && error.status === 401 ? "This server asks for an API key. Put it into the settings of the chat, then come back." : "The server does not answer. This page tries again by itself.", true);
  }
  clearTimeout(look.timer);
  look.timer = setTimeout(look, document.hidden ? 5 * wait : wait);
}

async function follow(name) {
  if (run?.name !== name) (run = { name, rows: [], after: 0, file: 0, quiet_for: 0 }), (chosenSample = null), startCharts();
  const mine = run;
  let part;
  do {
    part = await fetchRun(name, mine.after, mine.file, key);
    if (run !== mine) return true; // another run was chosen meanwhile
    if (part.fresh) mine.rows = [];
    mine.rows.push(...part.rows);
    Object.assign(mine, { after: part.after, file: part.file, quiet_for: part.quiet_for });
  } while (part.more);
  draw();
  return isLive();
}

async function showHealth() {
  const { ready, message } = await fetchHealth();
  $("to-chat").hidden = !ready;
  if (ready && showHealth.waited) say("The model is ready: you can chat with it now.", false, element("a", { href: "/" }, "Open the chat"));
  else say(message ?? "", false);
  showHealth.waited ||= !ready && Boolean(message);
}

function say(text, wrong, ...more) {
  if ($("banner").dataset.text === text) return;
  $("banner").dataset.text = text;
  $("banner").replaceChildren(text, " ", ...more);
  $("banner").hidden = !text;
  $("banner").classList.toggle("wrong", wrong);
}

// --------------------------------------------------------------------------------------------------------------------
// Drawing

const points = (name) => run.rows.filter((row) => Number.isFinite(row[name])).map((row) => [row.step, row[name]]);
const lastOf = (name) => run.rows.findLast((row) => row[name] !== undefined)?.[name];
const isFinished = () => lastOf("progress") >= 1;
const isLive = () => !isFinished() && run.quiet_for < QUIET;
const nameOf = ({ stage, tag }) => `${STAGES[stage] ?? stage} · ${tag}`;

function drawRuns(runs) {
  $("nothing").hidden = runs.length > 0;
  $("run").hidden = !runs.length;
  $("picker").hidden = runs.length < 2;
  const names = runs.map((one) => one.name).sort();
  if ($("runs").dataset.names === names.join()) return;
  $("runs").dataset.names = names.join();
  $("runs").replaceChildren(...runs.map((one) => element("option", { value: one.name }, nameOf(one))));
  if (run) $("runs").value = run.name;
}

function startCharts() {
  charts = new Map();
  $("charts").replaceChildren();
  $("runs").value = run.name;
}

function chart(name, title, unit, lines, { wide = false, zero = false } = {}) {
  if (!charts.has(name)) {
    const made = new Chart(title, unit, zero);
    made.figure.classList.toggle("wide", wide);
    charts.set(name, made);
    $("charts").append(made.figure);
  }
  charts.get(name).update(lines);
}

function draw() {
  const [stage, ...tag] = run.name.split("-");
  $("title").textContent = nameOf({ stage, tag: tag.join("-") });
  document.title = `${STAGES[stage] ?? stage} · nanochat`;
  const state = isFinished() ? "finished" : isLive() ? "live" : "stopped";
  $("state").className = `pill ${state}`;
  $("state").textContent = { finished: "Finished", live: "Live", stopped: "Not running" }[state];
  $("when").textContent = state === "live" ? "updates by itself" : `last line ${ago(run.quiet_for)} ago`;
  drawTiles();
  drawCharts(stage);
  drawSamples();
}

function drawTiles() {
  const progress = lastOf("progress");
  const seconds = lastOf("seconds");
  const losses = points("loss");
  $("progress").hidden = progress === undefined;
  $("progress").setAttribute("aria-valuenow", Math.round(100 * (progress ?? 0)));
  $("progress").firstElementChild.style.width = `${100 * (progress ?? 0)}%`;
  const rate = speed().at(-1)?.[1];
  const tiles = [
    ["Step", short(lastOf("step"))],
    ["Loss", short(smooth(losses).at(-1)?.[1])],
    ["Bits per byte", lastOf("val_bpb") && short(lastOf("val_bpb"))],
    ["Tokens seen", lastOf("tokens") && short(lastOf("tokens"))],
    ["Tokens/s", rate && short(Math.round(rate))],
    ["Time", seconds !== undefined && clock(seconds)],
    ["Left", isLive() && progress > 0.005 && clock((seconds / progress) * (1 - progress))],
  ];
  $("tiles").replaceChildren(...tiles.filter(([, value]) => value).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

function drawCharts(stage) {
  const losses = points("loss");
  const lines = [{ name: "each step", points: losses, look: "faint" }, { name: "training", points: smooth(losses), look: "first" }];
  chart("loss", stage === "rl" ? "Policy loss" : "Loss", "nats a token", lines, { wide: true });
  const names = [...new Set(run.rows.flatMap((row) => Object.keys(row)))].filter((name) => !NOT_CURVES.includes(name));
  const losts = names.filter((name) => name.startsWith("loss "));
  if (losts.length) chart("validation", "Held-out loss", "nats a token", losts.map((name, index) => ({ name: name.slice(5), points: points(name), look: `look-${index % 8}`, dots: true })), { wide: true });
  for (const name of names.filter((one) => !losts.includes(one))) {
    chart(name, name === "val_bpb" ? "Held-out text" : name, name.endsWith("bpb") ? "bits per byte" : "", [{ name: name === "val_bpb" ? "validation" : name.replace("_", " "), points: points(name), look: "second", dots: true }]);
  }
  chart("speed", "Speed", "tokens a second", [{ name: "speed", points: speed(), look: "look-2" }], { zero: true });
  chart("rate", "Learning rate", "share of its peak", [{ name: "multiplier", points: points("multiplier"), look: "look-3" }], { zero: true });
}

// Tokens a second between steps some seconds apart: one alone is mostly noise.
function speed() {
  const rows = run.rows.filter((row) => row.tokens !== undefined && row.seconds !== undefined);
  const width = Math.max(1, Math.round(rows.length / 60));
  const found = [];
  for (let at = width; at < rows.length; at += width) {
    const seconds = rows[at].seconds - rows[at - width].seconds;
    if (seconds > 0) found.push([rows[at].step, (rows[at].tokens - rows[at - width].tokens) / seconds]);
  }
  return found;
}

function drawSamples() {
  const all = run.rows.filter((row) => row.samples?.length);
  $("samples").hidden = !all.length;
  if (!all.length) return;
  const at = Math.min(chosenSample ?? all.length - 1, all.length - 1);
  $("sample").max = all.length - 1;
  $("sample").value = at;
  $("sample").hidden = all.length < 2;
  const text = `after step ${all[at].step.toLocaleString("en")}`;
  $("sample").setAttribute("aria-valuetext", text);
  const mark = `${run.name} ${all[at].step}`;
  if ($("sample-step").dataset.mark === mark) return;
  $("sample-step").dataset.mark = mark;
  $("sample-step").textContent = text;
  const goesOn = run.name.startsWith("base-");
  $("sample-list").replaceChildren(...all[at].samples.map(({ prompt, text }) => element("li", { class: goesOn ? "sample goes-on" : "sample" },
    element("span", { class: "sample-prompt" }, String(prompt)), element("span", { class: "sample-text" }, (goesOn ? String(text) : String(text).trim()) || "(nothing)"))));
}

function clock(seconds) {
  const s = Math.max(0, Math.round(seconds));
  const pad = (n) => String(n).padStart(2, "0");
  return s >= 3600 ? `${Math.floor(s / 3600)}:${pad(Math.floor(s / 60) % 60)}:${pad(s % 60)}` : `${Math.floor(s / 60)}:${pad(s % 60)}`;
}

function ago(seconds) {
  const [size, unit] = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]].find(([size]) => seconds >= size) ?? [1, "second"];
  const count = Math.max(1, Math.floor(seconds / size));
  return `${count} ${unit}${count === 1 ? "" : "s"}`;
}

$("runs").addEventListener("change", () => (location.hash = $("runs").value));
$("sample").addEventListener("input", () => {
  const newest = Number($("sample").value) === Number($("sample").max);
  chosenSample = newest ? null : Number($("sample").value);
  drawSamples();
});
addEventListener("hashchange", look);
document.addEventListener("visibilitychange", () => document.hidden || look());
look();
