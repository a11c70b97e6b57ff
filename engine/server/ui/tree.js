// The radix tree as a picture: time runs down, tokens run to the right. A box is a node; what several
// prompts share is one tall box to their left. Depth is on a square root's scale, since what is shared stands
// at the beginning.

const ROW = 26; // pixels
const TICKS = [16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576];

class Tree {
  constructor() {
    this.axis = el("div", { class: "axis", "aria-hidden": "true" });
    this.plot = el("div", { class: "plot" });
    this.note = el("p", { class: "muted" });
    this.colour = el("select", { "aria-label": "What colour shows" },
      el("option", { value: "idle" }, "colour: last use"), el("option", { value: "hits" }, "colour: hits"));
    this.colour.addEventListener("change", () => this.paint());
    this.box = el("div", { class: "tree" },
      el("div", { class: "head" }, el("h3", {}, "Radix tree"), this.note, this.colour),
      el("div", { class: "scroll" }, this.axis, this.plot));
    this.boxes = new Map(); // id -> element
    this.nodes = new Map(); // id -> node of the newest state, with its parent's `kids`
    this.onPoint = () => {}; // gets the id of the node that is pointed at, or null
  }

  show(group) {
    const root = { id: 0, end: 0, kids: [], children: group.num_prefixes };
    this.nodes = new Map([[0, root]]);
    for (const each of group.nodes) {
      const node = { ...each, kids: [] };
      const parent = this.nodes.get(node.parent);
      node.start = parent.end;
      node.end = node.start + node.tokens;
      parent.kids.push(node);
      this.nodes.set(node.id, node);
    }
    const rows = arrange(root, 0);
    const depth = Math.max(32, ...[...this.nodes.values()].map((node) => node.end)) * 1.02;
    this.scale = (tokens) => 100 * Math.sqrt(tokens / depth);
    this.plot.style.height = `${rows * ROW}px`;
    this.axis.replaceChildren(...TICKS.filter((tick) => tick < depth).map((tick) =>
      el("span", { "--x": `${this.scale(tick)}%` }, tick < 1024 ? `${tick}` : `${tick / 1024}k`)));
    this.place();
    this.describe(group);
    this.paint();
  }

  describe(group) {
    const { cached_pages: pages, page_size: size } = group.stats;
    const shown = group.nodes.reduce((sum, node) => sum + node.tokens, 0);
    this.note.textContent = !pages
      ? "Nothing is cached yet. Say something, and watch a prefix grow."
      : shown === pages * size
        ? `${plural(shown, "token")} in ${plural(group.nodes.length, "node")}`
        : `the latest ${short(shown)} of ${plural(pages * size, "token")}`;
    this.box.classList.toggle("empty", !pages);
  }

  place() {
    const stubs = [];
    const gone = new Set(this.boxes.keys());
    for (const node of this.nodes.values()) {
      if (node.id) {
        gone.delete(node.id);
        this.placeBox(node);
      }
      const hidden = node.children - node.kids.length;
      if (hidden > 0 && node.stub !== undefined) stubs.push(
        el("div", { class: "stub", "--x": `${this.scale(node.end)}%`, "--y": `${node.stub * ROW}px` },
          `${short(hidden)} older`));
    }
    for (const id of gone) {
      this.boxes.get(id).remove();
      this.boxes.delete(id);
    }
    for (const old of this.plot.querySelectorAll(".stub")) old.remove();
    this.plot.append(...stubs);
  }

  placeBox(node) {
    let box = this.boxes.get(node.id);
    if (!box) {
      box = el("div", { class: "node" }, el("span", { class: "count" }), el("span", { class: "words" }));
      tips.set(box, () => nodeTip(this.nodes.get(node.id)));
      box.addEventListener("tip", () => this.onPoint(node.id));
      box.addEventListener("untip", () => this.onPoint(null));
      this.boxes.set(node.id, box);
      this.plot.append(box);
    }
    box.style.left = `${this.scale(node.start)}%`;
    box.style.width = `${this.scale(node.end) - this.scale(node.start)}%`;
    box.style.top = `${node.row * ROW}px`;
    box.style.height = `${node.rows * ROW - 2}px`;
    box.classList.toggle("locked", node.locks > 0);
    box.classList.toggle("single", node.rows === 1);
    const [count, words] = box.children;
    count.textContent = node.locks ? `▸${node.locks}` : "";
    const text = visible(node.text ?? "");
    if (words.textContent !== text) words.textContent = text;
  }

  paint() {
    const by = this.colour.value;
    const most = Math.max(1, ...[...this.nodes.values()].map((node) => node[by] ?? 0));
    for (const [id, box] of this.boxes) {
      const share = Math.log1p(this.nodes.get(id)[by]) / Math.log1p(most);
      box.style.setProperty("--heat", `${Math.round(100 * (by === "idle" ? 1 - share : share))}%`);
    }
  }

  /** The ids on the way from the root to `id`. */
  path(id) {
    const ids = new Set();
    for (let node = this.nodes.get(id); node && node.id; node = this.nodes.get(node.parent)) ids.add(node.id);
    return ids;
  }

  /** Mark the way to a node, as a request that is pointed at holds it. */
  mark(id) {
    const ids = id === null ? new Set() : this.path(id);
    for (const [each, box] of this.boxes) box.classList.toggle("marked", ids.has(each));
  }
}

/** Give `node` and all below it a first row and a number of rows; siblings stand by age. Returns the rows. */
function arrange(node, row) {
  node.row = row;
  node.rows = 0;
  const oldest = (each) => (each.oldest ??= Math.min(each.id, ...each.kids.map(oldest))); // a split keeps its place
  for (const kid of node.kids.sort((a, b) => oldest(a) - oldest(b))) node.rows += arrange(kid, row + node.rows);
  if (node.children > node.kids.length) {
    node.stub = row + node.rows;
    node.rows += 1;
  }
  return (node.rows = Math.max(1, node.rows));
}

function nodeTip(node) {
  if (!node) return [];
  const facts = [
    `${plural(node.tokens, "token")}, ${short(node.start)} to ${short(node.end)}`,
    `found by ${plural(node.hits, "request")}`,
    node.locks ? `held by ${plural(node.locks, "running request")}` : "held by nobody",
    node.children ? plural(node.children, "continuation") : "",
    node.idle ? `last used ${plural(node.idle, "lookup")} ago` : "just used",
  ];
  const text = node.text === null ? null : el("pre", {}, node.text);
  return [el("p", {}, facts.filter(Boolean).join(" · ")), ...(text ? [text] : [])];
}
