// The numbers and the picture of the explorer; asa_mini/look/explorer/__init__.py puts this file into page.html.
const FONT = "system-ui, 'Segoe UI', Roboto, sans-serif";
const COLORS = { // on white, on black; blue is the model, orange its adversary, as in every figure of the notebooks
  page: ["#ffffff", "#14181d"], ink: ["#1b1f24", "#e8ebee"], soft: ["#59626d", "#a3adb8"], rule: ["#d3d9e0", "#3a424c"],
  empty: ["#e4ebf3", "#263240"], clean: ["#0173b2", "#56b4e9"], adversarial: ["#d55e00", "#ff8c42"],
  marked: ["#a3177d", "#f08bd3"] };
const SIDES = { clean: "Clean: no mask", adversarial: "Adversarial: under the mask" };
const MANY = 5000; // lines of one side at most, the strongest: more take a browser seconds and the eye sees a fog
// `shown` follows the pointer or the focus, `pinned` a click; `focus` is where Tab lands.
const state = { shown: null, pinned: null, focus: 0 };
const now = () => state.pinned ?? state.shown; // the current token; null is all of them together
let v; // the numbers of the chosen sentence, layer and head

// ---- the numbers -------------------------------------------------------------------------------------------------
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(plain).arrayBuffer());
}
const range = (n) => [...Array(n).keys()];

/** Of some heads: both sides' weights and the removed units, query by query, and mean weights by key. */
function numbers(record, layer, heads, headName) {
  const L = record.tokens.length, size = L * L, weights = {}, means = {}, faint = {};
  for (const side in SIDES) {
    weights[side] = new Float64Array(size);
    means[side] = new Float64Array(L);
    for (const head of heads) {
      const map = record[side].subarray((layer * record.heads + head) * size);
      for (let unit = 0; unit < size; unit++) weights[side][unit] += map[unit] / heads.length / data.steps;
    }
    weights[side].forEach((weight, unit) => { means[side][unit % L] += weight / L; });
    faint[side] = Math.max(0.5 / L, weights[side].toSorted().at(-MANY) ?? 0);
  }
  const masks = range(record.layers).map((i) => record.removed.subarray(i * size, (i + 1) * size));
  const lost = masks.map((mask) => mask.reduce((total, unit) => total + unit, 0));
  return { record, layer, headName, L, all: range(L), weights, means, faint, lost, removed: masks[layer] };
}
/** By key: what the current token, or all together, gives it on one side. */
const sharesOf = (side) =>
  now() === null ? v.means[side] : v.weights[side].subarray(now() * v.L, (now() + 1) * v.L);
const isGone = (j) => now() !== null && v.removed[now() * v.L + j];

const percent = (share) => share > 0 && share < 0.005 ? "<1%" : share >= 0.995 && share < 1 ? ">99%"
  : `${Math.round(100 * share)}%`;
const quoted = (j) => `“\u2068${v.record.tokens[j]}\u2069”`; // isolated: a token may run from right to left

