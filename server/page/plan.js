/* What GET /hal/plan says: the device and why, every byte, every setting, every kernel. */

import { errorCard } from "./answer.js";
import { request } from "./api.js";
import { bytes, card, count, find, h, partsBar, table } from "./dom.js";

const MEMORY = [
  ["weights", "weights_bytes", 1], ["KV cache", "kv_bytes", 2], ["activations", "activation_bytes", 3],
  ["logits", "logits_bytes", 4], ["graphs", "graphs_bytes", 5], ["communicator", "communicator_bytes", 6],
  ["not used", "unused_bytes", 0],
];

let isLoaded = false;

export async function showPlan() {
  if (isLoaded) return;
  const body = find("plan-body");
  body.replaceChildren(h("p", { class: "quiet" }, "Reading the plan …"));
  try {
    const answer = await request("hal/plan");
    body.replaceChildren(...sections(await answer.json()));
    isLoaded = true;
  } catch (error) {
    body.replaceChildren(errorCard(error, showPlan));
  }
}

/** Forget it: the server may have started anew. */
export function forgetPlan() {
  isLoaded = false;
}

function sections(plan) {
  return [
    plan.device && card("Device", deviceFacts(plan)),
    card("Memory", memory(plan.memory)),
    plan.posed && card(`Memory if it were ${plan.posed.device.name}`, memory(plan.posed.memory)),
    plan.kernels.length > 0 && kernelsCard(plan),
    plan.choices && card("Settings", table("Settings with their reasons", ["Setting", "Value", "Why"],
      plan.choices.map((choice) => [h("code", {}, choice.name), choice.value, choice.reason]))),
  ].filter(Boolean);
}

function deviceFacts(plan) {
  const { device, limits } = plan;
  const rows = [
    ["Device", `${device.name} (${device.arch})`],
    ["Why", device.reason],
    ["Model", `${plan.served_model_name} (${plan.model.architecture})`],
    ["Weights", plan.weights],
    ["Context", `${count(limits.max_model_len)} tokens`],
    ["At once", `${limits.max_num_seqs} sequences, ${count(limits.max_num_batched_tokens)} tokens a step`],
  ];
  return h("dl", { class: "facts wide" }, rows.map(([name, value]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

function memory(plan) {
  const parts = MEMORY.map(([name, field, color]) => ({ name, value: plan[field] ?? 0, color }))
    .filter((part) => part.value > 0);
  if (!parts.length) return h("p", { class: "quiet" }, "This engine plans no memory.");
  return h("div", {}, partsBar("Memory", parts, bytes), h("p", { class: "quiet" },
    `${bytes(plan.budget_bytes)} of ${bytes(plan.total_bytes)} (${plan.kind}); others hold `
    + `${bytes(plan.others_bytes)}. The KV cache: ${count(plan.kv_tokens)} tokens in `
    + `${count(plan.num_blocks)} blocks of ${plan.block_size}.`));
}

function kernelsCard(plan) {
  const list = h("div", { class: "kernels" }, plan.kernels.map(kernel));
  const counts = Object.entries(plan.levels).filter(([, number]) => number > 0)
    .map(([level, number]) => h("span", { class: `level ${level}` }, `${number} ${level}`));
  const filter = h("input", { type: "search", "aria-label": "Filter kernels", placeholder: "Filter",
    oninput: () => {
      const wanted = filter.value.toLowerCase();
      for (const row of list.children) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    } });
  return card("Kernels", h("div", { class: "row spread" }, h("p", {}, counts), filter), list);
}

function kernel(site) {
  const others = site.rejected.map((other) => h("li", {}, h("code", {}, other.kernel),
    ` ${other.rule}: ${other.reason}`, other.flag && h("span", { class: "quiet" }, ` → ${other.flag}`)));
  const regimes = site.regimes.length > 1 ? site.regimes.map((regime) => h("li", {}, span(regime))) : [];
  return h("details", { class: "kernel" },
    h("summary", {}, h("code", {}, site.op), h("span", { class: "quiet shape" }, site.problem),
      h("span", {}, site.kernel),
      h("span", { class: `level ${site.level}` }, site.level),
      h("span", { class: "quiet" }, `${site.num_uses} ×`)),
    h("p", {}, site.problem),
    h("p", {}, `${site.reason}; evidence: ${site.evidence}${site.cost ? `; ${site.cost}` : ""}`),
    regimes.length > 0 && h("ul", {}, regimes),
    others.length > 0 && h("h3", {}, "Not chosen"),
    others.length > 0 && h("ul", {}, others));
}

function span({ first, last, how }) {
  const end = last === null ? " and more" : last > first ? ` to ${last}` : "";
  return `${first}${end} tokens: ${how}`;
}
