// The numbers and the picture of the explorer; asa_mini/explorer.py puts this file into explorer.html.
const FONT = "system-ui, 'Segoe UI', Roboto, sans-serif";
// Blue is the model, orange its adversary, as in every figure of the notebooks.
const LIGHT = { page: "#ffffff", ink: "#1b1f24", soft: "#59626d", rule: "#d3d9e0", empty: "#e4ebf3",
                clean: "#0173b2", adversarial: "#d55e00", marked: "#a3177d" };
const DARK = { page: "#14181d", ink: "#e8ebee", soft: "#a3adb8", rule: "#3a424c", empty: "#263240",
               clean: "#56b4e9", adversarial: "#ff8c42", marked: "#f08bd3" };
const SIDES = { clean: "Clean: no mask", adversarial: "Adversarial: under the mask" };
// What the reader chose. `shown` follows the pointer or the focus, `pinned` a click; `focus` is where Tab lands.
const state = { record: 0, layer: 0, head: "mean", shown: null, pinned: null, focus: 0 };

// ---- the numbers -------------------------------------------------------------------------------------------------
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(plain).arrayBuffer());
}

/** What the picture shows: for both sides weight(query, key) of the chosen layer and head, and who was removed. */
function view() {
  const record = data.records[state.record], L = record.tokens.length, H = record.heads;
  const heads = state.head === "mean" ? [...Array(H).keys()] : [state.head];
  const weight = (side) => (i, j) => heads.reduce((sum, head) =>
    sum + record[side][((state.layer * H + head) * L + i) * L + j], 0) / heads.length / data.steps;
  const removed = (i, j, layer = state.layer) => {
    const unit = (layer * L + i) * L + j;
    return !((record.kept[unit >> 3] >> (7 - (unit & 7))) & 1);
  };
  const all = [...Array(L).keys()], current = state.pinned ?? state.shown;
  const lost = (layer) => all.reduce((n, i) => n + all.filter((j) => removed(i, j, layer)).length, 0);
  const shown = { record, L, all, current, removed, lost, weights: {}, shares: {} };
  for (const side in SIDES) {
    const w = shown.weights[side] = weight(side);
    shown.shares[side] = all.map((j) => current !== null ? w(current, j) : all.reduce((s, i) => s + w(i, j), 0) / L);
  }
  return shown;
}

const percent = (share) => share > 0 && share < 0.005 ? "<1%" : share >= 0.995 && share < 1 ? ">99%"
  : `${Math.round(100 * share)}%`;
const quoted = (token) => `“\u2068${token}\u2069”`; // isolated: a right-to-left token turns nothing else around
const headName = (record) => record.heads === 1 ? "its only head"
  : state.head === "mean" ? `mean of ${record.heads} heads` : `head ${state.head}`;

/** The current token in words: for those who cannot see the picture, and below a saved one. */
function sentence({ record, L, all, current, removed, lost, shares }) {
  const top = (side) => all.filter((j) => shares[side][j] >= 0.005)
    .sort((a, b) => shares[side][b] - shares[side][a]).slice(0, 3)
    .map((j) => `${quoted(record.tokens[j])} ${percent(shares[side][j])}`).join(", ");
  const gone = current === null ? [] : all.filter((j) => removed(current, j));
  const units = lost(state.layer);
  const who = current === null ? "All tokens together attend to"
    : `${quoted(record.tokens[current])}, token ${current + 1} of ${L}, attends to`;
  const words = [`${who}: clean ${top("clean")}; adversarial ${top("adversarial")}.`];
  if (record.marked.length) {
    const sum = (side) => percent(record.marked.reduce((total, j) => total + shares[side][j], 0));
    const names = [...new Set(record.marked.map((j) => quoted(record.tokens[j])))].slice(0, 4).join(", ");
    words.push(`To the marked ${names}: clean ${sum("clean")}, adversarial ${sum("adversarial")}.`);
  }
  if ([...Array(record.layers).keys()].every((layer) => lost(layer) === 0))
    words.push("Nothing was removed in any layer: nobody attacks this model, or the adversary keeps everything.");
  else if (units === 0) words.push(`The adversary removed nothing in layer ${state.layer}.`);
  else if (current === null) words.push(`The adversary removed ${units} of the layer's ${L * L} units.`);
  else if (gone.length === 0) words.push("The adversary removed nothing from this token.");
  else if (gone.length === L) words.push("The adversary removed all its units: it attends to every token equally.");
  else words.push(`The adversary removed ${gone.length} of its ${L} units: `
    + gone.slice(0, 6).map((j) => quoted(record.tokens[j])).join(", ")
    + (gone.length > 6 ? ` and ${gone.length - 6} more.` : "."));
  return words.join(" ");
}