/** The current token in words: for those who cannot see the picture, and below a saved one. */
function sentence() {
  const { record: { marked }, L, all, lost, layer } = v, current = now(), gone = all.filter(isGone);
  const onBoth = (say) => `clean ${say(sharesOf("clean"))}; adversarial ${say(sharesOf("adversarial"))}.`;
  const top = (shares) => all.filter((j) => shares[j] >= 0.005).sort((a, b) => shares[b] - shares[a]).slice(0, 3)
    .map((j) => `${quoted(j)} ${percent(shares[j])}`).join(", ");
  const who = current === null ? "All tokens together attend to"
    : `${quoted(current)}, token ${current + 1} of ${L}, attends to`;
  const words = [`${who}: ${onBoth(top)}`];
  if (marked.length)
    words.push(`To the marked ${[...new Set(marked.map(quoted))].slice(0, 4).join(", ")}:`,
      onBoth((shares) => percent(marked.reduce((total, j) => total + shares[j], 0))));
  if (lost.every((n) => n === 0))
    words.push("Nothing was removed in any layer: nobody attacks this model, or the adversary keeps everything.");
  else if (current === null) words.push(`The adversary removed ${lost[layer]} of the layer's ${L * L} units.`);
  else if (gone.length === L) words.push("The adversary removed all its units: it attends to every token equally.");
  else words.push(`The adversary removed ${gone.length} of its ${L} units${gone.length ? ":" : ""}`,
    gone.slice(0, 6).map(quoted).join(", ") + (gone.length > 6 ? ` and ${gone.length - 6} more.` : "."));
  const told = v.record.predictions[v.record.predictions.length > 1 ? current : 0];
  const say = (side) => `“\u2068${first(told, side)[0]}\u2069” ${number(first(told, side)[side])}`;
  if (told) words.push(`Predicted: clean ${say(1)}; adversarial ${say(2)}.`);
  return words.join(" ");
}
/** What a side, 1 clean or 2 adversarial, predicts before all else: its entry in a prediction. */
const first = (shown, side) => shown.toSorted((a, b) => b[side] - a[side])[0];
const number = (value) => v.record.predicted === "scores" ? value.toFixed(3) : `${(100 * value).toFixed(1)}%`;

// ---- the picture -------------------------------------------------------------------------------------------------
const pen = document.createElement("canvas").getContext("2d");
function measure(text, size) { // in bold, the widest that it becomes
  pen.font = `700 ${size}px ${FONT}`;
  return pen.measureText(text).width;
}
function shorten(text, size, space) {
  const letters = [...text], fits = Math.floor(letters.length * space / measure(text, size));
  return fits >= letters.length ? text : letters.slice(0, Math.max(1, fits - 3)).join("") + "…";
}
function dress(node, attributes) { // a colour is given by its name
  for (const [name, value] of Object.entries(attributes))
    node.setAttribute(name, value in COLORS ? `var(--${value})` : value);
  return node;
}
const add = (parent, tag, attributes = {}) =>
  dress(parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag)), attributes);
function write(parent, x, y, text, more = {}) {
  const node = add(parent, "text", { x, y, "font-size": 13, ...more });
  node.textContent = text;
  return node;
}
const BOLD = { "font-weight": 700 }, END = { "text-anchor": "end" }, SMALL = { "font-size": 11, fill: "soft" };
const heading = (parent, y, text, fill = "ink") => write(parent, 0, y, text, { fill, "font-size": 15, ...BOLD });
/** Write a text below y in as many lines as it takes; returns where the last one stands. */
function paragraph(parent, y, text, space, size, more = {}) {
  const lines = [""];
  for (const part of text.match(/\S{1,16}\s*/gu) ?? []) // a word may be longer than a line
    if (lines.at(-1) && measure(lines.at(-1) + part, size) > space) lines.push(part);
    else lines[lines.length - 1] += part;
  for (const line of lines) write(parent, 0, y += size + 6, `\u2068${line}\u2069`, { "font-size": size, ...more });
  return y;
}
const cross = (x, y, r) => `M${x - r} ${y - r}l${2 * r} ${2 * r}m0 ${-2 * r}l${-2 * r} ${2 * r}`;

