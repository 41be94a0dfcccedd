/* One answer of the model: reasoning, text, calls, tokens, how fast it was, and errors. */

import { hasKey } from "./api.js";
import { h, seconds } from "./dom.js";
import { TokenView } from "./tokens.js";

/** Grows with the chunks of a stream. `actions`: retry(), regenerate(), results(texts) */
export class Answer {
  constructor(requestBody, actions) {
    Object.assign(this, { requestBody, actions, text: "", reasoning: "", calls: [], finish: "" });
    this.usage = null;
    this.requestId = "";
    this.startedAt = performance.now();
    this.firstAt = this.lastAt = 0;
    this.isPainted = true;
    this.thought = h("div", { class: "thought" });
    this.thinking = h("details", { class: "reasoning", hidden: true },
      h("summary", {}, "Reasoning"), this.thought);
    this.body = h("div", { class: "text" }, h("span", { class: "caret", "aria-hidden": "true" }));
    this.callList = h("div", { class: "calls" });
    this.tokens = new TokenView();
    this.footer = h("div", { class: "answer-footer" });
    this.node = h("article", { class: "message from-model", "aria-label": "Answer", "aria-busy": "true" },
      this.thinking, this.body, this.tokens.node, this.callList, this.footer);
  }

  /** One chunk of the stream. */
  take(chunk) {
    this.requestId ||= chunk.id ?? "";
    if (chunk.usage) this.usage = chunk.usage;
    for (const choice of chunk.choices ?? []) {
      const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta;
      if (content || reasoning || calls) {
        this.lastAt = performance.now();
        this.firstAt ||= this.lastAt;
      }
      this.text += content ?? "";
      this.reasoning += reasoning ?? "";
      for (const call of calls ?? []) this.#takeCall(call);
      this.tokens.add(choice.logprobs?.content ?? []);
      this.finish = choice.finish_reason ?? this.finish;
    }
    if (this.isPainted) {
      this.isPainted = false;
      requestAnimationFrame(() => this.#paint());
    }
  }

  /** The message as the next request repeats it. */
  message() {
    const message = { role: "assistant", content: this.text };
    if (this.finish === "tool_calls") message.tool_calls = this.calls;
    return message;
  }

  get isEmpty() {
    return !this.text && !this.reasoning && !this.calls.length;
  }

  /** No more chunks; `how` is "", "stopped", or an error. */
  end(how = "") {
    this.#paint();
    this.node.setAttribute("aria-busy", "false");
    this.body.querySelector(".caret")?.remove();
    this.body.hidden = !this.text;
    this.thinking.querySelector("summary").textContent = this.#reasoningTitle();
    if (how instanceof Error) this.node.append(errorCard(how, this.actions.retry));
    else if (how) this.finish = how;
    if (!(how instanceof Error && this.isEmpty)) this.#paintFooter();
    if (this.calls.length && this.finish === "tool_calls") this.#askResults();
  }

  /** No more buttons that would change a chat that has gone on. */
  freeze() {
    for (const node of this.node.querySelectorAll(".only-last")) node.remove();
  }

  #takeCall(delta) {
    const call = this.calls[delta.index] ??=
      { id: "", type: "function", function: { name: "", arguments: "" } };
    call.id ||= delta.id ?? "";
    call.function.name += delta.function?.name ?? "";
    call.function.arguments += delta.function?.arguments ?? "";
  }

