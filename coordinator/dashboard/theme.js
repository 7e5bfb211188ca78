// Light, dark, or as the system says. Kept in this browser; it is all that is kept beyond the session.

const KEY = "kvhive.theme";
const ORDER = ["system", "light", "dark"];

function known() {
  const kept = localStorage.getItem(KEY);
  return ORDER.includes(kept) ? kept : "system";
}

/** Has a button go through the themes; `changed` hears of each change, the system's too. */
export function themes(button, changed) {
  const show = () => {
    const theme = known();
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = { system: "Theme: system", light: "Theme: light", dark: "Theme: dark" }[theme];
    changed();
  };
  button.addEventListener("click", () => {
    localStorage.setItem(KEY, ORDER[(ORDER.indexOf(known()) + 1) % ORDER.length]);
    show();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  show();
}
