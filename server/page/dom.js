/* Elements out of data. Text is always a text node: nothing here parses markup. */

const SVG = "http://www.w3.org/2000/svg";

export const find = (id) => document.getElementById(id);

/** An element; `on...` properties listen, true and false set and leave out. */
export function h(tag, props = {}, ...children) {
  return filled(document.createElement(tag), props, children);
}

export function svg(tag, props = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), props, children);
}

function filled(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child != null && child !== false));
  return node;
}

/** A table; `rows` are lists of cells, the first of each its header. */
export function table(caption, heads, rows) {
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h("table", {},
      h("caption", { class: "unseen" }, caption),
      h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
      h("tbody", {}, rows.map(([first, ...others]) =>
        h("tr", {}, h("th", { scope: "row" }, first), others.map((cell) => h("td", {}, cell)))))));
}

/** One bar of parts beside each other and a legend with their numbers. */
export function partsBar(label, parts, show) {
  const total = parts.reduce((sum, part) => sum + part.value, 0) || 1;
  const bar = h("div", { class: "bar", role: "img", "aria-label":
    `${label}: ${parts.map((part) => `${part.name} ${show(part.value)}`).join(", ")}` });
  for (const part of parts.filter((part) => part.value > 0)) {
    const piece = h("span", { class: `c-${part.color}` });
    piece.style.flexGrow = part.value / total;
    bar.append(piece);
  }
  const legend = parts.map((part) => h("li", {}, h("i", { class: `c-${part.color}` }),
    `${part.name} `, h("b", {}, show(part.value)), ` ${percent(part.value / total)}`));
  return h("div", {}, bar, h("ul", { class: "legend" }, legend));
}

export function card(title, ...content) {
  return h("section", { class: "card" }, h("h2", {}, title), ...content);
}

export function percent(share) {
  if (share > 0 && share < 0.0005) return "<0.1 %";
  const isNearEnd = share % 1 !== 0 && (share < 0.1 || share > 0.9);
  return `${(100 * share).toFixed(isNearEnd ? 1 : 0)} %`;
}

export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let size = number;
  let unit = 0;
  while (Math.abs(size) >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${unit ? size.toFixed(2) : size} ${units[unit]}`;
}

export function seconds(number) {
  if (!Number.isFinite(number)) return "–";
  if (number < 1) return `${(1000 * number).toFixed(number < 0.01 ? 1 : 0)} ms`;
  return `${number.toFixed(number < 10 ? 2 : 0)} s`;
}

export function count(number) {
  return Math.round(number).toLocaleString("en");
}