  #paint() {
    this.isPainted = true;
    const caret = this.body.querySelector(".caret");
    paintText(this.body, this.text);
    if (caret) this.body.append(caret);
    this.thinking.hidden = !this.reasoning;
    this.thought.textContent = this.reasoning;
    if (this.node.getAttribute("aria-busy") === "true" && this.text) {
      this.thinking.querySelector("summary").textContent = this.#reasoningTitle();
    }
    for (const [index, call] of this.calls.entries()) {
      const card = this.callList.children[index] ?? this.callList.appendChild(
        h("div", { class: "call" }, h("p", {}, "Calls ", h("code")), h("pre")));
      card.querySelector("code").textContent = call.function.name;
      card.querySelector("pre").textContent = indented(call.function.arguments);
    }
  }

  #reasoningTitle() {
    const tokens = this.usage?.completion_tokens_details?.reasoning_tokens;
    return tokens ? `Reasoning · ${tokens} tokens` : "Reasoning";
  }

  #paintFooter() {
    const facts = h("p", { class: "quiet" }, this.#facts().join(" · "));
    const buttons = [copyButton("Copy", this.text), button("Again", this.actions.regenerate, "only-last")];
    if (this.tokens.entries.length) {
      const toggle = button("Tokens", () => {
        const isShown = toggle.getAttribute("aria-pressed") !== "true";
        toggle.setAttribute("aria-pressed", String(isShown));
        this.tokens.node.hidden = !isShown;
        this.body.hidden = isShown;
      });
      toggle.setAttribute("aria-pressed", "false");
      buttons.push(toggle);
    }
    this.footer.replaceChildren(facts, h("div", { class: "buttons" }, buttons), this.#inspector());
  }

  #facts() {
    const tokens = this.usage?.completion_tokens;
    const facts = [];
    if (tokens !== undefined) facts.push(`${tokens} ${tokens === 1 ? "token" : "tokens"}`);
    if (tokens > 1 && this.lastAt > this.firstAt) {
      facts.push(`${((1000 * (tokens - 1)) / (this.lastAt - this.firstAt)).toFixed(1)} tokens/s`);
    }
    if (this.firstAt) facts.push(`first after ${seconds((this.firstAt - this.startedAt) / 1000)}`);
    const cached = this.usage?.prompt_tokens_details?.cached_tokens;
    if (this.usage) facts.push(`prompt ${this.usage.prompt_tokens}${cached ? ` (${cached} cached)` : ""}`);
    if (this.finish === "length") facts.push("cut at max tokens");
    else if (this.finish && this.finish !== "stop") facts.push(this.finish.replace("_", " "));
    return facts;
  }

  #inspector() {
    const address = new URL("v1/chat/completions", document.baseURI);
    const body = JSON.stringify(this.requestBody, null, 2);
    const quoted = JSON.stringify(this.requestBody).replaceAll("'", "'\\''");
    const key = hasKey() ? '-H "Authorization: Bearer $HAL_API_KEY" ' : "";
    const curl = `curl -N ${address} ${key}-H 'Content-Type: application/json' -d '${quoted}'`;
    return h("details", { class: "inspector" }, h("summary", {}, "Request"),
      h("p", { class: "quiet" }, this.requestId && `Answer ${this.requestId}`),
      h("pre", { tabindex: 0 }, body),
      copyButton("Copy as curl", curl));
  }

  #askResults() {
    const fields = this.calls.map((call) => h("label", {}, `Result of ${call.function.name}`,
      h("textarea", { rows: 2, class: "mono", required: true, spellcheck: "false" })));
    this.node.append(h("form", {
      class: "results only-last",
      onsubmit: (event) => {
        event.preventDefault();
        this.actions.results(fields.map((field) => field.querySelector("textarea").value));
      },
    }, fields, h("button", { class: "primary" }, "Send results")));
  }
}

/** Text with its fenced code set apart; parts that did not change are left alone. */
function paintText(node, text) {
  const parts = text.split(/^```/m);
  const blocks = [...node.children].filter((child) => !child.classList.contains("caret"));
  for (const [index, part] of parts.entries()) {
    const isCode = index % 2 === 1;
    const shown = (isCode ? part.replace(/^.*\n?/, "") : part).replace(/^\n+|\n+$/g, "");
    const block = blocks[index] ?? node.appendChild(
      h(isCode ? "pre" : "div", isCode ? { tabindex: 0 } : { class: "prose" }));
    if (block.textContent !== shown) block.textContent = shown;
  }
}

/** What failed, and a way on; waits as long as the server asks for. */
export function errorCard(error, retry) {
  const again = button("Try again", retry, "only-last");
  const facts = [error.code, error.status >= 400 && `HTTP ${error.status}`, error.requestId];
  const card = h("div", { class: "error-card", role: "alert" }, h("p", {}, error.message),
    h("p", { class: "quiet" }, facts.filter(Boolean).join(" · ")), retry && again);
  let left = Math.ceil(error.retryAfter ?? 0);
  const tick = () => {
    again.disabled = left > 0;
    again.textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    left -= 1;
    if (left >= 0) setTimeout(tick, 1000);
  };
  tick();
  return card;
}

/** Nothing where the browser lets nobody copy: pages without HTTPS from other machines. */
function copyButton(label, text) {
  const found = button(label, async () => {
    await navigator.clipboard.writeText(text);
    found.textContent = "Copied";
  });
  return navigator.clipboard ? found : "";
}

export function button(label, act, kind = "") {
  return h("button", { type: "button", class: `ghost small ${kind}`, onclick: act }, label);
}

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // still being written
  }
}
