"use strict";

// ---- Pure functions: no page needed, tested with node ------------------------------------------------------------

/** Value that a table cell sorts by: its first number, else its text in lower case; null for an empty cell or a dash. */
function sortKey(text) {
  const plain = text.trim().replace(/\u2212/g, "-");
  if (!plain || plain === "\u2013") return null;
  const number = /^[<+]?(-?\d+(?:\.\d+)?)/.exec(plain);
  return number ? Number(number[1]) : plain.toLowerCase();
}

/** Order of two keys: numbers before text, unknown last whatever the direction (1 up, -1 down). */
function compareKeys(a, b, direction) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return direction * (a < b ? -1 : a > b ? 1 : 0);
}

/** Column of each header cell, from rows of {colSpan, rowSpan}: one list a row. */
function headerColumns(rows) {
  const taken = rows.map(() => new Set());
  return rows.map((row, r) => {
    let column = 0;
    return row.map((cell) => {
      while (taken[r].has(column)) column += 1;
      const first = column;
      for (let down = r; down < Math.min(rows.length, r + cell.rowSpan); down += 1)
        for (let across = first; across < first + cell.colSpan; across += 1) taken[down].add(across);
      return first;
    });
  });
}

/** Whether an image's data match every chosen filter; an empty choice matches all, `reason` is a list of lines. */
function matches(data, chosen) {
  return Object.entries(chosen).every(([name, value]) => {
    if (!value) return true;
    const given = data[name] || "";
    return name === "reason" ? given.split("\n").includes(value) : given === value;
  });
}

