"use strict";
// The page knows an image by its place in this reader's order, and nothing else of it but the finding to be read.
const WORDS = {
  origin: ["Real or synthetic?", { r: "real", s: "synthetic" }],
  plausibility: ["Plausible as a radiograph?", { p: "plausible", i: "implausible" }],
  presence: ["FINDING: present?", { y: "present", n: "absent", u: "unsure" }],
};
const FULL = { zoom: 1, x: 0, y: 0, level: 127.5, width: 255, invert: false };
const PAUSE = 500; // ms without a key after which a comment is saved
const at = (id) => document.getElementById(id);
const between = (low, value, high) => Math.max(low, Math.min(high, value));
const pictures = new Map(), past = [];
let items = [], questions = [], here = 0, view = { ...FULL }, queue = Promise.resolve(), pending = 0, stopped = false, typing = 0;

// ---- The image ----

function picture(number) {
  if (!pictures.has(number)) {
    const image = new Image();
    image.alt = "radiograph to read";
    image.draggable = false;
    image.addEventListener("error", () => problem("An image did not arrive. Load the page again."));
    image.src = `image/${number}`;
    pictures.set(number, image);
  }
  return pictures.get(number);
}

function load() {
  at("frame").replaceChildren(picture(here));
  for (const number of [here + 1, here - 1]) if (items[number]) picture(number);
  for (const number of pictures.keys()) if (Math.abs(number - here) > 1) pictures.delete(number);
}

function draw() {
  const { invert, level, width, zoom } = view;
  const [reachX, reachY] = [at("frame").clientWidth, at("frame").clientHeight].map((side) => ((zoom - 1) * side) / 2);
  view.x = between(-reachX, view.x, reachX);
  view.y = between(-reachY, view.y, reachY);
  const sign = invert ? -1 : 1, low = 0.5 - level / width; // level and width: grey levels, 0 to 255
  for (const channel of document.querySelectorAll("#window feComponentTransfer > *")) {
    channel.setAttribute("slope", (sign * 255) / width);
    channel.setAttribute("intercept", invert ? 1 - low : low);
  }
  const plain = !invert && level === FULL.level && width === FULL.width;
  const { style } = picture(here);
  style.transform = `translate(${view.x}px, ${view.y}px) scale(${zoom})`;
  style.filter = plain ? "none" : "url(#window)";
  at("frame").style.touchAction = zoom > 1 ? "none" : "pan-y pinch-zoom";
  at("invert").setAttribute("aria-pressed", String(invert));
  at("view").textContent = `zoom ${Math.round(100 * zoom)} %, window ${Math.round(width)}, level ${Math.round(level)}`;
}

/** Zoom about a point, px from the middle of the frame, which stays where it is. */
function zoomed(factor, x = 0, y = 0) {
  const next = between(1, view.zoom * factor, 16), ratio = next / view.zoom;
  Object.assign(view, { zoom: next, x: x - (x - view.x) * ratio, y: y - (y - view.y) * ratio });
}

function windowed(level, width) {
  view.level = between(0, view.level + level, 255);
  view.width = between(10, view.width + width, 510);
}

function reset() {
  view = { ...FULL };
}

// ---- Questions and answers ----

const complete = (item) => questions.every((question) => item.answer[question]);

function field(question) {
  const set = document.createElement("fieldset");
  set.append(document.createElement("legend"));
  set.dataset.of = question;
  for (const [key, value] of Object.entries(WORDS[question][1])) {
    const button = document.createElement("button"), mark = document.createElement("kbd");
    button.type = "button";
    mark.textContent = key.toUpperCase();
    button.append(`${value} `, mark);
    button.dataset.value = value;
    button.addEventListener("click", () => answer(question, value));
    set.append(button);
  }
  return set;
}

function mark() {
  const item = items[here], done = items.filter(complete).length;
  for (const set of document.querySelectorAll("fieldset")) {
    set.querySelector("legend").textContent = WORDS[set.dataset.of][0].replace("FINDING", item.finding.replaceAll("_", " "));
    for (const button of set.querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(item.answer[set.dataset.of] === button.dataset.value));
  }
  at("back").disabled = here === 0;
  at("next").disabled = here === items.length - 1;
  at("open").disabled = done === items.length;
  at("undo").disabled = !past.length;
  at("bar").max = items.length;
  at("bar").value = done;
  const end = done === items.length ? ". All are answered: go back to change an answer, or stop." : "";
  at("place").textContent = `image ${here + 1} of ${items.length}, ${done} answered${end}`;
  document.title = `${here + 1} of ${items.length} - Reader review`;
}

function show(number) {
  keepComment();
  here = between(0, number, items.length - 1);
  history.replaceState(null, "", `#${here + 1}`); // a reload stays at this image
  at("comment").value = items[here].answer.comment;
  load();
  reset();
  draw();
  mark();
}

function open() {
  const behind = (number) => (number + items.length - here - 1) % items.length;
  const numbers = [...items.keys()];
  const next = numbers.filter((number) => !complete(items[number])).sort((a, b) => behind(a) - behind(b))[0];
  if (next !== undefined) show(next);
}

function answer(question, value) {
  if (!picture(here).naturalWidth) return; // not there yet
  const before = items[here].answer[question];
  past.push([here, question, before]);
  put(here, question, before === value ? "" : value);
}

function put(number, question, value) {
  items[number].answer[question] = value;
  save(number);
  mark();
}

function undo() {
  if (!past.length) return;
  const [number, question, before] = past.pop();
  if (number !== here) show(number);
  put(number, question, before);
}

// ---- Saving: what the page shows as an answer is saved, or on its way ----

function problem(text) {
  at("problem").textContent = text;
  at("problem").hidden = !text;
}

