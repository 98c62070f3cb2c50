// The numbers and the picture of the explorer; asa_mini/look/explorer/__init__.py puts this file into page.html.
const FONT = "system-ui, 'Segoe UI', Roboto, sans-serif";
// Blue is the model, orange its adversary, as in every figure of the notebooks.
const LIGHT = { page: "#ffffff", ink: "#1b1f24", soft: "#59626d", rule: "#d3d9e0", empty: "#e4ebf3",
                clean: "#0173b2", adversarial: "#d55e00", marked: "#a3177d" };
const DARK = { page: "#14181d", ink: "#e8ebee", soft: "#a3adb8", rule: "#3a424c", empty: "#263240",
               clean: "#56b4e9", adversarial: "#ff8c42", marked: "#f08bd3" };
const SIDES = { clean: "Clean: no mask", adversarial: "Adversarial: under the mask" };
const MANY = 5000; // lines of one side at most, the strongest: more take a browser seconds and the eye sees a fog
// What the reader chose. `shown` follows the pointer or the focus, `pinned` a click; `focus` is where Tab lands.
const state = { record: 0, layer: 0, head: "mean", shown: null, pinned: null, focus: 0 };
const now = () => state.pinned ?? state.shown; // the current token; null is all of them together

// ---- the numbers -------------------------------------------------------------------------------------------------
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(plain).arrayBuffer());
}
const range = (n) => [...Array(n).keys()];

/** Of the chosen layer and head: both sides' weights and the removed units, query by query, and mean weights by key. */
function numbers() {
  const { layer, head } = state, record = data.records[state.record];
  const L = record.tokens.length, size = L * L, heads = head === "mean" ? range(record.heads) : [head];
  const weights = {}, means = {};
  for (const side in SIDES) {
    const sum = new Float64Array(size), mean = new Float64Array(L);
    for (const one of heads) {
      const map = record[side].subarray((layer * record.heads + one) * size);
      for (let unit = 0; unit < size; unit++) sum[unit] += map[unit];
    }
    weights[side] = sum.map((total) => total / heads.length / data.steps);
    weights[side].forEach((weight, unit) => { mean[unit % L] += weight / L; });
    means[side] = mean;
  }
  const masks = range(record.layers).map((i) => record.removed.subarray(i * size, (i + 1) * size));
  const lost = masks.map((mask) => mask.reduce((total, unit) => total + unit, 0));
  return { record, L, all: range(L), weights, means, lost, removed: masks[layer] };
}
/** By key: what the current token, or all together, gives it on one side. */
const sharesOf = ({ L, weights, means }, side) =>
  now() === null ? means[side] : weights[side].subarray(now() * L, (now() + 1) * L);

const percent = (share) => share > 0 && share < 0.005 ? "<1%" : share >= 0.995 && share < 1 ? ">99%"
  : `${Math.round(100 * share)}%`;
const quoted = (token) => `“\u2068${token}\u2069”`; // isolated: a right-to-left token turns nothing else around
const headName = (record) => record.heads === 1 ? "its only head"
  : state.head === "mean" ? `mean of ${record.heads} heads` : `head ${state.head}`;

/** The current token in words: for those who cannot see the picture, and below a saved one. */
function sentence(v) {
  const { record, L, all, lost, removed } = v, current = now(), name = (j) => quoted(record.tokens[j]);
  const shares = { clean: sharesOf(v, "clean"), adversarial: sharesOf(v, "adversarial") };
  const top = (side) => all.filter((j) => shares[side][j] >= 0.005)
    .sort((a, b) => shares[side][b] - shares[side][a]).slice(0, 3)
    .map((j) => `${name(j)} ${percent(shares[side][j])}`).join(", ");
  const gone = current === null ? [] : all.filter((j) => removed[current * L + j]), units = lost[state.layer];
  const who = current === null ? "All tokens together attend to"
    : `${name(current)}, token ${current + 1} of ${L}, attends to`;
  const words = [`${who}: clean ${top("clean")}; adversarial ${top("adversarial")}.`];
  if (record.marked.length) {
    const sum = (side) => percent(record.marked.reduce((total, j) => total + shares[side][j], 0));
    const names = [...new Set(record.marked.map(name))].slice(0, 4).join(", ");
    words.push(`To the marked ${names}: clean ${sum("clean")}, adversarial ${sum("adversarial")}.`);
  }
  if (lost.every((n) => n === 0))
    words.push("Nothing was removed in any layer: nobody attacks this model, or the adversary keeps everything.");
  else if (units === 0) words.push(`The adversary removed nothing in layer ${state.layer}.`);
  else if (current === null) words.push(`The adversary removed ${units} of the layer's ${L * L} units.`);
  else if (gone.length === 0) words.push("The adversary removed nothing from this token.");
  else if (gone.length === L) words.push("The adversary removed all its units: it attends to every token equally.");
  else words.push(`The adversary removed ${gone.length} of its ${L} units: ${gone.slice(0, 6).map(name).join(", ")}`
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
function dress(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}
const add = (parent, tag, attributes = {}) =>
  dress(parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag)), attributes);
