/* The chat: what was said, the composer, the parameters, and the one answer that runs. */

import { Answer } from "./answer.js";
import { events, request } from "./api.js";
import { find, h } from "./dom.js";

const EXAMPLES = [
  "What is a KV cache, in two sentences?",
  "Write a haiku about a patient machine.",
  "Name three small boats.",
];
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];

let messages = [];
let answers = [];
let running = null;
let model = null;
let follows = true;

export function startChat() {
  const box = find("message");
  find("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(box.value);
  });
  box.addEventListener("keydown", (event) => {
    // An input method confirms its word by Enter too.
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      ask(box.value);
    }
  });
  box.addEventListener("input", fitBox);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !find("key-dialog").open) running?.abort();
  });
  addEventListener("scroll", () => {
    const root = document.scrollingElement;
    follows = root.scrollHeight - root.scrollTop - root.clientHeight < 60;
  });
  find("stop").addEventListener("click", () => running?.abort());
  find("clear").addEventListener("click", clear);
  find("params").addEventListener("reset", () => showParamsError(""));
  find("settings").open = matchMedia("(min-width: 64rem)").matches;
  find("examples").append(...EXAMPLES.map((text) => h("li", {},
    h("button", { type: "button", onclick: () => ask(text) }, text))));
}

export function useModel(name) {
  model = name;
}

async function ask(text) {
  if (!text.trim() || !canAsk()) return;
  // Many templates refuse two questions in a row: one that got no answer is not repeated.
  if (messages.at(-1)?.role === "user") messages.pop();
  push({ role: "user", content: text }, h("article",
    { class: "message from-user", "aria-label": "You" }, h("div", { class: "prose" }, text)));
  find("message").value = "";
  fitBox();
  await answerIt();
}

/** Request an answer to what has been said and show it as it comes. */
async function answerIt() {
  const body = bodyOrNull();
  answers.at(-1)?.freeze();
  const answer = new Answer(body, { retry: regenerate, regenerate, results: sendResults });
  answers.push(answer);
  find("log").append(answer.node);
  running = new AbortController();
  setRunning(true);
  follows = true;
  scrollDown();
  answer.end(await stream(answer, body, running.signal));
  running = null;
  setRunning(false);
  scrollDown();
  const isForgotten = answers.at(-1) !== answer;
  if (!answer.isEmpty && !isForgotten) messages.push(answer.message());
}

/** "" at the end of the answer, "stopped", or the error that ended it. */
async function stream(answer, body, signal) {
  try {
    const response = await request("v1/chat/completions", { body, signal });
    for await (const chunk of events(response)) {
      answer.take(chunk);
      scrollDown();
    }
    announce("The answer is complete.");
    return "";
  } catch (error) {
    if (error.name === "AbortError") {
      announce("Stopped.");
      return "stopped";
    }
    return error;
  }
}

/** Forget the last answer and ask for another. */
async function regenerate() {
  if (!canAsk()) return;
  const last = answers.pop();
  if (!last.isEmpty) messages.pop();
  last.node.remove();
  await answerIt();
}

async function sendResults(texts) {
  if (!canAsk()) return;
  const calls = answers.at(-1).calls;
  for (const [index, call] of calls.entries()) {
    push({ role: "tool", tool_call_id: call.id, content: texts[index] }, h("article",
      { class: "message from-tool", "aria-label": `Result of ${call.function.name}` },
      h("p", { class: "quiet" }, `Result of ${call.function.name}`), h("pre", { tabindex: 0 }, texts[index])));
  }
  await answerIt();
}

function push(message, node) {
  messages.push(message);
  find("log").append(node);
  find("empty").hidden = true;
  find("clear").hidden = false;
}

function clear() {
  running?.abort();
  messages = [];
  answers = [];
  find("log").replaceChildren();
  find("empty").hidden = false;
  find("clear").hidden = true;
  focusMessage();
}

function canAsk() {
  return !running && bodyOrNull() !== null;
}

/** The body of the request, or null and a message where a parameter is wrong. */
function bodyOrNull() {
  const form = find("params");
  if (!form.checkValidity()) {
    find("settings").open = true;
    form.reportValidity();
    return null;
  }
  try {
    const body = bodyOf(new FormData(form));
    showParamsError("");
    return body;
  } catch (error) {
    showParamsError(error.message);
    return null;
  }
}

function bodyOf(fields) {
  const system = fields.get("system").trim();
  const body = {
    model,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages],
    stream: true,
    stream_options: { include_usage: true },
  };
  for (const name of NUMBERS) {
    if (fields.get(name) !== "") body[name] = Number(fields.get(name));
  }
  if (fields.get("stop")) body.stop = [fields.get("stop")];
  if (fields.get("logprobs")) {
    Object.assign(body, { logprobs: true, top_logprobs: Number(fields.get("top_logprobs")) });
  }
  const tools = fields.get("tools").trim();
  if (tools) body.tools = toolsOf(tools);
  return body;
}

function toolsOf(text) {
  let tools;
  try {
    tools = JSON.parse(text);
  } catch (error) {
    throw new Error(`Tools are not JSON: ${error.message}`);
  }
  if (!Array.isArray(tools)) throw new Error("Tools must be a list of functions.");
  return tools;
}

function showParamsError(message) {
  const line = find("params-error");
  line.textContent = message;
  line.hidden = !message;
  if (message) find("settings").open = true;
}

function setRunning(isRunning) {
  const hadFocus = document.activeElement === find("stop");
  find("stop").hidden = !isRunning;
  find("send").hidden = isRunning;
  if (hadFocus || isRunning) focusMessage();
}

function announce(text) {
  find("announce").textContent = text;
}

function fitBox() {
  const box = find("message");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

/** To the end of the chat, as the view is opened. */
export function showChat() {
  follows = messages.length > 0;
  scrollDown();
  focusMessage();
}

/** Not where that would open a keyboard on the screen. */
function focusMessage() {
  if (matchMedia("(hover: hover)").matches) find("message").focus();
}

/** Follow the answer, unless the reader has scrolled away from its end or is elsewhere. */
function scrollDown() {
  const root = document.scrollingElement;
  if (follows && !find("chat").hidden) requestAnimationFrame(() => { root.scrollTop = root.scrollHeight; });
}
