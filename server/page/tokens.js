/* The tokens of an answer, shaded by probability; one can be looked at. */

import { h, percent } from "./dom.js";

const SHADES = [0.9, 0.6, 0.3, 0.1];

/** Takes logprobs as they arrive; arrow keys walk along the tokens. */
export class TokenView {
  constructor() {
    this.row = h("div", { class: "tokens", role: "toolbar", "aria-label": "Tokens" });
    this.detail = h("div", { class: "token-detail", role: "status" },
      h("p", { class: "quiet" }, "Stronger shades were less likely. Choose a token to see what else was; arrow keys move."));
    this.node = h("div", { class: "token-view", hidden: true }, this.row, this.detail);
    this.entries = [];
    this.row.addEventListener("click", (event) => this.#choose(this.#indexOf(event.target)));
    this.row.addEventListener("keydown", (event) => this.#walk(event));
  }

  add(entries) {
    for (const entry of entries) {
      const share = Math.exp(entry.logprob);
      this.row.append(h("button", {
        type: "button",
        class: `token p${SHADES.filter((least) => share < least).length}`,
        tabindex: this.entries.length ? -1 : 0,
        "aria-label": `${spoken(entry.token)}, ${percent(share)}`,
      }, visible(entry.token)));
      if (entry.token.includes("\n")) this.row.append(h("br"));
      this.entries.push(entry);
    }
  }

  #buttons() {
    return [...this.row.querySelectorAll("button")];
  }

  #indexOf(target) {
    return this.#buttons().indexOf(target);
  }

  #walk(event) {
    const last = this.entries.length - 1;
    const at = this.#indexOf(event.target);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last }[event.key];
    if (next === undefined || at < 0) return;
    event.preventDefault();
    this.#choose(Math.max(0, Math.min(last, next)));
  }

  #choose(index) {
    if (index < 0) return;
    const buttons = this.#buttons();
    for (const [at, button] of buttons.entries()) {
      button.tabIndex = at === index ? 0 : -1;
      button.classList.toggle("chosen", at === index);
    }
    buttons[index].focus();
    this.detail.replaceChildren(...alternatives(this.entries[index], index));
  }
}

function alternatives(entry, index) {
  const others = entry.top_logprobs ?? [];
  const isListed = others.some((other) => other.token === entry.token);
  const rows = (isListed ? others : [entry, ...others]).map((other) => {
    const share = Math.exp(other.logprob);
    const fill = h("i");
    fill.style.width = `${100 * share}%`;
    return h("li", { class: other.token === entry.token ? "is-chosen" : "" },
      h("code", {}, visible(other.token)), h("span", { class: "share" }, fill), h("b", {}, percent(share)));
  });
  return [h("p", {}, `Token ${index + 1}: `, h("code", {}, visible(entry.token)),
    h("span", { class: "quiet" }, ` logprob ${entry.logprob.toFixed(3)}`)), h("ul", {}, rows)];
}

function visible(token) {
  return token.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ $/, "␣") || "∅";
}

function spoken(token) {
  return { "\n": "line break", " ": "space", "": "nothing" }[token] ?? token;
}
