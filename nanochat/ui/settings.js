// The settings of this browser, and the dialog that changes them. What is not set here is the server's choice.

import * as store from "./store.js";
import { $ } from "./view.js";

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const TEXTS = ["system", "api_key", "theme"];

export const settings = store.loadSettings();
export const defaults = { temperature: 0.8, top_p: 1, top_k: 50, max_tokens: 512 };

// The sampling of a request, in the API's words.
export function sampling() {
  const values = {};
  for (const name of NUMBERS) {
    const value = settings[name] ?? defaults[name];
    if (value !== undefined && value !== null) values[name] = value;
  }
  return values;
}

export function showSettings() {
  for (const name of NUMBERS) $(name).value = settings[name] ?? defaults[name] ?? "";
  for (const name of TEXTS) $(name).value = settings[name] ?? "";
  showSliders();
}

function showSliders() {
  for (const name of ["temperature", "top_p"]) $(`${name}-value`).textContent = Number($(name).value).toFixed(2);
}

function readSettings() {
  for (const name of NUMBERS) {
    const input = $(name);
    if (input.value === "" || !input.validity.valid) delete settings[name];
    else settings[name] = Number(input.value);
  }
  for (const name of TEXTS) settings[name] = $(name).value;
  showSliders();
  store.saveSettings(settings);
  globalThis.applyTheme();
}

function resetSettings() {
  for (const name of [...NUMBERS, "system", "theme"]) delete settings[name];
  store.saveSettings(settings);
  showSettings();
  globalThis.applyTheme();
}

// onclose: what to do when the dialog has been closed.
export function listenToSettings(onclose) {
  $("open-settings").addEventListener("click", () => (showSettings(), $("settings").showModal()));
  $("settings-form").addEventListener("input", readSettings);
  $("settings").addEventListener("click", (event) => event.target === $("settings") && $("settings").close());
  $("settings").addEventListener("close", onclose);
  $("reset-settings").addEventListener("click", resetSettings);
  addEventListener("storage", () => Object.assign(settings, store.loadSettings()));
}
