"use strict";
// The page knows an image by its place in this reader's order, and nothing else of it but the finding to be read.
const WORDS = {
  origin: ["Real or synthetic?", { r: "real", s: "synthetic" }],
  plausibility: ["Plausible as a radiograph?", { p: "plausible", i: "implausible" }],
  presence: ["FINDING: present?", { y: "present", n: "absent", u: "unsure" }],
};
const at = (id) => document.getElementById(id);
let items = [], questions = [], here = 0, view = null, queue = Promise.resolve(), pending = 0, stopped = false;

function reset() {
  view = { zoom: 1, x: 0, y: 0, brightness: 1, contrast: 1, invert: 0 };
}

function draw() {
  const { zoom, x, y, brightness, contrast, invert } = view;
  at("image").style.transform = `translate(${x}px, ${y}px) scale(${zoom})`;
  at("image").style.filter = `brightness(${brightness}) contrast(${contrast}) invert(${invert})`;
}

function complete(item) {
  return questions.every((question) => item.answer[question]);
}

function problem(text) {
  at("saved").textContent = text;
  at("saved").className = "problem";
}

function show(number) {
  here = Math.max(0, Math.min(items.length - 1, number));
  const item = items[here];
  reset();
  draw();
  at("image").src = `image/${here}`;
  at("comment").value = item.answer.comment;
  at("questions").replaceChildren(...questions.map((question) => field(question, item)));
  at("back").disabled = here === 0;
  count();
}

function count() {
  const done = items.filter(complete).length;
  const end = done === items.length ? "; all are answered: go back to change an answer, or stop" : "";
  at("progress").textContent = `image ${here + 1} of ${items.length}, ${done} answered${end}`;
}

function field(question, item) {
  const [words, keys] = WORDS[question];
  const set = document.createElement("fieldset");
  const legend = document.createElement("legend");
  legend.textContent = words.replace("FINDING", item.finding.replaceAll("_", " "));
  set.append(legend);
  for (const [key, value] of Object.entries(keys)) {
    const button = document.createElement("button");
    const mark = document.createElement("kbd");
    button.type = "button";
    mark.textContent = key.toUpperCase();
    button.append(`${value} `, mark);
    button.dataset.question = question;
    button.dataset.value = value;
    button.setAttribute("aria-pressed", String(item.answer[question] === value));
    button.addEventListener("click", () => answer(question, value));
    set.append(button);
  }
  return set;
}

function answer(question, value) {
  const item = items[here];
  item.answer[question] = item.answer[question] === value ? "" : value;
  document.querySelectorAll(`[data-question="${question}"]`).forEach((one) => {
    one.setAttribute("aria-pressed", String(one.dataset.value === item.answer[question]));
  });
  save(here);
  count();
}

function save(number) {
  const body = JSON.stringify({ image: number, ...items[number].answer });
  pending += 1;
  at("saved").className = "";
  at("saved").textContent = "saving";
  queue = queue.then(() => send("answer", body)).then((ok) => {
    pending -= 1;
    if (ok && pending === 0) at("saved").textContent = "saved";
  });
  return queue;
}

async function send(path, body) {
  try {
    const reply = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body });
    if (reply.ok) return true;
    problem(`Not saved: ${await reply.text()}`);
  } catch (error) {
    problem("Not saved: medlt review does not answer. Start the same command again, then load its page.");
  }
  return false;
}

function keepComment() {
  if (!items.length || items[here].answer.comment === at("comment").value) return;
  items[here].answer.comment = at("comment").value;
  save(here);
}

function go(step) {
  keepComment();
  show(here + step);
}

async function finish() {
  keepComment();
  await queue;
  if (await send("finish", "{}")) {
    stopped = true;
    at("saved").textContent = "Stopped. All answers are saved; this window can be closed.";
    at("frame").replaceChildren();
    document.querySelectorAll("button, textarea").forEach((one) => { one.disabled = true; });
  }
}

const ACTIONS = {
  ArrowLeft: () => go(-1), ArrowRight: () => go(1), Enter: () => go(1),
  "+": () => { view.zoom = Math.min(8, view.zoom * 1.25); }, "-": () => { view.zoom = Math.max(1, view.zoom / 1.25); },
  "]": () => { view.brightness *= 1.1; }, "[": () => { view.brightness /= 1.1; },
  "}": () => { view.contrast *= 1.1; }, "{": () => { view.contrast /= 1.1; },
  x: () => { view.invert = 1 - view.invert; }, 0: reset,
};

function pressed(event) {
  if (stopped || event.ctrlKey || event.metaKey || event.altKey || !items.length) return;
  if (document.activeElement === at("comment")) {
    if (event.key === "Escape") at("comment").blur();
    return;
  }
  const button = document.activeElement instanceof HTMLButtonElement ? document.activeElement : null;
  if (event.key === "Enter" && button && !button.dataset.question) return; // an answer is not taken back by Enter
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const question = questions.find((one) => key in WORDS[one][1]);
  if (question) answer(question, WORDS[question][1][key]);
  else if (key === "c") at("comment").focus();
  else if (ACTIONS[key]) { ACTIONS[key](); draw(); }
  else return;
  event.preventDefault();
}

function dragged(event) {
  if (event.buttons !== 1) return;
  view.x += event.movementX;
  view.y += event.movementY;
  draw();
}

async function start() {
  const reply = await fetch("state");
  if (!reply.ok) { problem(await reply.text()); return; }
  ({ items, questions } = await reply.json());
  reset();
  const open = items.findIndex((item) => !complete(item));
  show(open < 0 ? items.length - 1 : open);
}

document.addEventListener("keydown", pressed);
at("back").addEventListener("click", () => go(-1));
at("next").addEventListener("click", () => go(1));
at("finish").addEventListener("click", finish);
at("comment").addEventListener("change", keepComment);
at("frame").addEventListener("pointermove", dragged);
at("frame").addEventListener("wheel", (event) => {
  event.preventDefault();
  ACTIONS[event.deltaY < 0 ? "+" : "-"]();
  draw();
}, { passive: false });
start();