function save(number) {
  const item = items[number], sent = { ...item.answer };
  pending += 1;
  at("saved").textContent = "saving";
  queue = queue.then(() => send("answer", { image: number, ...sent })).then((ok) => {
    pending -= 1;
    if (ok) item.saved = sent;
    else item.answer = { ...item.saved, comment: item.answer.comment };
    if (ok) problem("");
    else mark();
    if (!pending) at("saved").textContent = ok ? "saved" : "";
  });
}

async function send(path, content) {
  try {
    const headers = { "Content-Type": "application/json" };
    const reply = await fetch(path, { method: "POST", headers, body: JSON.stringify(content), keepalive: true });
    if (reply.ok) return true;
    problem(`Not saved: ${await reply.text()}`);
  } catch (error) {
    problem("Not saved: medlt review does not answer. Start the same command again, and open the address that it prints.");
  }
  return false;
}

function keepComment() {
  clearTimeout(typing);
  const item = items[here], text = at("comment").value;
  if (!item || stopped || item.saved.comment === text) return;
  item.answer.comment = text;
  save(here);
}

async function finish() {
  keepComment();
  await queue;
  if (!(await send("finish", {}))) return;
  stopped = true;
  at("saved").textContent = "Stopped. All answers are saved; this window can be closed.";
  at("frame").replaceChildren();
  document.querySelectorAll("button, textarea").forEach((one) => { one.disabled = true; });
}

// ---- Keys and mouse ----

const MOVES = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
const STEPS = { ArrowLeft: () => show(here - 1), ArrowRight: () => show(here + 1), Enter: () => show(here + 1), o: open, z: undo, c: () => at("comment").focus() };
const VIEWS = {
  "+": () => zoomed(1.25), "=": () => zoomed(1.25), "-": () => zoomed(0.8), 0: reset, x: () => { view.invert = !view.invert; },
  b: () => windowed(-10, 0), d: () => windowed(10, 0), h: () => windowed(0, -15), l: () => windowed(0, 15),
};

function seen(change) {
  change();
  draw();
}

function help() {
  if (at("keys").open) at("keys").close();
  else at("keys").showModal();
}

/** Whether Enter belongs to the button that has the focus. An answer that is given is not taken back by Enter. */
function pressesButton(event) {
  const { activeElement } = document;
  return event.key === "Enter" && activeElement instanceof HTMLButtonElement && activeElement.getAttribute("aria-pressed") !== "true";
}

function pressed(event) {
  if (stopped || event.ctrlKey || event.metaKey || event.altKey || !items.length) return;
  if (document.activeElement === at("comment")) {
    if (event.key === "Escape") at("comment").blur();
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if ((at("keys").open && key !== "?") || pressesButton(event)) return;
  const question = questions.find((one) => key in WORDS[one][1]);
  if (event.shiftKey && MOVES[key]) seen(() => { view.x += MOVES[key][0]; view.y += MOVES[key][1]; });
  else if (VIEWS[key]) seen(VIEWS[key]);
  else if (question || STEPS[key] || key === "?") {
    if (event.repeat) { /* a key that is held down counts once */ }
    else if (question) answer(question, WORDS[question][1][key]);
    else (STEPS[key] ?? help)();
  } else return;
  event.preventDefault();
}

function dragged(event) {
  const { buttons, movementX, movementY } = event;
  if (buttons === 2) seen(() => windowed(movementY, movementX));
  else if (buttons === 1) seen(() => { view.x += movementX; view.y += movementY; });
}

function wheeled(event) {
  event.preventDefault();
  const { left, top, width, height } = at("frame").getBoundingClientRect();
  seen(() => zoomed(event.deltaY < 0 ? 1.15 : 1 / 1.15, event.clientX - left - width / 2, event.clientY - top - height / 2));
}

function listen() {
  document.addEventListener("keydown", pressed);
  document.addEventListener("click", (event) => {
    if (event.detail && event.target.closest("button")) document.activeElement.blur(); // Enter goes on after a click
  });
  const clicks = { back: STEPS.ArrowLeft, next: STEPS.Enter, open, undo, finish, help };
  for (const [id, action] of Object.entries(clicks)) at(id).addEventListener("click", action);
  const views = { in: VIEWS["+"], out: VIEWS["-"], invert: VIEWS.x, reset };
  for (const [id, change] of Object.entries(views)) at(id).addEventListener("click", () => seen(change));
  at("comment").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(keepComment, PAUSE); });
  at("comment").addEventListener("change", keepComment);
  at("frame").addEventListener("contextmenu", (event) => event.preventDefault());
  at("frame").addEventListener("pointerdown", (event) => at("frame").setPointerCapture(event.pointerId));
  at("frame").addEventListener("pointermove", dragged);
  at("frame").addEventListener("dblclick", () => seen(reset));
  at("frame").addEventListener("wheel", wheeled, { passive: false });
  window.addEventListener("resize", draw);
  window.addEventListener("pagehide", keepComment);
}

async function start() {
  const reply = await fetch("state");
  if (!reply.ok) { problem(await reply.text()); return; }
  const { reader, ...state } = await reply.json();
  ({ items, questions } = state);
  for (const item of items) item.saved = { ...item.answer };
  at("reader").textContent = ` by ${reader}`;
  at("questions").append(...questions.map(field));
  const wanted = Number(location.hash.slice(1)) - 1, first = items.findIndex((item) => !complete(item));
  at("comment").value = items[0].saved.comment;
  listen();
  if (items[wanted]) show(wanted);
  else show(first < 0 ? items.length - 1 : first);
  at("saved").textContent = "Every answer is saved at once.";
}

start();