/** Draw all but the current token into a new SVG; returns it, and a function that draws what depends on the token. */
function picture(width) {
  const { record, layer, headName } = v, space = width - 8, gap = 32, side = 220, followers = [];
  const svg = add(document.createDocumentFragment(), "svg", { width, "font-family": FONT, fill: "ink", role: "img",
    "aria-label": "Attention of each token, clean and adversarial; the text above says it in words." });
  let y = paragraph(svg, -6, `Attention in layer ${layer}, ${headName}`, space, 16, BOLD);
  y = paragraph(svg, y, record.text, space, 14);
  write(svg, 0, y += 22, "✕ unit removed by the adversary", { fill: "adversarial" });
  if (record.marked.length) write(svg, 0, y += 20, "◆ marked token", { fill: "marked" });
  if (record.boundary !== null) write(svg, 0, y += 20, "‖ between the two texts", { fill: "soft" });

  const columns = space >= 1000 ? 3 : space >= 620 ? 2 : 1, bottoms = Array(columns).fill(y + 34);
  const panelWidth = [space, (space - gap) / 2, (space - side - 2 * gap) / 2][columns - 1];
  [panel.bind(null, "clean"), panel.bind(null, "adversarial"), predictions, mask].forEach((draw, i) => {
    const column = columns === 3 ? Math.min(i, 2) : i % columns;
    const g = add(svg, "g", { transform: `translate(${column * (panelWidth + gap)} ${bottoms[column]})` });
    const { bottom, follow } = draw(g, column === 2 ? side : panelWidth);
    bottoms[column] += bottom + 40;
    if (follow) followers.push(follow);
  });
  const height = Math.max(...bottoms) - 24;
  dress(svg, { height, viewBox: `-4 0 ${width} ${height}` });
  return [svg, () => followers.forEach((follow) => follow(now()))];
}
/** Where a token can be pointed at: from top to bottom one row for each. */
const zone = (g, x, y, width, height) => add(g, "rect", { x, y, width, height, class: "zone", fill: "transparent" });

/** Two columns of tokens, queries left and keys right, with lines between them. */
function panel(side, g, width) {
  const { record, L, all } = v, weights = v.weights[side], isMarked = (j) => record.marked.includes(j);
  const step = L > 30 ? 17 : 25, size = L > 30 ? 11 : 13, bar = Math.min(80, 0.15 * width);
  const labels = record.tokens.map((token, j) => (isMarked(j) ? "◆ " : "") + token);
  const column = Math.min(2 + Math.max(...labels.map((label) => measure(label, size))), 0.26 * width);
  const from = column + 8, to = width - column - bar - 54, bend = (from + to) / 2;
  const middle = (i) => 30 + (i + 0.5) * step;
  heading(g, 0, SIDES[side], side);
  write(g, column, 20, "query", { ...SMALL, ...END });
  write(g, to + 8, 20, "key", SMALL);
  const unit = write(g, width, 20, "", { ...SMALL, ...END });
  const spot = add(g, "rect", { x: -4, width: column + 8, height: step, rx: 5, fill: side, "fill-opacity": 0.18,
    stroke: side });
  const [web, fan] = range(2).map(() => add(g, "g", { fill: "none", stroke: side })); // of all tokens; of the current
  const connect = (lines, i, j, more) => add(lines, "path", { "stroke-width": 0.6 + 14 * weights[i * L + j], ...more,
    d: `M${from} ${middle(i)}C${bend} ${middle(i)} ${bend} ${middle(j)} ${to} ${middle(j)}` });
  const rows = labels.map((label, j) => {
    const y = middle(j) + 0.36 * size, text = shorten(label, size, column);
    const back = { x: to + column + 12, y: middle(j) - 0.3 * step, height: 0.6 * step, rx: 2 };
    const style = { fill: isMarked(j) ? "marked" : "ink", "font-size": size, "font-weight": isMarked(j) ? 700 : 400 };
    add(g, "rect", { ...back, width: bar, fill: "empty" });
    return { filled: add(g, "rect", { ...back, fill: side }), style,
      query: write(g, column, y, text, { ...style, ...END }), key: write(g, to + 8, y, text, style),
      share: write(g, width, y, "", { ...style, ...END, fill: "ink", "data-share": `${side} ${j}` }) };
  });
  if (record.boundary !== null)
    add(g, "path", { d: `M-4 ${30 + record.boundary * step}H${width}`, stroke: "soft", "stroke-dasharray": "6 4" });
  zone(g, -4, 30, column + 12, L * step);
  function follow(current) {
    const shares = sharesOf(side), scale = Math.max(...sharesOf("clean"), ...sharesOf("adversarial"));
    unit.textContent = current === null ? "mean share" : "share";
    dress(spot, current === null ? { display: "none" }
      : { display: "inline", y: middle(current) - step / 2, "stroke-width": state.pinned === null ? 0 : 2 });
    dress(web, { display: current === null ? "inline" : "none" });
    if (current === null && !web.hasChildNodes())
      weights.forEach((w, unit) => w > v.faint[side]
        && connect(web, Math.floor(unit / L), unit % L, { "stroke-opacity": 0.06 + 0.7 * w }));
    fan.replaceChildren();
    rows.forEach(({ style, query, key, filled, share }, j) => {
      const gone = side === "adversarial" && isGone(j);
      if (current !== null && shares[j] > 0) connect(fan, current, j, { "stroke-opacity": 0.75 });
      else if (gone) connect(fan, current, j, { stroke: "soft", "stroke-width": 1, "stroke-dasharray": "2 4" });
      if (gone) add(fan, "path", { d: cross(to - 1, middle(j), 4), "stroke-width": 2 });
      dress(query, { "font-weight": j === current ? 700 : style["font-weight"] });
      dress(key, { fill: gone ? "soft" : style.fill, "text-decoration": gone ? "line-through" : "none" });
      dress(filled, { width: bar * shares[j] / scale });
      share.textContent = percent(shares[j]);
    });
  }
  return { bottom: 30 + L * step, follow };
}

