/* Every route out of openapi.json, with a form that sends it. */

import { button, errorCard } from "./answer.js";
import { forgetKey, hasKey, request, texts } from "./api.js";
import { card, find, h, seconds, table } from "./dom.js";

let schemas = {};

async function show() {
  try {
    const found = await (await request("openapi.json")).json();
    schemas = found.components.schemas;
    const groups = Map.groupBy(routesOf(found), (route) => groupOf(route.path));
    find("routes").replaceChildren(...[...groups].map(([name, routes]) => card(name, routes.map(view))));
  } catch (error) {
    find("routes").replaceChildren(errorCard(error, show));
  }
}

function routesOf(found) {
  return Object.entries(found.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, route]) => ({ path, method: method.toUpperCase(), ...route })));
}

function groupOf(path) {
  if (path.startsWith("/v1/")) return "Models";
  return path.startsWith("/admin/") ? "Administration" : "Server";
}

function view(route) {
  const content = route.requestBody?.content["application/json"];
  const names = (route.parameters ?? []).map((parameter) => parameter.name);
  const fields = names.map((name) => h("label", {}, name, h("input", { name, required: true })));
  const body = content && h("textarea", { class: "mono", rows: 7, spellcheck: "false" });
  if (body) body.value = JSON.stringify(content.example, null, 2);
  const answer = h("div", { class: "text", "aria-live": "polite" });
  const form = h("form", { class: "results", onsubmit: (event) => {
    event.preventDefault();
    send(route, new FormData(form), body, answer);
  } }, fields, body && h("label", {}, "Body", body), h("button", { class: "primary" }, "Send"));
  return h("details", { class: "kernel route" },
    h("summary", {}, h("b", {}, route.method), h("code", {}, route.path),
      h("span", { class: "quiet" }, route.summary)),
    content && fieldTable(route, schemaOf(content.schema)), form, answer);
}

function schemaOf(schema) {
  return schemas[schema.$ref.split("/").at(-1)];
}

function fieldTable(route, schema) {
  const rows = Object.entries(schema.properties).map(([name, field]) => [
    h("code", {}, name), typeOf(field), schema.required?.includes(name) ? "required" : "optional"]);
  return h("details", {}, h("summary", { class: "quiet" }, `${rows.length} fields`),
    table(`Fields of ${route.path}`, ["Field", "Type", "Needed"], rows));
}

function typeOf(field) {
  if (field.$ref) return "object";
  const kinds = (field.anyOf ?? [field]).map((kind) => kind.$ref ? "object" : kind.type ?? "any");
  return kinds.filter((kind) => kind !== "null").join(" or ");
}

async function send(route, fields, body, view) {
  const path = route.path.slice(1).replace(/{(\w+)}/g, (_, name) => encodeURIComponent(fields.get(name)));
  const startedAt = performance.now();
  const shown = h("pre", { tabindex: 0 });
  try {
    const value = body ? JSON.parse(body.value) : route.method === "GET" ? undefined : {};
    const answer = await request(path, { method: route.method, body: value });
    const facts = h("p", { class: "quiet" }, `HTTP ${answer.status}`);
    view.replaceChildren(facts, shown, button("Close", () => view.replaceChildren()));
    for await (const part of texts(answer.body)) shown.append(part);
    const took = seconds((performance.now() - startedAt) / 1000);
    facts.textContent = `HTTP ${answer.status} · ${took} · ${answer.headers.get("x-request-id")}`;
    if (answer.headers.get("content-type").startsWith("application/json")) {
      shown.textContent = JSON.stringify(JSON.parse(shown.textContent), null, 2);
    }
  } catch (error) {
    view.replaceChildren(errorCard(error));
  }
}

find("forget").hidden = !hasKey();
find("forget").addEventListener("click", forgetKey);
document.documentElement.dataset.theme = localStorage.getItem("hal-theme") ?? "auto";
show();
