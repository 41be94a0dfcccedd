/* Live numbers out of /metrics: what the last minute was like, and what is held now. */

import { errorCard } from "./answer.js";
import { request } from "./api.js";
import { card, count, find, h, partsBar, percent, seconds, svg, table } from "./dom.js";
import { histogram, rate, Scrape } from "./metrics.js";

const INTERVAL_S = 2;
const WINDOW_S = 60;
const LATENCIES = [
  ["First token", "time_to_first_token_seconds"],
  ["Between tokens", "inter_token_latency_seconds"],
  ["Whole request", "e2e_request_latency_seconds"],
];

let scrapes = [];
let showing = null;

/** Scrape again and again until told to stop. */
export function showDashboard(isShown) {
  showing = isShown ? {} : null;
  if (isShown) loop(showing);
}

async function loop(mine) {
  try {
    const answer = await request("metrics");
    keep(new Scrape(await answer.text(), performance.now() / 1000));
    if (showing === mine) paint(scrapes.at(-1));
  } catch (error) {
    if (showing !== mine) return;
    const isSaid = find("board").textContent.includes(error.message); // once is enough
    if (!isSaid) find("board").replaceChildren(errorCard(error, () => showDashboard(true)));
    if (error.status === 401) return; // whoever closed the dialog is not asked again
  }
  setTimeout(() => showing === mine && loop(mine), 1000 * INTERVAL_S);
}

/** Those of the last minute, and none of a server before this one. */
function keep(now) {
  const steps = "engine_steps_total";
  const isRestarted = scrapes.length > 0 && now.sum(steps) < scrapes.at(-1).sum(steps);
  const kept = isRestarted ? [] : scrapes.filter((one) => now.at - one.at <= WINDOW_S + INTERVAL_S);
  scrapes = [...kept, now];
}

function paint(now) {
  const held = find("board").contains(document.activeElement) ? document.activeElement : null;
  const label = held?.getAttribute("aria-label");
  find("board").replaceChildren(...cards(now));
  // The table that the reader scrolls through is a new one.
  if (label) find("board").querySelector(`[aria-label="${label}"]`)?.focus();
}

function cards(now) {
  if (!now.has("num_requests_running")) {
    return [h("p", { class: "notice" }, "The engine is not running yet; numbers come when it is.")];
  }
  const before = scrapes.at(-2) ?? now;
  return [
    h("div", { class: "figures" },
      figure("Output", rateOf("generation_tokens_total", before, now),
        sparkline("Output tokens per second, last minute", "generation_tokens_total")),
      figure("Prompts", rateOf("prompt_tokens_total", before, now),
        sparkline("Prompt tokens per second, last minute", "prompt_tokens_total")),
      figure("Running", count(now.sum("num_requests_running")),
        h("p", { class: "quiet" }, "sequences in steps")),
      figure("Queue", count(now.sum("num_requests_waiting")),
        h("p", { class: "quiet" }, "sequences waiting")),
      figure("Cache hits", hitRate(now), h("p", { class: "quiet" }, "of prompt tokens looked up"))),
    latencyCard(now),
    card("KV cache", kvBar(now)),
    card("Requests since the start", requestList(now)),
  ];
}

function figure(title, value, more) {
  return h("section", { class: "card figure" }, h("h2", {}, title), h("p", { class: "value" }, value), more);
}

function rateOf(name, before, now) {
  const value = rate(name, before, now);
  return [value >= 100 ? count(value) : value.toFixed(1), h("small", {}, " tokens/s")];
}

function sparkline(label, name) {
  const points = scrapes.slice(1).map((scrape, index) => [scrape.at, rate(name, scrapes[index], scrape)]);
  const top = Math.max(1, ...points.map((point) => point[1]));
  const end = scrapes.at(-1).at;
  const line = points.map(([at, value]) =>
    `${(120 * (1 - (end - at) / WINDOW_S)).toFixed(1)},${(29 - 27 * (value / top)).toFixed(1)}`);
  return svg("svg", { viewBox: "0 0 120 30", preserveAspectRatio: "none", role: "img",
    "aria-label": `${label}: at most ${count(top)}`, class: "spark" },
  svg("polyline", { points: line.join(" "), "vector-effect": "non-scaling-stroke" }));
}

function hitRate(now) {
  const asked = now.sum("prefix_cache_queries_total");
  return asked ? percent(now.sum("prefix_cache_hits_total") / asked) : "–";
}

function latencyCard(now) {
  const before = scrapes[0] === now ? null : scrapes[0];
  const isRecent = before !== null && histogram(LATENCIES[0][1], now, before).count > 0;
  const rows = LATENCIES.map(([title, name]) => {
    const found = histogram(name, now, isRecent ? before : null);
    return [title, ...[0.5, 0.9, 0.95, 0.99].map((share) => seconds(found.at(share))), count(found.count)];
  });
  const span = isRecent ? "of the last minute" : "since the start";
  return card(`Latency ${span}`,
    table(`Latency percentiles ${span}`, ["Time", "p50", "p90", "p95", "p99", "seen"], rows));
}

function kvBar(now) {
  const blocks = now.by("kv_blocks", "state");
  const colors = { used: 1, cached: 2, pinned: 3, swapped: 4, free: 0 };
  const parts = Object.entries(blocks)
    .map(([state, value]) => ({ name: state, value, color: colors[state] ?? 5 }));
  return partsBar("KV blocks", parts, (value) => `${count(value)} blocks`);
}

function requestList(now) {
  const rows = [
    ...labelled("Answers ended by", now.by("request_success_total", "finished_reason")),
    ...labelled("Refused:", now.by("requests_rejected_total", "reason")),
    ...labelled("Aborted:", now.by("requests_aborted_total", "cause")),
    ["Preempted sequences", now.sum("num_preemptions_total")],
    ["Dropped for their deadline", now.sum("deadline_missed_total")],
    ["Engine steps", now.sum("engine_steps_total")],
  ];
  return h("dl", { class: "facts" }, rows.map(([name, value]) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, count(value)))));
}

function labelled(title, sums) {
  return Object.entries(sums).map(([label, value]) => [`${title} ${label}`, value]);
}
