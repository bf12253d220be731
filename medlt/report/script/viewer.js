// One image: zoom, window and level, before and after, activation maps.

const GAP = 2; // px between the tiles of a strip
const REACH = 24; // px on the screen around the divider, in which a drag moves it
const SHARPEST = 512; // px, smallest side of the canvas
const MAPS = { "tail CAM": "tail parent", "head CAM": "head parent" };
const COLOURED = ["tail CAM", "head CAM", "mask"];

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
  let card = null, stages = new Map(), layers = null, zoom = 1, x = 0, y = 0, drags = null;

  const move = () => {
    const reach = ((zoom - 1) * frame.clientWidth) / 2;
    [x, y] = [x, y].map((value) => Math.max(-reach, Math.min(reach, value)));
    canvas.style.transform = `translate(${x}px, ${y}px) scale(${zoom})`;
    frame.classList.toggle("pans", zoom > 1 || !comparable());
    part("zoom").textContent = `${Math.round(100 * zoom)} %`;
  };
  const zoomed = (factor) => {
    const next = Math.min(16, Math.max(1, zoom * factor));
    [x, y, zoom] = next === 1 ? [0, 0, 1] : [(x * next) / zoom, (y * next) / zoom, next];
    move();
  };
  const comparable = () => stages.size > 1;
  const reveal = () => {
    if (!layers) return;
    const context = canvas.getContext("2d"), size = canvas.width, edge = Math.round((size * Number(wipe.value)) / 100);
    context.putImageData(layers.after, 0, 0);
    if (edge > 0) context.putImageData(layers.before, 0, 0, 0, 0, edge, size);
    if (edge > 0 && edge < size) { context.fillStyle = "#ffd400"; context.fillRect(edge - 0.5, 0, Math.max(1, size / 256), size); }
    canvas.setAttribute("aria-label", (edge > 0 ? `${before.value} left of ` : "") + `${after.value}, ${part("title").textContent}`);
  };
  const draw = () => {
    if (!card) return;
    const size = Math.max(SHARPEST, ...[...stages.values()].map((stage) => stage.side));
    canvas.width = canvas.height = size;
    const table = windowTable(Number(level.value), Number(width.value)), flat = windowTable(127.5, 255);
    const map = stages.has(MAPS[overlay.value]) ? pixelsOf(stages.get(overlay.value), size) : null;
    const parent = map && pixelsOf(stages.get(MAPS[overlay.value]), size);
    const drawn = (name) => new ImageData(
      composed(pixelsOf(stages.get(name), size), COLOURED.includes(name) ? flat : table, COLOURED.includes(name) ? null : map, parent, 1), size);
    layers = { before: drawn(before.value), after: drawn(after.value) };
    reveal();
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
    part("compare").hidden = !comparable();
    part("maps").hidden = !maps.length;
    if (!comparable()) wipe.value = 0;
    move();
    draw();
  };
  const step = (by) => {
    const shown = visible();
    if (shown.length) show(shown[stepped(Math.max(shown.indexOf(card), by > 0 ? -1 : 0), by, shown.length)]);
  };
  const reset = () => { zoom = 1; x = y = 0; level.value = 127.5; width.value = 255; wipe.value = 0; overlay.value = "none"; move(); draw(); };
  const decide = (verdict) => { toggle(card, verdict); answered(); };

  for (const input of [before, after, overlay, level, width]) input.addEventListener("input", draw);
  wipe.addEventListener("input", reveal);
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
  const dividerAt = (event) => {
    const { left, width: across } = canvas.getBoundingClientRect();
    return { share: (100 * (event.clientX - left)) / across, near: Math.abs(event.clientX - left - (across * Number(wipe.value)) / 100) <= REACH };
  };
  frame.addEventListener("pointerdown", (event) => {
    frame.setPointerCapture(event.pointerId);
    const windows = event.button === 2 || event.shiftKey, divides = comparable() && (zoom === 1 || dividerAt(event).near);
    drags = windows ? "window" : divides ? "divider" : "image";
  });
  frame.addEventListener("pointermove", (event) => {
    if (!event.buttons || !drags) return;
    if (drags === "window") {
      level.value = Number(level.value) + event.movementY;
      width.value = Number(width.value) + event.movementX;
      draw();
    } else if (drags === "divider") { wipe.value = dividerAt(event).share; reveal(); }
    else if (zoom > 1) { x += event.movementX; y += event.movementY; move(); }
  });
  for (const name of ["pointerup", "pointercancel"]) frame.addEventListener(name, () => { drags = null; });
  return { open(next) { reset(); dialog.showModal(); show(next); } };
}
