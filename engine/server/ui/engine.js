// The engine at work, from /engine_state once a second.

const POLL = 1000; // milliseconds
const PATIENCE = 10000; // milliseconds that an answer may take: a step of a slow machine
const KEPT = 120; // looks that sparklines remember
const MAX_CELLS = 256;

const COUNTERS = ["scheduled_tokens", "generation_tokens", "prompt_tokens", "cached_tokens"];

/** A figure with a title and a line of what it was. */
class Tile {
  constructor(title, explain) {
    this.figure = el("strong", {}, "–");
    this.small = el("small");
    this.lines = svg("svg", { viewBox: "0 0 100 24", preserveAspectRatio: "none", "aria-hidden": "true" });
    this.box = el("div", { class: "tile" }, el("h3", {}, title), this.figure, this.small, this.lines);
    this.more = "";
    tips.set(this.box, () => [el("p", {}, `${explain} ${this.more}`)]);
    this.past = [];
  }

  show(figure, small, ...series) {
    this.figure.textContent = figure;
    this.small.textContent = small;
    const values = series.flat().filter((value) => value !== null);
    const most = Math.max(...values, 1e-9);
    this.lines.replaceChildren(...series.map((each, index) => line(each, most, index)));
  }

  push(value) {
    this.past = [...this.past, value].slice(-KEPT);
    return [...Array(KEPT - this.past.length).fill(null), ...this.past];
  }
}

/** A path through the `values` that there are; one alone is a dot. */
function line(values, most, index) {
  const points = values.flatMap((value, at) =>
    value === null ? [] : [`${((100 * at) / (values.length - 1)).toFixed(1)} ${(23 - (21 * value) / most).toFixed(1)}`]);
  const path = points.length ? `M${points.join("L")}${points.length === 1 ? "h0.5" : ""}` : "";
  return svg("path", { d: path, class: `line${index}`, "vector-effect": "non-scaling-stroke" });
}

/** One data parallel group: its batch, its pages, its tree. */
class Group {
  constructor(index, several) {
    this.cells = el("div", { class: "cells" });
    this.rows = el("p", { class: "muted" });
    this.bar = el("div", { class: "pool" });
    this.legend = el("ul", { class: "keys" });
    this.tree = new Tree();
    this.tree.onPoint = (id) => this.markRequests(id);
    this.requests = [];
    this.box = el("section", { class: "group" },
      several ? el("h2", {}, `Group ${index}`) : null,
      el("div", { class: "head" }, el("h3", {}, "Batch"), this.rows), this.cells,
      el("div", { class: "head" }, el("h3", {}, "Pages")), this.bar, this.legend,
      this.tree.box);
  }

  show(group) {
    const { stats } = group;
    this.rows.textContent = `${stats.num_running} of ${short(group.max_running)} rows run`
      + ` · ${plural(stats.num_waiting, "request")} wait${stats.num_waiting === 1 ? "s" : ""}`;
    this.showRequests(group);
    this.showPages(stats);
    this.tree.show(group);
  }

  showRequests(group) {
    this.requests = group.requests;
    const count = Math.min(MAX_CELLS, Math.max(group.max_running, 1));
    while (this.cells.children.length > count) this.cells.lastChild.remove();
    while (this.cells.children.length < count) this.addCell(this.cells.children.length);
    [...this.cells.children].forEach((cell, index) => {
      const request = this.requests[index];
      const known = request || index >= group.stats.num_running;
      const state = !known ? "decode" : !request ? "" : request.num_output_tokens ? "decode" : "prefill";
      cell.className = `cell ${state}`;
    });
  }

  addCell(index) {
    const cell = el("i", { class: "cell" });
    tips.set(cell, () => [el("p", {}, requestTip(this.requests[index]))]);
    cell.addEventListener("tip", () => this.tree.mark(this.requests[index]?.node ?? null));
    cell.addEventListener("untip", () => this.tree.mark(null));
    this.cells.append(cell);
  }

  /** Mark the requests that hold the node `id`. */
  markRequests(id) {
    [...this.cells.children].forEach((cell, index) => {
      const request = this.requests[index];
      cell.classList.toggle("marked", id !== null && !!request && this.tree.path(request.node).has(id));
    });
  }

