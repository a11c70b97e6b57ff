"use strict";
// Small tools: elements, tooltips, numbers, and requests to this server.

const $ = (id) => document.getElementById(id);

/** An element with properties, `data-` and custom properties among them, and children (text or elements). */
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("--")) node.style.setProperty(name, value);
    else if (name === "class") node.className = value;
    else if (name.includes("-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((each) => each !== null && each !== undefined));
  return node;
}

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// ---- tooltips: what an element says when it is pointed at, tapped or focused

const tips = new WeakMap(); // element -> () => children of the tooltip
let tipped = null;

function showTip(target) {
  const box = $("tip");
  tipped = target;
  box.replaceChildren(...tips.get(target)());
  box.hidden = false;
  const at = target.getClientRects()[0] ?? target.getBoundingClientRect();
  const left = Math.min(at.left, innerWidth - box.offsetWidth - 8);
  const below = at.bottom + 6 + box.offsetHeight <= innerHeight;
  box.style.left = `${Math.max(8, left)}px`;
  box.style.top = `${Math.max(8, below ? at.bottom + 6 : at.top - 6 - box.offsetHeight)}px`;
}

function hideTip() {
  if (tipped) tipped.dispatchEvent(new Event("untip"));
  tipped = null;
  $("tip").hidden = true;
}

function tipAt(event) {
  let target = event.target;
  while (target instanceof Element && !tips.has(target)) target = target.parentElement;
  if (target === tipped) return;
  hideTip();
  if (target) {
    showTip(target);
    target.dispatchEvent(new Event("tip"));
  }
}

// ---- numbers

function short(value) {
  if (value >= 1e6) return `${(value / 1e6).toFixed(value < 1e7 ? 1 : 0)}M`;
  if (value >= 1e4) return `${Math.round(value / 1e3)}k`;
  return value < 10 && !Number.isInteger(value) ? value.toFixed(1) : Math.round(value).toLocaleString("en");
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.00995) return `${(seconds * 1e3).toFixed(1)} ms`;
  if (seconds < 0.995) return `${Math.round(seconds * 1e3)} ms`;
  return `${seconds.toFixed(seconds < 9.95 ? 1 : 0)} s`;
}

function percent(share) {
  return `${(share * 100).toFixed(share > 0.0995 || share === 0 ? 0 : share > 0.00995 ? 1 : 2)}%`;
}

const plural = (count, word) => `${short(count)} ${word}${count === 1 ? "" : "s"}`;
const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/[\x00-\x1f\x7f]/g, "·");

// ---- this server

const keyOf = (id) => sessionStorage.getItem(id) ?? "";

/** fetch, with the key that fits; raises an Error with the server's own sentence and its status. */
async function ask(path, options = {}, keyName = "api-key") {
  const headers = { ...options.headers };
  const key = keyOf(keyName) || keyOf("api-key");
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const error = new Error(body?.error?.message ?? `the server answered with status ${response.status}`);
  error.status = response.status;
  throw error;
}