// ---- the picture -------------------------------------------------------------------------------------------------
const pen = document.createElement("canvas").getContext("2d");
function measure(text, size, weight = 400) {
  pen.font = `${weight} ${size}px ${FONT}`;
  return pen.measureText(text).width;
}
function shorten(text, size, space) {
  const letters = [...text];
  if (measure(text, size, 700) <= space) return text;
  while (letters.length > 1 && measure(letters.join("") + "…", size, 700) > space) letters.pop();
  return letters.join("") + "…";
}
function wrap(text, size, space, weight) {
  const lines = [""];
  for (const word of text.match(/\S+\s*|\s+/g) ?? [])
    for (const part of measure(word, size, weight) > space ? word : [word]) // too long a word is cut anywhere
      if (lines.at(-1) && measure(lines.at(-1) + part, size, weight) > space) lines.push(part);
      else lines[lines.length - 1] += part;
  return lines;
}
function add(parent, tag, attributes) {
  const node = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag));
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}
function write(parent, x, y, text, fill, more = {}) {
  add(parent, "text", { x, y, fill, "font-size": 13, ...more }).textContent = text;
}
const cross = (x, y, r) => `M${x - r} ${y - r}l${2 * r} ${2 * r}m0 ${-2 * r}l${-2 * r} ${2 * r}`;

/** Draw everything into a new SVG; returns it with the places of the tokens that can be pointed at. */
function picture(width, c, saved) {
  const v = view(), { record, L, all, current } = v, margin = saved ? 24 : 4;
  const svg = add(document.createDocumentFragment(), "svg", { width, "font-family": FONT, role: "img",
    "aria-label": "Attention of each token, clean and adversarial; the text above says it in words." });
  add(svg, "rect", { width: "100%", height: "100%", fill: c.page });
  const space = width - 2 * margin, places = [];
  let y = margin - 6;
  for (const line of wrap(`Attention in layer ${state.layer}, ${headName(record)}`, 16, space, 700))
    write(svg, margin, y += 22, line, c.ink, { "font-size": 16, "font-weight": 700 });
  for (const line of wrap(record.text, 14, space, 400))
    write(svg, margin, y += 20, `\u2068${line}\u2069`, c.ink, { "font-size": 14 });
  y = legend(svg, margin, y + 24, space, v, c) + 34;

  const wide = space >= 1000, pair = space >= 620, gap = 32, side = 220; // three columns, two, or one
  const panelWidth = wide ? (space - side - 2 * gap) / 2 : pair ? (space - gap) / 2 : space;
  const right = margin + panelWidth + gap;
  let bottom = panel(svg, margin, y, panelWidth, "clean", v, c, places);
  bottom = panel(svg, pair ? right : margin, pair ? y : bottom + 40, panelWidth, "adversarial", v, c, places);
  const sideX = wide ? width - margin - side : margin, sideWidth = wide ? side : panelWidth;
  const sideY = wide ? y : bottom + 40, end = predictions(svg, sideX, sideY, sideWidth, v, c);
  const beside = pair && !wide;
  const last = mask(svg, beside ? right : sideX, beside ? sideY : end + 36, Math.min(sideWidth, side), v, c, places);
  bottom = Math.max(bottom, end, last) + 12;
  if (saved) for (const line of wrap(sentence(v), 13, space, 400)) write(svg, margin, bottom += 20, line, c.ink);
  svg.setAttribute("height", bottom + margin);
  svg.setAttribute("viewBox", `0 0 ${width} ${bottom + margin}`);
  return { svg, places };
}

function legend(svg, left, y, space, { record }, c) {
  const entries = [["clean", "clean"], ["adversarial", "adversarial"], ["cross", "unit removed by the adversary"]];
  if (record.marked.length) entries.push(["marked", "marked token"]);
  let x = left;
  for (const [kind, text] of entries) {
    const wide = 28 + measure(text, 13) + 20;
    if (x > left && x + wide - 20 > left + space) [x, y] = [left, y + 20];
    if (kind === "cross") add(svg, "path", { d: cross(x + 11, y - 4, 4), stroke: c.adversarial, "stroke-width": 2 });
    else if (kind === "marked") write(svg, x + 5, y, "◆", c.marked);
    else add(svg, "rect", { x, y: y - 8, width: 22, height: 6, rx: 3, fill: c[kind] });
    write(svg, x + 28, y, text, c.soft);
    x += wide;
  }
  return y;
}

