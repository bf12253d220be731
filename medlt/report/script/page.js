"use strict";

// What every part of the page uses: elements, storage and colours.

function make(tag, properties = {}, ...children) {
  const { dataset, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  Object.assign(element.dataset, dataset);
  element.append(...children);
  return element;
}

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
