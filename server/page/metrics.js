/* Prometheus text to numbers: sums, labels, and percentiles out of histograms. */

const SAMPLE = /^hal:([^{\s]+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** One scrape, with the time it was taken at in seconds. */
export class Scrape {
  constructor(text, at) {
    this.at = at;
    this.samples = new Map();
    for (const line of text.split("\n")) {
      const [, name, labels = "", value] = line.match(SAMPLE) ?? [];
      if (name === undefined) continue;
      if (!this.samples.has(name)) this.samples.set(name, []);
      this.samples.get(name).push({
        labels: Object.fromEntries([...labels.matchAll(LABEL)].map((found) => [found[1], found[2]])),
        value: Number(value),
      });
    }
  }

  has(name) {
    return this.samples.has(name);
  }

  sum(name) {
    return this.#all(name).reduce((total, sample) => total + sample.value, 0);
  }

  /** {value of the label: sum} */
  by(name, label) {
    const sums = {};
    for (const { labels, value } of this.#all(name)) {
      sums[labels[label]] = (sums[labels[label]] ?? 0) + value;
    }
    return sums;
  }

  #all(name) {
    return this.samples.get(name) ?? [];
  }
}

/** How much a counter grew per second between two scrapes. */
export function rate(name, before, now) {
  const grown = now.sum(name) - before.sum(name);
  return now.at > before.at ? Math.max(0, grown) / (now.at - before.at) : 0;
}

/** Observations between two scrapes, or all of `now` without `before`: {count, at(share)} */
export function histogram(name, now, before = null) {
  const old = before?.by(`${name}_bucket`, "le") ?? {};
  const buckets = Object.entries(now.by(`${name}_bucket`, "le"))
    .map(([le, total]) => [le === "+Inf" ? Infinity : Number(le), total - (old[le] ?? 0)])
    .sort((one, other) => one[0] - other[0]);
  return { count: buckets.at(-1)?.[1] ?? 0, at: (share) => quantile(buckets, share) };
}

/** Straight between the bounds of the bucket, as Prometheus has it; NaN without observations. */
function quantile(buckets, share) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (total <= 0) return NaN;
  let [lower, below] = [0, 0];
  for (const [upper, upTo] of buckets) {
    if (upTo >= share * total && upTo > below) {
      if (upper === Infinity) return lower;
      return lower + (upper - lower) * ((share * total - below) / (upTo - below));
    }
    [lower, below] = [upper, upTo];
  }
  return lower;
}