  showPages(stats) {
    const parts = [
      ["own", "of running requests", stats.used_pages],
      ["held", "cached, in use", stats.cached_pages - stats.evictable_pages],
      ["cached", "cached, kept for later", stats.evictable_pages],
      ["free", "free", stats.free_pages],
    ];
    this.bar.replaceChildren(...parts.map(([name, , pages]) => el("i", { class: name, "--pages": pages })));
    this.bar.setAttribute("aria-label", parts.map(([, words, pages]) => `${pages} ${words}`).join(", "));
    this.bar.setAttribute("role", "img");
    this.legend.replaceChildren(...parts.map(([name, words, pages]) =>
      el("li", {}, el("i", { class: name }), `${words} `, el("b", {}, short(pages)))),
      el("li", { class: "muted" }, `${plural(stats.page_size, "token")} a page`));
  }
}

function requestTip(request) {
  if (!request) return "A free row of the batch.";
  const computed = Math.min(request.num_computed_tokens, request.num_prompt_tokens);
  return [
    request.id,
    request.num_output_tokens
      ? plural(request.num_output_tokens, "token") + " generated"
      : `${short(computed)} prefilled`,
    `${plural(request.num_prompt_tokens, "prompt token")}, ${short(request.num_cached_tokens)} cached`,
    duration(request.seconds),
  ].join(" · ");
}

const engine = { groups: [], last: null, timer: 0, tiles: null };

function makeTiles() {
  const minutes = "The median of the last two minutes; the paler line is the 95th percentile.";
  const tiles = {
    generated: new Tile("Generated", "Tokens generated per second, since this page was opened."),
    prefilled: new Tile("Prefilled", "Prompt tokens computed per second; what is cached is not computed."),
    hits: new Tile("Cache hits", "Share of the prompt tokens that were found in the radix tree."),
    ttft: new Tile("First token", `From a request's arrival to its first token. ${minutes}`),
    itl: new Tile("Between tokens", `From one token of a request to its next. ${minutes}`),
  };
  $("tiles").append(...Object.values(tiles).map((tile) => tile.box));
  return tiles;
}

function showEngine(state) {
  engine.tiles ??= makeTiles();
  if (engine.groups.length !== state.groups.length) {
    engine.groups = state.groups.map((_, index) => new Group(index, state.groups.length > 1));
    $("groups").replaceChildren(...engine.groups.map((group) => group.box));
  }
  state.groups.forEach((group, index) => engine.groups[index].show(group));
  showRates(state);
  for (const name of ["ttft", "itl"]) {
    const { count, whole, series } = state.latency[name];
    const tile = engine.tiles[name];
    tile.more = count ? `Of ${short(count)}, 99% took less than ${duration(whole.p99)}.` : "";
    tile.show(duration(whole.p50), count ? `p95 ${duration(whole.p95)}` : "nothing lately", series.p50, series.p95);
  }
  const health = $("health");
  health.className = state.sickness ? "bad" : "good";
  health.title = state.sickness ?? "the engine is alive";
}

function showRates(state) {
  const now = { at: performance.now() };
  for (const name of COUNTERS) now[name] = state.groups.reduce((sum, { stats }) => sum + stats[name], 0);
  const { tiles, last } = engine;
  engine.last = now;
  const all = now.prompt_tokens ? `${percent(now.cached_tokens / now.prompt_tokens)} since the start` : "no prompt yet";
  if (!last || COUNTERS.some((name) => now[name] < last[name])) return; // the first look, or a new engine
  const seconds = (now.at - last.at) / 1e3;
  const rate = (name) => (now[name] - last[name]) / seconds;
  const generated = rate("generation_tokens");
  const prefilled = Math.max(0, rate("scheduled_tokens") - generated);
  const asked = rate("prompt_tokens");
  const hit = asked ? rate("cached_tokens") / asked : null;
  tiles.generated.show(short(generated), "tokens per second", tiles.generated.push(generated));
  tiles.prefilled.show(short(prefilled), "tokens per second", tiles.prefilled.push(prefilled));
  const hits = tiles.hits.push(hit);
  const newest = hits.findLast((value) => value !== null);
  tiles.hits.show(newest === undefined ? "–" : percent(newest), all, hits);
}

/** Look once, and again in a second, as long as somebody can see it. */
async function look() {
  clearTimeout(engine.timer);
  if (document.hidden || !$("engine").offsetParent) return;
  try {
    const response = await ask("engine_state", { signal: AbortSignal.timeout(PATIENCE) }, "admin-key");
    showEngine(await response.json());
    $("engine-note").hidden = true;
  } catch (error) {
    const locked = error.status === 401 || error.status === 403;
    $("engine-note").textContent = locked
      ? "The engine is shown to those who have the server's key: open Keys above."
      : `The engine cannot be seen: ${error.message}`;
    $("engine-note").hidden = false;
    $("health").className = locked ? "" : "bad";
  }
  clearTimeout(engine.timer);
  engine.timer = setTimeout(look, POLL);
}