const HEADINGS = { class: "Prediction", labels: "Label by label", scores: "Prediction", choice: "Choices",
  tokens: "Token by token", words: "Token by token" };
/** Both predictions, and what the adversary left of each layer. */
function predictions(g, width) {
  const { record: { predicted, predictions: all, classes, tokens }, L } = v, few = all[0].length;
  heading(g, 0, HEADINGS[predicted] + (few < classes ? `, ${few} of ${classes}` : ""));
  if (all.length === 1) return kept(g, bars(g, 0, width, all[0]), width);
  // A list of all tokens, in line with those of the panels; below it one of them as bars.
  const step = L > 30 ? 17 : 25, third = width / 3, end = 30 + L * step;
  const line = (y, words) => words.map((word, i) => write(g, i * third, y, shorten(word, 11, third - 6),
    { "font-size": 11, fill: y === 20 ? "soft" : i === 2 && word !== words[1] ? "adversarial" : "ink" }));
  line(20, ["token", "clean", "attacked"]);
  const rows = all.map((shown, j) => line(34 + (j + 0.5) * step, [tokens[j], first(shown, 1)[0], first(shown, 2)[0]]));
  const moved = all.map((shown) => shown.reduce((sum, [, p, q]) => sum + Math.abs(p - q), 0));
  const most = moved.indexOf(Math.max(...moved)), own = add(g, "g");
  zone(g, 0, 30, width, L * step);
  const { bottom } = kept(g, end + 28 + 52 * few, width);
  function follow(current) {
    const j = current ?? most, caption = quoted(j) + (current === null ? ", which moves most" : "");
    own.replaceChildren();
    write(own, 0, end + 22, shorten(caption, 13, width), { fill: "soft" });
    bars(own, end + 22, width, all[j]);
    rows.forEach((row, i) => row.forEach((node) => dress(node, { "font-weight": i === current ? 700 : 400 })));
  }
  return { bottom, follow };
}
/** One prediction as bars, from y on; returns where the last one stands. */
function bars(g, y, width, shown) {
  const values = shown.flatMap(([, ...both]) => both), wide = width - 120; // scores may be of any size and sign
  const scores = v.record.predicted === "scores", low = scores ? Math.min(0, ...values) : 0;
  const span = scores ? Math.max(0, ...values) - low || 1 : 1;
  for (const [name, ...both] of shown) {
    write(g, 0, y += 22, shorten(name, 13, width));
    Object.keys(SIDES).forEach((side, i) => {
      const value = both[i], back = { y: y + 5, height: 11, rx: 2 };
      write(g, 0, y += 15, side, { fill: "soft", "font-size": 12 });
      add(g, "rect", { ...back, x: 72, width: wide, fill: "empty" });
      add(g, "rect", { ...back, x: 72 + wide * (Math.min(0, value) - low) / span,
        width: wide * Math.abs(value) / span, fill: side });
      write(g, width, y, number(value), { "font-size": 12, ...END });
    });
  }
  return y;
}
/** What the adversary left of each layer, from y on. */
function kept(g, y, width) {
  const { record, layer: chosen, L, lost } = v, units = L * L, one = Math.min(width / record.layers, 38);
  heading(g, y += 40, "Kept units, layer by layer");
  lost.forEach((n, layer) => {
    const high = 40 * (1 - n / units), bar = { x: layer * one, width: one - 3 };
    const style = layer === chosen ? { fill: "ink", ...BOLD } : { fill: "soft" };
    add(g, "rect", { ...bar, y: y + 14, height: 40, fill: "empty" });
    add(g, "rect", { ...bar, y: y + 54 - high, height: high, fill: style.fill });
    if (one > 16) write(g, bar.x + one / 2, y + 68, layer, { ...SMALL, "text-anchor": "middle", ...style });
  });
  const left = units - lost[chosen];
  write(g, 0, y + 86, `layer ${chosen} keeps ${percent(left / units)} (${left} of ${units})`);
  return { bottom: y + 86 };
}

