// Before the page is drawn: the colours that its user has chosen, if any. Not a module, since those wait.

function applyTheme() {
  let theme = "";
  try {
    theme = JSON.parse(localStorage.getItem("nanochat.settings"))?.theme ?? "";
  } catch {
    // No storage, or nothing readable in it: the system's colours.
  }
  document.documentElement.style.colorScheme = ["light", "dark"].includes(theme) ? theme : "";
}

applyTheme();
addEventListener("storage", applyTheme);
