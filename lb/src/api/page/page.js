
"use strict";
// Asks the API every two seconds, and shows what it answers. All text goes into the page as text, never as HTML.

const PERIOD_MS = 2000;
const ROWS = 200;
const EVENTS = 50;
const COLOURS = {
  up: "good", down: "bad", draining: "doubtful", drained: "doubtful", unknown: "doubtful", monitor: "doubtful",
};

let token = "";
let lastEvent = "";
/** Counters of the last round, and when that was: rates are made of them. */
let before = new Map();
let now = new Map();
let elapsed = 0;
let last = 0;

const place = (id) => document.getElementById(id);

function node(kind, text, name) {
  const made = document.createElement(kind);
  made.textContent = text ?? "";
  if (name) made.className = name;
  return made;
}

async function ask(path, headers = {}) {
  if (token) headers.Authorization = "Bearer " + token;
  const answer = await fetch(path, { headers, cache: "no-store" });
  if (answer.status === 401) {
    place("door").hidden = false;
    throw new Error("a token is needed");
  }
  if (!answer.ok) throw new Error((await answer.json()).detail);
  place("door").hidden = true;
  return answer;
}

const json = async (path) => (await ask(path)).json();

/** What a counter gained each second since the last round. */
function rate(key, count) {
  now.set(key, count);
  const was = before.get(key);
  return was === undefined || elapsed <= 0 ? "" : short(Math.max(0, count - was) / elapsed) + " /s";
}

function short(number) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (number >= size) return (number / size).toFixed(1) + unit;
  }
  return String(Math.round(number));
}

/** Columns are [title, cell, class]; a list that has more than the page shows says so. */
function table(id, columns, page, none) {
  const head = document.createElement("tr");
  head.append(...columns.map(([title, , name]) => node("th", title, name)));
  const rows = page.items.map((item) => {
    const row = document.createElement("tr");
    row.append(...columns.map(([, cell, name]) => {
      const text = cell(item);
      return node("td", text, name || COLOURS[text]);
    }));
    return row;
  });
  const note = page.items.length === 0 ? none : page.next ? "and more; the API has all of them" : "";
  if (note) {
    const cell = node("td", note);
    cell.colSpan = columns.length;
    const row = document.createElement("tr");
    row.append(cell);
    rows.push(row);
  }
  place(id).replaceChildren(head, ...rows);
}

function list(id, entries) {
  place(id).replaceChildren(...entries.flatMap(([name, text, colour]) => [node("dt", name), node("dd", text, colour)]));
}

function showStatus(status) {
  place("pop").textContent = status.pop;
  document.title = "Sluice " + status.pop;
  place("state").textContent = status.draining ? "draining" : status.ready ? "ready" : "not ready yet";
  place("state").className = status.ready && !status.draining ? "good" : "doubtful";
  const ended = status.tasks.filter((task) => task.restarts > 0 || !task.running);
  const tasks = ended.map((task) => `${task.name} ended ${task.restarts} times: ${task.error}`);
  list("status", [
    ["version", status.version],
    ["up", `${status.uptime_seconds} s`],
    ["config", `${status.config_file} (${status.config_hash})`],
    ["last reload", status.last_reload.error ?? "taken " + status.last_reload.at, status.last_reload.ok ? "" : "bad"],
    ["interfaces", status.interfaces.map((one) => `${one.name} (${one.mode})`).join(", ")],
    ["backends", `${status.backends_up} of ${status.backends} up`],
    ["tasks", tasks.join("; ") || `${status.tasks.length} run`, tasks.length ? "doubtful" : ""],
  ]);
  place("warnings").replaceChildren(...status.warnings.map((text) => node("li", text, "doubtful")));
}