/** The layer's mask, one cell for each unit. */
function mask(g, width) {
  const { record, layer, L, all, removed } = v, left = 18, top = 36, space = Math.min(width, 220) - left;
  const cell = Math.min(14, space / L), wide = cell * L;
  heading(g, 0, `Mask of layer ${layer}, all heads`);
  write(g, left, 20, "key →", SMALL);
  write(g, -top, 8, "← query", { ...SMALL, ...END, transform: "rotate(-90)" });
  add(g, "rect", { x: left, y: top, width: wide, height: wide, fill: "empty" });
  if (cell > 6) {
    const gone = range(L * L).filter((unit) => removed[unit]);
    const draw = (shape) => gone.map((u) => shape(left + (u % L) * cell, top + Math.floor(u / L) * cell)).join("");
    const square = (x, y) => `M${x} ${y}h${cell}v${cell}h${-cell}z`;
    add(g, "path", { d: draw(square), fill: "adversarial", "data-removed": "" });
    const bars = all.map((i) => `M${left} ${top + i * cell}h${wide}M${left + i * cell} ${top}v${wide}`).join("");
    add(g, "path", { d: bars + draw((x, y) => cross(x + cell / 2, y + cell / 2, cell / 5)), stroke: "page" });
  } else { // a pixel for each unit: paths of so many cells are slow
    const canvas = dress(document.createElement("canvas"), { width: L, height: L }), brush = canvas.getContext("2d");
    brush.fillStyle = COLORS.adversarial[0];
    removed.forEach((gone, unit) => gone && brush.fillRect(unit % L, Math.floor(unit / L), 1, 1));
    add(g, "image", { x: left, y: top, width: wide, height: wide, href: canvas.toDataURL(),
      "image-rendering": cell > 1 ? "pixelated" : "auto" });
  }
  for (const j of record.marked) { // a marked token has its diamond at its row and its column
    const at = (j + 0.5) * cell, style = { fill: "marked", "font-size": 9, "text-anchor": "middle" };
    write(g, left + at, top - 3, "◆", style);
    write(g, left - 5, top + at + 3, "◆", style);
  }
  if (record.boundary !== null)
    add(g, "path", { stroke: "soft", "stroke-dasharray": "6 4",
      d: `M${left} ${top + record.boundary * cell}h${wide}M${left + record.boundary * cell} ${top}v${wide}` });
  const row = add(g, "rect", { x: left - 1.5, width: wide + 2, height: cell + 2, fill: "none", stroke: "ink",
    "stroke-width": 2 });
  zone(g, left, top, wide, wide);
  const follow = (current) => dress(row, current === null ? { display: "none" }
    : { display: "inline", y: top + current * cell - 1.5 });
  return { bottom: top + wide, follow };
}
