"use strict";

// Draws what /status.json and /files.json say. All that comes from there goes through textContent, never into markup:
// whatever a file is called, it is shown and does nothing.

const LOOK_MILLISECONDS = 2000;
const FILES_ON_A_PAGE = 50;
const CHART_SECONDS = 600;

const at = (id) => document.getElementById(id);
const setText = (id, text) => { at(id).textContent = text; };

// --- words for numbers ---

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit++; }
  return `${unit && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

const number = (count) => count.toLocaleString("en");
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

function duration(seconds) {
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds / 60) % 60} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor(seconds / 3600) % 24} h`;
}

function when(epoch) {
  const two = (part) => String(part).padStart(2, "0");
  const day = new Date(epoch * 1000);
  return `${day.getFullYear()}-${two(day.getMonth() + 1)}-${two(day.getDate())} ${two(day.getHours())}:${two(day.getMinutes())}`;
}

function ratio(size, stored) {
  if (!size || !stored) return "–";
  const times = size / stored;
  return `${times < 100 ? times.toFixed(2) : number(Math.round(times))} : 1`;
}

// --- elements ---

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawing(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// Isolated, so that letters written from right to left do not turn round what stands beside them.
const nameCell = (name) => element("td", { class: "name" }, element("bdi", {}, name));
const cell = (text, kind = "", label = "") =>
  element("td", { ...(kind && { class: kind }), ...(label && { "data-label": label }) }, text);
const fill = (id, rows) => at(id).querySelector("tbody").replaceChildren(...rows);

// --- the daemon ---

function showStatus(status) {
  const { stats } = status;
  setText("version", stats.version);
  at("state").className = `badge ${stats.state}`;
  setText("state", stats.state);
  setText("uptime", `up ${duration(stats.uptime)}`);
  document.title = `pfsd: ${stats.state}`;

  setText("files", number(stats.files));
  setText("files-more", `${plural(stats.parts, "part")}, ${bytes(stats.size)} of content`);
  setText("stored", bytes(stats.stored));
  setText("stored-more", `ratio ${ratio(stats.size, stats.stored)}${stats.waste ? `, waste ${bytes(stats.waste)}` : ""}`);
  setText("disk", status.disk_free === null ? "unknown" : `${bytes(status.disk_free)} free`);
  setText("disk-more", `journal ${bytes(stats.journal_bytes)}`);
  setText("memory", bytes(stats.memory_used));
  at("memory-bar").max = stats.memory_limit;
  at("memory-bar").value = stats.memory_used;
  setText("memory-more", `of ${bytes(stats.memory_limit)}, peak ${bytes(stats.memory_peak)}`);
  setText("oldest", stats.files ? `${duration(stats.verified_oldest)} ago` : "–");
  setText("oldest-more", stats.verify_every
    ? `all within ${plural(stats.verify_every, "day")}; ${plural(stats.verified_parts, "part")} read since the start`
    : "background checks are off");
  at("damage-card").className = status.damaged_files ? "damaged" : "";
  setText("damage", status.damaged_files ? plural(status.damaged_files, "file") : "none known");
  setText("damage-more", status.damaged_files ? plural(stats.bad_parts, "bad part") : "");
  setText("clients", number(stats.clients));
  setText("clients-more", `at most ${number(stats.max_clients)}`);
  setText("requests", number(stats.commands_total));
  setText("requests-more", `${plural(stats.errors_total, "error")} since the start`);

  showCommands(status.commands, stats.requests);
  showWorkers(status.workers);
  showDamaged(status.damaged, status.damaged_files);
  showChart(status.history);
}

function showCommands(commands, running) {
  setText("commands-count", running ? number(running) : "");
  at("no-commands").hidden = commands.length > 0;
  at("commands").hidden = !commands.length;
  fill("commands", commands.map((command) => element(
    "tr", { "data-id": command.id },
    cell(command.verb, "verb"),
    nameCell(command.name ?? ""),
    progressCell(command),
    cell(duration(command.seconds), "number"),
    cell(command.client + (command.tag === undefined ? "" : ` @${command.tag}`), "client"),
  )));
}

function progressCell(command) {
  if (command.bytes === undefined) return cell("", "progress");
  if (!command.total) return cell(bytes(command.bytes), "progress");
  const part = Math.min(1, command.bytes / command.total);
  const bar = element("progress", { max: 1, value: part, "aria-label": "Progress" });
  return element("td", { class: "progress" },
    `${bytes(command.bytes)} of ${bytes(command.total)}, ${Math.floor(100 * part)} %`, bar);
}

function showWorkers(workers) {
  setText("workers-count", `${workers.filter((worker) => worker.state === "busy").length} of ${workers.length} busy`);
  at("workers").replaceChildren(...workers.map((worker) => element(
    "li", { class: worker.state },
    element("b", {}, `${worker.slot}: ${worker.task ?? worker.state}`),
    element("span", { class: "more" }, plural(worker.done, "task")
      + (worker.restarts ? `, ${plural(worker.restarts, "restart")}` : "")),
  )));
}

function showDamaged(files, count) {
  at("damaged-section").hidden = !count;
  setText("damaged-count", files.length < count ? `the first ${files.length} of ${number(count)}` : "");
  fill("damaged", files.map((file) => element(
    "tr", {},
    nameCell(file.name), cell(file.id, "number", "id"), cell(file.bad, "number", "bad parts"),
    cell(bytes(file.size), "number"),
  )));
}

// --- the chart ---

function niceLimit(value) {
  let step = 1024;
  while (step < value) step *= 2;
  return step;
}

function showChart(history) {
  const last = history.ago.length - 1;
  setText("rate-in", last < 0 ? "–" : `${bytes(history.in[last])}/s`);
  setText("rate-out", last < 0 ? "–" : `${bytes(history.out[last])}/s`);
  const chart = at("chart");
  const width = chart.clientWidth, height = chart.clientHeight;
  const left = 76, right = width - 8, top = 8, bottom = height - 22;
  const most = Math.max(0, ...history.in, ...history.out);
  const limit = niceLimit(most);
  const x = (ago) => right - (right - left) * Math.min(ago, CHART_SECONDS) / CHART_SECONDS;
  const y = (rate) => bottom - (bottom - top) * rate / limit;
  setText("looked-at", `most ${bytes(most)}/s`);

  const made = [];
  for (const share of [0, 0.5, 1]) {
    const level = y(limit * share);
    made.push(drawing("line", { class: "grid", x1: left, x2: right, y1: level, y2: level }));
    made.push(drawing("text", { x: left - 6, y: level + 4, "text-anchor": "end" }, `${bytes(limit * share)}/s`));
  }
  for (const minutes of width < 480 ? [10, 5, 0] : [10, 8, 6, 4, 2, 0]) {
    const anchor = minutes === 0 ? "end" : minutes === 10 ? "start" : "middle";
    const text = minutes ? `−${minutes} min` : "now";
    made.push(drawing("text", { x: x(minutes * 60), y: height - 4, "text-anchor": anchor }, text));
  }
  for (const way of ["in", "out"]) {
    const points = history.ago.map((ago, index) => `${x(ago).toFixed(1)},${y(history[way][index]).toFixed(1)}`);
    if (!points.length) continue;
    const ends = [`${x(history.ago[0]).toFixed(1)},${bottom}`, `${x(history.ago[last]).toFixed(1)},${bottom}`];
    made.push(drawing("polygon", { class: way, points: [ends[0], ...points, ends[1]].join(" ") }));
    made.push(drawing("polyline", { class: way, points: points.join(" ") }));
  }
  chart.replaceChildren(...made);
}

// --- files, page by page ---

const pages = { name: "", starts: [0], next: null, turn: 0 };

async function ask(path) {
  const response = await fetch(path, { cache: "no-store" });
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
  return response.json();
}

async function showFiles() {
  const turn = ++pages.turn;
  const found = [];
  let after = pages.starts[pages.starts.length - 1];
  do { // a search looks at so many files at a time
    const query = new URLSearchParams({ after, limit: FILES_ON_A_PAGE - found.length, name: pages.name });
    const page = await ask(`/files.json?${query}`);
    if (turn !== pages.turn) return;
    found.push(...page.files);
    after = page.next;
    if (after !== null && found.length < FILES_ON_A_PAGE) setText("page-info", `searching, at file ${number(after)}`);
  } while (after !== null && found.length < FILES_ON_A_PAGE);
  pages.next = after;
  fill("file-list", found.map((file) => element(
    "tr", {},
    nameCell(file.name), cell(file.id, "number", "id"), cell(file.status, `status-${file.status}`),
    cell(bytes(file.size), "number"), cell(ratio(file.size, file.stored), "number", "ratio"),
    cell(when(file.created), "number"),
  )));
  at("file-list").hidden = !found.length;
  at("no-files").hidden = found.length > 0;
  setText("no-files", pages.name ? "No file has this in its name." : "No files.");
  at("first").disabled = at("previous").disabled = pages.starts.length === 1;
  at("next").disabled = after === null;
  setText("page-info", `page ${pages.starts.length}`);
}

function turnTo(starts) {
  pages.starts = starts;
  update(showFiles);
}

at("first").addEventListener("click", () => turnTo([0]));
at("previous").addEventListener("click", () => turnTo(pages.starts.slice(0, -1)));
at("next").addEventListener("click", () => turnTo([...pages.starts, pages.next]));
at("search").addEventListener("submit", (event) => event.preventDefault());
let typing;
at("name").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => { pages.name = at("name").value; turnTo([0]); }, 250);
});

// --- looking again and again ---

async function update(show) {
  try {
    await show();
    at("trouble").hidden = true;
  } catch (error) {
    at("state").className = "badge gone";
    setText("state", "no answer");
    setText("trouble", `The daemon does not answer (${error.message}). What is shown is from before; it is asked again.`);
    at("trouble").hidden = false;
  }
}

let stored = "";

async function look() {
  if (document.visibilityState === "visible") {
    await update(async () => {
      const status = await ask("/status.json");
      showStatus(status);
      const { files, stored: size, bad_parts: bad, requests } = status.stats;
      const now = [files, size, bad, requests].join();
      if (now !== stored) { // something came or went
        stored = now;
        await showFiles();
      }
    });
  }
  setTimeout(look, LOOK_MILLISECONDS);
}

look();
