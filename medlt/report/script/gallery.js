// The gallery: filters, cards and their answers; then the start of the page.

const NARROW = 760; // px, as in the style sheet

/** Whether an image's data match every chosen filter; an empty choice matches all, `reason` is a list of lines. */
function matches(data, chosen) {
  return Object.entries(chosen).every(([name, value]) => {
    if (!value) return true;
    const given = data[name] || "";
    return name === "reason" ? given.split("\n").includes(value) : given === value;
  });
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
  const picker = section.querySelector(".picker");
  const loaded = section.querySelector(".loaded");
  const idOf = (card) => `${card.dataset.run} ${card.dataset.uid}`;
  section.querySelector(".tools").open = innerWidth > NARROW; // on a telephone the images come first
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
  exporter.addEventListener("click", () => download("reader_answers.csv", csvText(COLUMNS, cards.flatMap((card) => {
    const { verdict, comment } = answers.of(idOf(card));
    const { uid, run, finding } = card.dataset;
    return verdict || comment ? [[uid, verdict, comment, reader.value.trim(), run, finding]] : [];
  }))));
  const load = (text) => {
    const byUid = new Map(cards.map((card) => [card.dataset.uid, card]));
    const own = (one) => !one.run || one.run === byUid.get(one.uid).dataset.run;
    const given = answersIn(text), here = given.filter((one) => byUid.has(one.uid) && own(one));
    const changed = here.filter((one) => {
      const now = answers.of(idOf(byUid.get(one.uid)));
      return (now.verdict || now.comment) && (now.verdict !== one.verdict || now.comment !== one.comment);
    });
    const replace = changed.length && confirm(`${changed.length} answers on this page differ from those of the file. Replace them?`);
    const taken = replace ? here : here.filter((one) => !changed.includes(one));
    for (const { uid, verdict, comment } of taken) answer(byUid.get(uid), { verdict, comment });
    const readers = new Set(given.map((one) => one.reader).filter(Boolean));
    if (!reader.value && readers.size === 1) [reader.value] = readers;
    return [`${taken.length} answers loaded`,
      ...(taken.length < here.length ? [`${here.length - taken.length} kept as they are here`] : []),
      ...(here.length < given.length ? [`${given.length - here.length} are of images that this page does not show`] : [])].join(", ");
  };
  section.querySelector(".load").addEventListener("click", () => picker.click());
  picker.addEventListener("change", async () => {
    const [file] = picker.files;
    if (!file) return;
    try {
      if (file.size > LARGEST) throw new Error("it is larger than 10 MB");
      loaded.textContent = `${load(await file.text())}.`;
    } catch (error) { loaded.textContent = `Nothing loaded from this file: ${error.message}.`; }
    picker.value = "";
  });
  filter();
}

if (typeof document !== "undefined") {
  const store = storage();
  document.documentElement.classList.add("scripted");
  themed(store);
  document.querySelectorAll("main table:not(.heat):not(.plain)").forEach(sortable);
  gallery(store);
}
