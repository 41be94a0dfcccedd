/* The frame: views by the address's hash, the state of the server, the theme. */

import { forgetKey, hasKey, request } from "./api.js";
import { showChat, startChat, useModel } from "./chat.js";
import { showDashboard } from "./dashboard.js";
import { find } from "./dom.js";
import { forgetPlan, showPlan } from "./plan.js";

const VIEWS = ["chat", "dashboard", "plan"];
const THEMES = ["auto", "light", "dark"];
const STATE_INTERVAL_MS = 3000;

let state = "";

function route() {
  const asked = location.hash.slice(1);
  if (asked === "main" && state) return; // the skip link
  const view = VIEWS.includes(asked) ? asked : "chat";
  for (const name of VIEWS) find(name).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `hal · ${view}`;
  scrollTo(0, 0);
  showDashboard(view === "dashboard" && !document.hidden);
  if (view === "plan") showPlan();
  if (view === "chat") showChat();
}

/** Ask again and again how the server is; the model's name is read once it is ready. */
async function watchState() {
  let now = "unreachable";
  try {
    const answer = await fetch("ready", { cache: "no-store" });
    now = (await answer.json()).status;
  } catch {
    // stays unreachable
  }
  if (now !== state) {
    const pill = find("state");
    pill.textContent = now;
    pill.className = `pill ${now}`;
    state = now;
    if (now === "ready") welcome();
  }
  setTimeout(watchState, STATE_INTERVAL_MS);
}

async function welcome() {
  forgetPlan();
  if (!find("plan").hidden) showPlan();
  await readModel();
}

async function readModel(asks = true) {
  try {
    const answer = await request("v1/models", { asks });
    const [model] = (await answer.json()).data;
    useModel(model.id);
    const length = model.max_model_len?.toLocaleString("en");
    find("model").textContent = length ? `${model.id} · ${length} tokens` : model.id;
  } catch {
    find("model").textContent = ""; // read again once there is a key
  }
}

function useTheme(name) {
  document.documentElement.dataset.theme = name;
  find("theme").textContent = `Theme: ${name}`;
  localStorage.setItem("hal-theme", name);
}

useTheme(THEMES.includes(localStorage.getItem("hal-theme")) ? localStorage.getItem("hal-theme") : "auto");
find("theme").addEventListener("click", () => {
  useTheme(THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length]);
});
find("forget").hidden = !hasKey();
find("forget").addEventListener("click", forgetKey);
addEventListener("hashchange", route);
addEventListener("hal-key", () => readModel(false));
document.addEventListener("visibilitychange", () => {
  showDashboard(!find("dashboard").hidden && !document.hidden);
});
startChat();
route();
watchState();