/** Two columns of tokens, queries left and keys right, with lines between them; returns the lower end. */
function panel(svg, x, top, width, side, { record, L, all, current, removed, weights, shares }, c, places) {
  const step = L > 30 ? 17 : L > 18 ? 23 : 26, size = L > 30 ? 11 : 13, color = c[side];
  const label = (j) => (record.marked.includes(j) ? "◆ " : "") + record.tokens[j];
  const longest = Math.max(...all.map((j) => measure(label(j), size, 700)));
  const column = Math.min(longest + 2, 0.26 * width), number = 46, bar = Math.min(80, 0.15 * width);
  const from = x + column + 8, to = x + width - column - number - bar - 8;
  const middle = (i) => top + 30 + (i + 0.5) * step, scale = Math.max(...shares.clean, ...shares.adversarial);
  const low = middle(L - 1) + step / 2;
  write(svg, x, top, SIDES[side], color, { "font-size": 15, "font-weight": 700 });
  write(svg, x + column, top + 20, "query", c.soft, { "font-size": 11, "text-anchor": "end" });
  write(svg, to + 8, top + 20, "key", c.soft, { "font-size": 11 });
  write(svg, x + width, top + 20, current === null ? "mean share" : "share", c.soft,
    { "font-size": 11, "text-anchor": "end" });
  if (current !== null) add(svg, "rect", { x: x - 4, y: middle(current) - step / 2, width: column + 8, height: step,
    rx: 5, fill: color, "fill-opacity": 0.18, stroke: color, "stroke-width": state.pinned === null ? 0 : 2 });
  const gone = (j) => side === "adversarial" && current !== null && removed(current, j);
  for (const i of current === null ? all : [current])
    for (const j of all) {
      const w = weights[side](i, j), bend = (from + to) / 2;
      const d = `M${from} ${middle(i)}C${bend} ${middle(i)} ${bend} ${middle(j)} ${to} ${middle(j)}`;
      const line = { d, fill: "none", stroke: color, "stroke-width": 0.6 + 14 * w,
                     "stroke-opacity": current === null ? 0.06 + 0.7 * w : 0.75 };
      const dots = { stroke: c.soft, "stroke-width": 1, "stroke-dasharray": "2 4" };
      if (w > (current === null ? 0.5 / L : 0)) add(svg, "path", line); // the faintest of L x L lines are fog
      else if (gone(j)) add(svg, "path", { ...line, ...dots });
      if (gone(j)) add(svg, "path", { d: cross(to - 1, middle(j), 4), stroke: color, "stroke-width": 2 });
    }
  for (const j of all) {
    const base = middle(j) + 0.36 * size, text = shorten(label(j), size, column), share = shares[side][j];
    const marked = record.marked.includes(j), fill = marked ? c.marked : c.ink, bold = { "font-weight": 700 };
    const style = { "font-size": size, ...(marked && bold) }, end = { "text-anchor": "end" };
    const back = { x: to + column + 12, y: middle(j) - 0.3 * step, height: 0.6 * step, rx: 2 };
    write(svg, x + column, base, text, fill, { ...style, ...end, ...(j === current && bold) });
    if (gone(j)) write(svg, to + 8, base, text, c.soft, { ...style, "text-decoration": "line-through" });
    else write(svg, to + 8, base, text, fill, style);
    add(svg, "rect", { ...back, width: bar, fill: c.empty });
    add(svg, "rect", { ...back, width: bar * share / scale, fill: color });
    write(svg, x + width, base, percent(share), c.ink, { ...style, ...end, "data-share": `${side} ${j}` });
  }
  places.push({ x: x - 4, y: top + 30, width: column + 12, step });
  return low;
}