function write(parent, x, y, text, fill, more = {}) {
  const node = add(parent, "text", { x, y, fill, "font-size": 13, ...more });
  node.textContent = text;
  return node;
}
const heading = (svg, x, y, text, fill) => write(svg, x, y, text, fill, { "font-size": 15, "font-weight": 700 });
const cross = (x, y, r) => `M${x - r} ${y - r}l${2 * r} ${2 * r}m0 ${-2 * r}l${-2 * r} ${2 * r}`;
/** Draw all but the current token into a new SVG, and the token by the first call of `follow`.
 *
 * Returns the SVG, `follow`, which draws what depends on the current token anew, and the places of the tokens that
 * can be pointed at.
 */
function picture(v, width, c, saved) {
  const { record } = v, margin = saved ? 24 : 4, space = width - 2 * margin, places = [], followers = [];
  const svg = add(document.createDocumentFragment(), "svg", { width, "font-family": FONT, role: "img",
    "aria-label": "Attention of each token, clean and adversarial; the text above says it in words." });
  add(svg, "rect", { width: "100%", height: "100%", fill: c.page });
  let y = margin - 6;
  for (const line of wrap(`Attention in layer ${state.layer}, ${headName(record)}`, 16, space, 700))
    write(svg, margin, y += 22, line, c.ink, { "font-size": 16, "font-weight": 700 });
  for (const line of wrap(record.text, 14, space, 400))
    write(svg, margin, y += 20, `\u2068${line}\u2069`, c.ink, { "font-size": 14 });
  y = legend(svg, margin, y + 24, space, v, c) + 34;

  const wide = space >= 1000, pair = space >= 620, gap = 32, side = 220; // three columns, two, or one
  const panelWidth = wide ? (space - side - 2 * gap) / 2 : pair ? (space - gap) / 2 : space;
  const right = margin + panelWidth + gap, ways = [places, followers];
  let bottom = panel(svg, margin, y, panelWidth, "clean", v, c, ...ways);
  bottom = panel(svg, pair ? right : margin, pair ? y : bottom + 40, panelWidth, "adversarial", v, c, ...ways);
  const sideX = wide ? width - margin - side : margin, sideWidth = wide ? side : panelWidth;
  const sideY = wide ? y : bottom + 40, end = predictions(svg, sideX, sideY, sideWidth, v, c);
  const [maskX, maskY] = pair && !wide ? [right, sideY] : [sideX, end + 36];
  bottom = Math.max(bottom, end, mask(svg, maskX, maskY, Math.min(sideWidth, side), v, c, ...ways)) + 12;
  if (saved) for (const line of wrap(sentence(v), 13, space, 400)) write(svg, margin, bottom += 20, line, c.ink);
  dress(svg, { height: bottom + margin, viewBox: `0 0 ${width} ${bottom + margin}` });
  const follow = () => followers.forEach((one) => one(now()));
  follow();
  return { svg, follow, places };
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
function panel(svg, x, top, width, side, v, c, places, followers) {
  const { record, L, all, removed } = v, weights = v.weights[side], color = c[side];
  const step = L > 30 ? 17 : L > 18 ? 23 : 26, size = L > 30 ? 11 : 13;
  const label = (j) => (record.marked.includes(j) ? "◆ " : "") + record.tokens[j];
  const longest = Math.max(...all.map((j) => measure(label(j), size, 700)));
  const column = Math.min(longest + 2, 0.26 * width), number = 46, bar = Math.min(80, 0.15 * width);
  const from = x + column + 8, to = x + width - column - number - bar - 8, bend = (from + to) / 2;
  const middle = (i) => top + 30 + (i + 0.5) * step, low = middle(L - 1) + step / 2;
  const small = { "font-size": 11 }, end = { "text-anchor": "end" };
  heading(svg, x, top, SIDES[side], color);
  write(svg, x + column, top + 20, "query", c.soft, { ...small, ...end });
  write(svg, to + 8, top + 20, "key", c.soft, small);
  const unit = write(svg, x + width, top + 20, "", c.soft, { ...small, ...end });
  const spot = add(svg, "rect", { x: x - 4, width: column + 8, height: step, rx: 5, fill: color, "fill-opacity": 0.18,
    stroke: color });
  const web = add(svg, "g", { fill: "none", stroke: color }), fan = add(svg, "g", { fill: "none", stroke: color });
  const curve = (i, j) => `M${from} ${middle(i)}C${bend} ${middle(i)} ${bend} ${middle(j)} ${to} ${middle(j)}`;
  const thick = (w) => 0.6 + 14 * w;

  function spin() { // the lines of all tokens together; the faintest of L x L are fog
    const floor = Math.max(0.5 / L, weights.toSorted().at(-MANY) ?? 0);
    weights.forEach((w, u) => w > floor && add(web, "path",
      { d: curve(Math.floor(u / L), u % L), "stroke-width": thick(w), "stroke-opacity": 0.06 + 0.7 * w }));
  }
  const rows = all.map((j) => {
    const base = middle(j) + 0.36 * size, text = shorten(label(j), size, column), marked = record.marked.includes(j);
    const style = { "font-size": size, "font-weight": marked ? 700 : 400 }, ink = marked ? c.marked : c.ink;
    const back = { x: to + column + 12, y: middle(j) - 0.3 * step, height: 0.6 * step, rx: 2 };
    add(svg, "rect", { ...back, width: bar, fill: c.empty });
    return { marked, ink, filled: add(svg, "rect", { ...back, fill: color }),
      query: write(svg, x + column, base, text, ink, { ...style, ...end }),
      key: write(svg, to + 8, base, text, ink, style),
      share: write(svg, x + width, base, "", c.ink, { ...style, ...end, "data-share": `${side} ${j}` }) };
  });
  followers.push((current) => {
    const shares = sharesOf(v, side), scale = Math.max(...sharesOf(v, "clean"), ...sharesOf(v, "adversarial"));
    unit.textContent = current === null ? "mean share" : "share";
    dress(web, { display: current === null ? "inline" : "none" });
    dress(spot, current === null ? { display: "none" }
      : { display: "inline", y: middle(current) - step / 2, "stroke-width": state.pinned === null ? 0 : 2 });
    if (current === null && !web.hasChildNodes()) spin();
    fan.replaceChildren();
    rows.forEach(({ marked, ink, query, key, filled, share }, j) => {
      const w = shares[j], gone = side === "adversarial" && current !== null && removed[current * L + j];
      const dots = { stroke: c.soft, "stroke-width": 1, "stroke-dasharray": "2 4" };
      const line = { d: curve(current, j), "stroke-opacity": 0.75, ...(w > 0 ? { "stroke-width": thick(w) } : dots) };
      if (current !== null && (w > 0 || gone)) add(fan, "path", line);
      if (gone) add(fan, "path", { d: cross(to - 1, middle(j), 4), "stroke-width": 2 });
      dress(query, { "font-weight": marked || j === current ? 700 : 400 });
      dress(key, { fill: gone ? c.soft : ink, "text-decoration": gone ? "line-through" : "none" });
      dress(filled, { width: bar * w / scale });
      share.textContent = percent(w);
    });
  });
  places.push({ x: x - 4, y: top + 30, width: column + 12, step });
  return low;
}

/** Both predictions, class by class, and what the adversary left of each layer; returns the lower end. */
function predictions(svg, x, y, width, { record, L, lost }, c) {
  const shares = { clean: record.probabilities, adversarial: record.adversarialProbabilities };
  const classes = range(shares.clean.length), likely = (k) => Math.max(shares.clean[k], shares.adversarial[k]);
  const shown = [...classes].sort((a, b) => likely(b) - likely(a)).slice(0, 4).sort((a, b) => a - b);
  const rest = classes.length > 4 ? `, 4 of ${classes.length} classes` : "";
  heading(svg, x, y, "Prediction" + rest, c.ink);
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
  heading(svg, x, y += 40, "Kept units, layer by layer", c.ink);
  const one = Math.min(width / record.layers, 38), chosen = state.layer, units = L * L, kept = units - lost[chosen];
  lost.forEach((n, layer) => {
    const share = 1 - n / units, left = x + layer * one, ink = layer === chosen ? c.ink : c.soft;
    const bold = { "font-size": 11, "text-anchor": "middle", "font-weight": layer === chosen ? 700 : 400 };
    add(svg, "rect", { x: left, y: y + 14, width: one - 3, height: 40, fill: c.empty });
    add(svg, "rect", { x: left, y: y + 54 - 40 * share, width: one - 3, height: 40 * share, fill: ink });
    if (one > 16) write(svg, left + (one - 3) / 2, y + 68, layer, ink, bold);
  });
  write(svg, x, y + 86, `layer ${chosen} keeps ${percent(kept / units)} (${kept} of ${units})`, c.ink);
  return y + 90;
}

/** The layer's mask, one cell for each unit; returns the lower end. */
function mask(svg, x, y, width, { record, L, all, lost, removed }, c, places, followers) {
  const cell = Math.min(14, (width - 18) / L), left = x + 18, top = y + 36, wide = cell * L;
  heading(svg, x, y, `Mask of layer ${state.layer}, all heads`, c.ink);
  write(svg, left, y + 20, "key →", c.soft, { "font-size": 11 });
  write(svg, 0, 0, "← query", c.soft,
    { "font-size": 11, "text-anchor": "end", transform: `translate(${x + 8} ${top}) rotate(-90)` });
  if (cell > 6) {
    const cells = ["", "", ""], size = cell - 1;
    removed.forEach((gone, unit) => {
      const j = unit % L, i = (unit - j) / L;
      cells[gone] += `M${left + j * cell} ${top + i * cell}h${size}v${size}h${-size}z`;
      if (cell >= 8 && gone) cells[2] += cross(left + (j + 0.5) * cell, top + (i + 0.5) * cell, cell / 5);
    });
    add(svg, "path", { d: cells[0], fill: c.empty });
    add(svg, "path", { d: cells[1], fill: c.adversarial, "data-removed": "" });
    add(svg, "path", { d: cells[2], stroke: c.page, "stroke-width": 1.5 });
  } else { // a pixel for each unit: paths of so many cells are slow
    const canvas = dress(document.createElement("canvas"), { width: L, height: L }), brush = canvas.getContext("2d");
    brush.fillStyle = c.adversarial;
    removed.forEach((gone, unit) => gone && brush.fillRect(unit % L, Math.floor(unit / L), 1, 1));
    add(svg, "rect", { x: left, y: top, width: wide, height: wide, fill: c.empty });
    add(svg, "image", { x: left, y: top, width: wide, height: wide, href: canvas.toDataURL(),
      "image-rendering": cell > 1 ? "pixelated" : "auto" });
  }
  for (const j of record.marked) { // a marked token has its diamond at its row and its column
    const at = (j + 0.5) * cell, small = { "font-size": 9, "text-anchor": "middle" };
    write(svg, left + at, top - 3, "◆", c.marked, small);
    write(svg, left - 5, top + at + 3, "◆", c.marked, small);
  }
  const row = add(svg, "rect", { x: left - 1.5, width: wide + 2, height: cell + 2, fill: "none", stroke: c.ink,
    "stroke-width": 2 });
  followers.push((current) => dress(row, current === null ? { display: "none" }
    : { display: "inline", y: top + current * cell - 1.5 }));
  places.push({ x: left, y: top, width: wide, step: cell });
  if (lost[state.layer]) return top + wide;
  write(svg, left, top + wide + 16, "nothing removed in this layer", c.soft);
  return top + wide + 20;
}