/** Text of a CSV file (RFC 4180, lines end with CRLF). */
function csvText(header, rows) {
  const cell = (value) => (/[",\r\n]/.test(value) ? `"${value.replace(/"/g, '""')}"` : value);
  return [header, ...rows].map((row) => row.map((value) => cell(String(value))).join(",") + "\r\n").join("");
}

/** Shown grey value of each stored one, 0..255, for a window of `width` around `level` (DICOM PS3.3 C.11.2.1.2, linear exact). */
function windowTable(level, width) {
  const low = level - width / 2;
  return Uint8ClampedArray.from({ length: 256 }, (_, value) => Math.round((255 * (value - low)) / Math.max(width, 1)));
}

/** Windowed pixels with the colours of a map added: RGBA of the image, of the map over its parent, of that parent. */
function composed(image, table, map, parent, strength) {
  const out = new Uint8ClampedArray(image.length);
  for (let i = 0; i < image.length; i += 1) {
    if (i % 4 === 3) out[i] = 255;
    else out[i] = table[image[i]] + (map ? strength * (map[i] - parent[i]) : 0);
  }
  return out;
}

/** Number of the next visible image, stepping around the ends. */
function stepped(current, step, count) {
  return count ? (current + step + count) % count : -1;
}

if (typeof module !== "undefined") {
  module.exports = { sortKey, compareKeys, headerColumns, matches, csvText, windowTable, composed, stepped };
}

// ---- The page ----------------------------------------------------------------------------------------------------

const COLUMNS = ["uid", "verdict", "comment", "reader", "run", "finding"];
const GAP = 2; // px between the tiles of a strip
const SHARPEST = 512; // px, smallest side of the canvas
const MAPS = { "tail CAM": "tail parent", "head CAM": "head parent" };
const COLOURED = ["tail CAM", "head CAM", "mask"];

/** Storage that a browser may refuse: then answers last as long as the page. */
function storage() {
  const kept = new Map();
  return {
    read(key) {
      try { return localStorage.getItem(key) ?? kept.get(key) ?? null; } catch { return kept.get(key) ?? null; }
    },
    write(key, value) {
      kept.set(key, value);
      try { localStorage.setItem(key, value); return true; } catch { return false; }
    },
  };
}

function make(tag, properties = {}, ...children) {
  const { dataset, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  Object.assign(element.dataset, dataset);
  element.append(...children);
  return element;
}

function themed(store) {
  const names = { "": "System", dark: "Dark", light: "Light" };
  const button = make("button", { type: "button", className: "theme" });
  const show = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.textContent = `Colours: ${names[theme]}`;
  };
  const stored = store.read("medlt theme");
  show(stored in names ? stored : "");
  button.addEventListener("click", () => {
    const order = Object.keys(names);
    const next = order[(order.indexOf(document.documentElement.dataset.theme) + 1) % order.length];
    show(next);
    store.write("medlt theme", next);
  });
  document.querySelector("header").append(button);
}

// ---- Tables ------------------------------------------------------------------------------------------------------

function cellAt(row, column) {
  let left = 0;
  for (const cell of row.cells) {
    left += cell.colSpan;
    if (column < left) return cell;
  }
  return null;
}

function sortBy(table, head, column) {
  const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of table.tHead.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [row, sortKey(cellAt(row, column)?.textContent ?? "")]);
  const fixed = rows.filter(([row]) => row.classList.contains("fixed"));
  const free = rows.filter(([row]) => !row.classList.contains("fixed"));
  free.sort((a, b) => compareKeys(a[1], b[1], direction));
  body.append(...[...fixed, ...free].map(([row]) => row));
}

function sortable(table) {
  if (!table.tHead || !table.tBodies.length || table.tBodies[0].rows.length < 2) return;
  const heads = [...table.tHead.rows].map((row) => [...row.cells]);
  const columns = headerColumns(heads);
  heads.forEach((cells, r) => cells.forEach((head, c) => {
    if (head.colSpan > 1 || r + head.rowSpan < heads.length || !head.textContent.trim()) return;
    const button = make("button", { type: "button", className: "sort" }, ...head.childNodes);
    button.addEventListener("click", () => sortBy(table, head, columns[r][c]));
    head.replaceChildren(button);
  }));
}

// ---- Answers of the reader ---------------------------------------------------------------------------------------

function answersOf(page, store) {
  const key = `medlt answers ${page}`;
  let all = {};
  try { all = JSON.parse(store.read(key)) ?? {}; } catch { /* damaged: begin again */ }
  if (typeof all !== "object" || Array.isArray(all)) all = {};
  return {
    of: (id) => ({ verdict: "", comment: "", ...(Object.hasOwn(all, id) ? all[id] : {}) }),
    set(id, change) {
      all[id] = { ...this.of(id), ...change };
      return store.write(key, JSON.stringify(all));
    },
  };
}

function gallery(store) {
  const section = document.querySelector("#images");
  if (!section) return;
  const cards = [...section.querySelectorAll("figure.card")];
  const form = section.querySelector("form.filter");
  const answers = answersOf(section.dataset.page, store);
  const status = section.querySelector(".shown");
  const exporter = section.querySelector(".export");
  const reader = section.querySelector(".reader");
  const idOf = (card) => `${card.dataset.run} ${card.dataset.uid}`;
  const visible = () => cards.filter((card) => !card.hidden);

  const show = (card) => {
    const { verdict, comment } = answers.of(idOf(card));
    card.dataset.answer = verdict;
    for (const button of card.querySelectorAll(".answer button"))
      button.setAttribute("aria-pressed", String(button.value === verdict));
    card.classList.toggle("commented", Boolean(comment));
    const given = cards.filter((one) => answers.of(idOf(one)).verdict || answers.of(idOf(one)).comment).length;
    exporter.textContent = `Export answers (${given})`;
    exporter.disabled = !given;
  };
  const answer = (card, change) => {
    const stored = answers.set(idOf(card), change);
    section.querySelector(".unsaved").hidden = stored;
    show(card);
    filter();
  };
  const toggle = (card, verdict) =>
    answer(card, { verdict: answers.of(idOf(card)).verdict === verdict ? "" : verdict });
  const filter = () => {
    const chosen = Object.fromEntries(new FormData(form));
    for (const card of cards) card.hidden = !matches({ ...card.dataset, answer: card.dataset.answer || "none" }, chosen);
    for (const group of section.querySelectorAll(".group")) group.hidden = !group.querySelector(".card:not([hidden])");
    status.textContent = `${visible().length} of ${cards.length} shown`;
  };

  const viewer = viewing({ answers, idOf, toggle, answer, visible });
  for (const card of cards) {
    const picture = card.querySelector("img.whole");
    const open = make("button", { type: "button", className: "open", ariaLabel: `Open ${picture.alt}` });
    picture.replaceWith(open);
    open.append(picture);
    open.addEventListener("click", () => viewer.open(card));
    const choice = make("div", { className: "answer" });
    for (const [value, text] of [["accept", "Accept"], ["reject", "Reject"]]) {
      const button = make("button", { type: "button", value, textContent: text, ariaLabel: `${text} ${card.dataset.uid}` });
      button.addEventListener("click", () => toggle(card, value));
      choice.append(button);
    }
    card.querySelector("figcaption").append(choice);
    show(card);
  }
  form.addEventListener("change", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  reader.value = store.read("medlt reader") ?? "";
  reader.addEventListener("change", () => store.write("medlt reader", reader.value.trim()));
  exporter.addEventListener("click", () => {
    const rows = cards.flatMap((card) => {
      const { verdict, comment } = answers.of(idOf(card));
      const { uid, run, finding } = card.dataset;
      return verdict || comment ? [[uid, verdict, comment, reader.value.trim(), run, finding]] : [];
    });
    const url = URL.createObjectURL(new Blob([csvText(COLUMNS, rows)], { type: "text/csv" }));
    make("a", { href: url, download: "reader_answers.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  });
  filter();
}

// ---- The viewer --------------------------------------------------------------------------------------------------

/** Stages of a card: name -> {picture, left, side}; the image itself is "image". */
function stagesOf(card) {
  const whole = card.querySelector("img.whole"), strip = card.querySelector("img.strip");
  const stages = new Map();
  if (strip) strip.dataset.tiles.split("\n").forEach((name, k) =>
    stages.set(name, { picture: strip, left: k * (strip.naturalHeight + GAP), side: strip.naturalHeight }));
  stages.set("image", { picture: whole, left: 0, side: whole.naturalHeight });
  return stages;
}

function pixelsOf(stage, size) {
  const sheet = new OffscreenCanvas(size, size).getContext("2d", { willReadFrequently: true });
  sheet.imageSmoothingQuality = "high";
  sheet.drawImage(stage.picture, stage.left, 0, stage.side, stage.side, 0, 0, size, size);
  return sheet.getImageData(0, 0, size, size).data;
}

function viewing({ answers, idOf, toggle, answer, visible }) {
  const dialog = document.querySelector("#viewer");
  const part = (name) => dialog.querySelector(`[data-part="${name}"]`);
  const [canvas, frame, comment] = ["canvas", "frame", "comment"].map(part);
  const [before, after, overlay, wipe, level, width] = ["before", "after", "overlay", "wipe", "level", "width"].map(part);
  let card = null, stages = new Map(), zoom = 1, x = 0, y = 0;

  const move = () => {
    const reach = ((zoom - 1) * frame.clientWidth) / 2;
    [x, y] = [x, y].map((value) => Math.max(-reach, Math.min(reach, value)));
    canvas.style.transform = `translate(${x}px, ${y}px) scale(${zoom})`; 
    part("zoom").textContent = `${Math.round(100 * zoom)} %`;
  };
  const zoomed = (factor) => {
    const next = Math.min(16, Math.max(1, zoom * factor));
    [x, y, zoom] = next === 1 ? [0, 0, 1] : [(x * next) / zoom, (y * next) / zoom, next];
    move();
  };
  const draw = () => {
    if (!card) return;
    const size = Math.max(SHARPEST, ...[...stages.values()].map((stage) => stage.side));
    canvas.width = canvas.height = size;
    const context = canvas.getContext("2d"), table = windowTable(Number(level.value), Number(width.value));
    const flat = windowTable(127.5, 255);
    const map = stages.has(MAPS[overlay.value]) ? pixelsOf(stages.get(overlay.value), size) : null;
    const parent = map && pixelsOf(stages.get(MAPS[overlay.value]), size);
    const drawn = (name) => new ImageData(
      composed(pixelsOf(stages.get(name), size), COLOURED.includes(name) ? flat : table, COLOURED.includes(name) ? null : map, parent, 1), size);
    const edge = Math.round((size * Number(wipe.value)) / 100);
    context.putImageData(drawn(after.value), 0, 0);
    if (edge > 0) context.putImageData(drawn(before.value), 0, 0, 0, 0, edge, size);
    if (edge > 0 && edge < size) { context.fillStyle = "#ffd400"; context.fillRect(edge - 0.5, 0, Math.max(1, size / 256), size); }
    canvas.setAttribute("aria-label", edge > 0 ? `${before.value} left of ${after.value}, ${part("title").textContent}` : `${after.value}, ${part("title").textContent}`);
  };
  const fill = (select, names, wanted) => {
    const chosen = names.includes(select.value) ? select.value : wanted;
    select.replaceChildren(...names.map((name) => make("option", { value: name, textContent: name })));
    select.value = chosen;
  };
  const answered = () => {
    for (const button of dialog.querySelectorAll("[data-answer]"))
      button.setAttribute("aria-pressed", String(button.dataset.answer === answers.of(idOf(card)).verdict));
  };
  const show = async (next) => {
    card = next;
    const shown = visible(), about = card.querySelector(".about").cloneNode(true);
    part("title").textContent = card.querySelector("figcaption b").textContent + ", " + card.dataset.state;
    part("place").textContent = `${shown.indexOf(card) + 1} of ${shown.length}`;
    about.querySelectorAll("img").forEach((one) => one.remove());
    part("about").replaceChildren(about);
    comment.value = answers.of(idOf(card)).comment;
    answered();
    await Promise.all([...card.querySelectorAll("img")].map((one) => one.decode()));
    if (card !== next) return;
    stages = stagesOf(card);
    const names = [...stages.keys()], maps = Object.keys(MAPS).filter((name) => stages.has(name));
    fill(before, names, names[0]);
    fill(after, names, "image");
    fill(overlay, ["none", ...maps], "none");
    part("compare").hidden = names.length < 2;
    part("maps").hidden = !maps.length;
    if (names.length < 2) wipe.value = 0;
    draw();
  };
  const step = (by) => {
    const shown = visible();
    if (shown.length) show(shown[stepped(Math.max(shown.indexOf(card), by > 0 ? -1 : 0), by, shown.length)]);
  };
  const reset = () => { zoom = 1; x = y = 0; level.value = 127.5; width.value = 255; wipe.value = 0; overlay.value = "none"; move(); draw(); };
  const decide = (verdict) => { toggle(card, verdict); answered(); };

  for (const input of [before, after, overlay, wipe, level, width]) input.addEventListener("input", draw);
  comment.addEventListener("input", () => answer(card, { comment: comment.value }));
  const actions = { close: () => dialog.close(), previous: () => step(-1), next: () => step(1), in: () => zoomed(1.25), out: () => zoomed(0.8), reset };
  for (const [name, action] of Object.entries(actions)) part(name).addEventListener("click", action);
  for (const button of dialog.querySelectorAll("[data-answer]")) button.addEventListener("click", () => decide(button.dataset.answer));
  dialog.addEventListener("close", () => { const last = card; card = null; last?.querySelector("button.open").focus(); });

  const keys = { ArrowLeft: actions.previous, ArrowRight: actions.next, "+": actions.in, "=": actions.in, "-": actions.out, 0: reset, a: () => decide("accept"), r: () => decide("reject"), c: () => comment.focus() };
  dialog.addEventListener("keydown", (event) => {
    const typing = event.target.matches("textarea, select, input[type=text]") || (event.target.matches("input[type=range]") && event.key.startsWith("Arrow"));
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.shiftKey && event.key.startsWith("Arrow")) {
      x += 40 * ((event.key === "ArrowLeft") - (event.key === "ArrowRight"));
      y += 40 * ((event.key === "ArrowUp") - (event.key === "ArrowDown"));
      move();
    } else if (keys[event.key]) keys[event.key]();
    else return;
    event.preventDefault();
  });
  frame.addEventListener("wheel", (event) => { event.preventDefault(); zoomed(event.deltaY < 0 ? 1.15 : 1 / 1.15); }, { passive: false });
  frame.addEventListener("contextmenu", (event) => event.preventDefault());
  frame.addEventListener("pointerdown", (event) => frame.setPointerCapture(event.pointerId));
  frame.addEventListener("pointermove", (event) => {
    if (!event.buttons) return;
    if (event.buttons === 2 || event.shiftKey) {
      level.value = Number(level.value) + event.movementY;
      width.value = Number(width.value) + event.movementX;
      draw();
    } else if (zoom > 1) { x += event.movementX; y += event.movementY; move(); }
  });
  return { open(next) { reset(); dialog.showModal(); show(next); } };
}

if (typeof document !== "undefined") {
  const store = storage();
  document.documentElement.classList.add("scripted");
  themed(store);
  document.querySelectorAll("main table:not(.heat):not(.plain)").forEach(sortable);
  gallery(store);
}