/** Both predictions, class by class, and what the adversary left of each layer; returns the lower end. */
function predictions(svg, x, y, width, { record, L, lost }, c) {
  const shares = { clean: record.probabilities, adversarial: record.adversarialProbabilities };
  const classes = [...record.probabilities.keys()], likely = (k) => Math.max(shares.clean[k], shares.adversarial[k]);
  const shown = [...classes].sort((a, b) => likely(b) - likely(a)).slice(0, 4).sort((a, b) => a - b);
  const rest = classes.length > 4 ? `, 4 of ${classes.length} classes` : "";
  write(svg, x, y, "Prediction" + rest, c.ink, { "font-size": 15, "font-weight": 700 });
  for (const k of shown) {
    write(svg, x, y += 20, `class ${k}`, c.ink);
    for (const side in SIDES) {
      const share = shares[side][k], back = { x: x + 72, y: y += 5, height: 11, rx: 2 }, full = width - 120;
      add(svg, "rect", { ...back, width: full, fill: c.empty });
      add(svg, "rect", { ...back, width: full * share, fill: c[side] });
      write(svg, x, y += 10, side, c.soft, { "font-size": 12 });
      write(svg, x + width, y, `${(100 * share).toFixed(1)}%`, c.ink, { "font-size": 12, "text-anchor": "end" });
    }
    y += 2;
  }
  write(svg, x, y += 40, "Kept units, layer by layer", c.ink, { "font-size": 15, "font-weight": 700 });
  const one = Math.min(width / record.layers, 38), chosen = state.layer;
  for (let layer = 0; layer < record.layers; layer++) {
    const share = 1 - lost(layer) / L ** 2, left = x + layer * one, ink = layer === chosen ? c.ink : c.soft;
    const bold = { "font-size": 11, "text-anchor": "middle", "font-weight": layer === chosen ? 700 : 400 };
    add(svg, "rect", { x: left, y: y + 14, width: one - 3, height: 40, fill: c.empty });
    add(svg, "rect", { x: left, y: y + 54 - 40 * share, width: one - 3, height: 40 * share, fill: ink });
    if (one > 16) write(svg, left + (one - 3) / 2, y + 68, layer, ink, bold);
  }
  write(svg, x, y + 86, `layer ${chosen} keeps ${keptText(lost(chosen), L)}`, c.ink);
  return y + 90;
}
const keptText = (lost, L) => `${percent(1 - lost / L ** 2)} (${L * L - lost} of ${L * L})`;

/** The layer's mask, one cell for each unit; returns the lower end. */
function mask(svg, x, y, width, { record, L, all, current, removed }, c, places) {
  const cell = Math.min(14, (width - 18) / L), gap = cell > 6 ? 1 : 0.2, left = x + 18, top = y + 36;
  write(svg, x, y, `Mask of layer ${state.layer}, all heads`, c.ink, { "font-size": 15, "font-weight": 700 });
  write(svg, left, y + 20, "key →", c.soft, { "font-size": 11 });
  write(svg, 0, 0, "← query", c.soft,
    { "font-size": 11, "text-anchor": "end", transform: `translate(${x + 8} ${top}) rotate(-90)` });
  const cells = { false: "", true: "" };
  let crosses = "";
  for (const i of all) for (const j of all) {
    cells[removed(i, j)] += `M${left + j * cell} ${top + i * cell}h${cell - gap}v${cell - gap}h${gap - cell}z`;
    if (cell >= 8 && removed(i, j)) crosses += cross(left + (j + 0.5) * cell, top + (i + 0.5) * cell, cell / 5);
  }
  add(svg, "path", { d: cells.false, fill: c.empty });
  add(svg, "path", { d: cells.true, fill: c.adversarial, "data-removed": "" });
  add(svg, "path", { d: crosses, stroke: c.page, "stroke-width": 1.5 });
  for (const j of record.marked) { // a marked token has its diamond at its row and its column
    const at = (j + 0.5) * cell, small = { "font-size": 9, "text-anchor": "middle" };
    write(svg, left + at, top - 3, "◆", c.marked, small);
    write(svg, left - 5, top + at + 3, "◆", c.marked, small);
  }
  if (current !== null) add(svg, "rect", { x: left - 1.5, y: top + current * cell - 1.5, width: cell * L + 2,
    height: cell + 2, fill: "none", stroke: c.ink, "stroke-width": 2 });
  places.push({ x: left, y: top, width: cell * L, step: cell });
  const none = cells.true === "";
  if (none) write(svg, left, top + cell * L + 16, "nothing removed in this layer", c.soft);
  return top + cell * L + (none ? 20 : 0);
}