async function round() {
  const [status, vips, backends, flows, drops, limits, rules] = await Promise.all([
    json("/v1/status"),
    json(`/v1/vips?limit=${ROWS}`),
    json(`/v1/backends?limit=${ROWS}`),
    json("/v1/flows?limit=1"),
    json(`/v1/drops?limit=${ROWS}`),
    json(`/v1/limits?limit=${ROWS}`),
    json(`/v1/rules?limit=${ROWS}`),
  ]);
  const time = performance.now();
  elapsed = last ? (time - last) / 1000 : 0;
  last = time;
  now = new Map();
  showStatus(status);
  table("vips", [
    ["VIP", (vip) => vip.name + (vip.draining ? " (draining)" : "")],
    ["address", (vip) => vip.prefix],
    ["protocol", (vip) => vip.protocol],
    ["port", (vip) => vip.port ?? "all"],
    ["pool", (vip) => vip.pool],
    ["backends up", (vip) => vip.backends_up, "number"],
    ["packets", (vip) => rate("vip " + vip.name, vip.packets), "number"],
    ["dropped", (vip) => rate("dropped " + vip.name, vip.dropped_packets), "number"],
  ], vips, "none");
  table("backends", [
    ["pool", (backend) => backend.pool],
    ["backend", (backend) => backend.address],
    ["state", (backend) => backend.state],
    ["weight", (backend) => backend.weight, "number"],
    ["flows", (backend) => backend.flows, "number"],
    ["packets", (backend) => rate(`backend ${backend.pool}/${backend.address}`, backend.packets), "number"],
    ["note", (backend) => backend.unresolved_reason ?? backend.error ?? "", "note"],
  ], backends, "none");
  list("flows", [
    ["proven", String(flows.proven)],
    ["unproven", String(flows.unproven)],
    ["room for", String(flows.capacity)],
  ]);
  table("drops", [
    ["VIP", (drop) => drop.vip ?? "-"],
    ["reason", (drop) => drop.reason],
    ["mode", (drop) => drop.mode],
    ["packets", (drop) => String(drop.packets), "number"],
    ["now", (drop) => rate(`drop ${drop.vip} ${drop.reason} ${drop.mode}`, drop.packets), "number"],
  ], drops, "nothing was dropped");
  table("limits", [
    ["id", (limit) => limit.id, "number"],
    ["prefix", (limit) => limit.prefix],
    ["VIP", (limit) => limit.vip ?? "any"],
    ["class", (limit) => limit.class],
    ["pps", (limit) => limit.pps ?? "-", "number"],
    ["bps", (limit) => limit.bps ?? "-", "number"],
    ["mode", (limit) => limit.mode],
    ["dropped", (limit) => String(limit.dropped_packets), "number"],
    ["now", (limit) => rate("limit " + limit.id, limit.dropped_packets), "number"],
    ["expires", (limit) => limit.expires ?? "never"],
    ["comment", (limit) => limit.comment, "note"],
  ], limits, "none");
  table("rules", [
    ["id", (rule) => rule.id, "number"],
    ["origin", (rule) => rule.origin],
    ["rule", (rule) => rule.rule, "note"],
    ["mode", (rule) => rule.mode],
    ["matched", (rule) => String(rule.matched_packets), "number"],
    ["dropped", (rule) => String(rule.dropped_packets), "number"],
    ["now", (rule) => rate("rule " + rule.id, rule.dropped_packets), "number"],
    ["expires", (rule) => rule.expires ?? "never"],
  ], rules, "none");
  before = now;
}

async function poll() {
  for (;;) {
    try {
      await round();
    } catch (error) {
      place("state").textContent = "no answer: " + error.message;
      place("state").className = "bad";
    }
    await new Promise((done) => setTimeout(done, PERIOD_MS));
  }
}

function showEvent(text) {
  const { at, event, ...rest } = JSON.parse(text);
  const words = Object.entries(rest).map(([name, value]) => `${name} ${typeof value === "string" ? value : JSON.stringify(value)}`);
  const line = node("li", `${at} ${event} ${words.join(", ")}`);
  const all = place("events");
  all.prepend(line);
  while (all.children.length > EVENTS) all.lastChild.remove();
}

/** Not an EventSource: that can show no token. */
async function follow() {
  const answer = await ask("/v1/events", lastEvent ? { "Last-Event-ID": lastEvent } : {});
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const line of parts.flatMap((part) => part.split("\n"))) {
      if (line.startsWith("id:")) lastEvent = line.slice(3).trim();
      if (line.startsWith("data:")) showEvent(line.slice(5));
    }
  }
}

async function followForEver() {
  for (;;) {
    try {
      await follow();
    } catch {
      // The rounds say what is wrong.
    }
    await new Promise((done) => setTimeout(done, PERIOD_MS));
  }
}

place("door").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  token = place("token").value.trim();
  place("token").value = "";
});
poll();
followForEver();
