// Chat over /v1/chat/completions.

const EXAMPLES = [
  "What is the capital of France?",
  "Tell me a short story about a lighthouse.",
  "Explain what a prefix cache is, to a child.",
];
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const ALTERNATIVES = 5;

const TURN = 16; // milliseconds of work after which the page gets to draw and to hear its buttons

const chat = { messages: [], running: null, following: true };

/** The events of a stream, parsed. Raises what the server says went wrong after its start. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the stream broke off");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

/**
 * Writes a reply as it comes, and finds out which token each piece of text is of. Tokens and text come apart:
 * a character may have several tokens, marks of the format have tokens and no text, and the server holds
 * text back that may become a stop string.
 */
class Writer {
  constructor() {
    this.tokens = []; // { text, entries } that are still to be seen as text
    this.part = []; // entries of a character that is not whole
    this.decoder = new TextDecoder();
  }

  expect(entries) {
    for (const entry of entries) {
      const text = entry.bytes
        ? this.decoder.decode(new Uint8Array(entry.bytes), { stream: true })
        : entry.token;
      this.part.push(entry);
      if (!text) continue;
      this.tokens.push({ text, entries: this.part });
      this.part = [];
    }
  }

  write(box, text) {
    while (text) {
      const near = this.tokens.slice(0, 8);
      let index = near.findIndex((each) => text.startsWith(each.text) || each.text.startsWith(text));
      if (index < 0) {
        index = near.findIndex((each) => each.text.trim() && text.startsWith(each.text.trimStart()));
        if (index >= 0) near[index].text = near[index].text.trimStart(); // the reply's first word
      }
      if (index < 0) return box.append(text);
      this.tokens.splice(0, index);
      const token = this.tokens[0];
      const length = Math.min(text.length, token.text.length);
      box.append(tokenSpan(text.slice(0, length), token.entries));
      token.text = token.text.slice(length);
      if (!token.text) this.tokens.shift();
      text = text.slice(length);
    }
  }
}

function tokenSpan(text, entries) {
  const least = Math.exp(Math.min(...entries.map((each) => each.logprob)));
  const level = [0.9, 0.6, 0.3, 0.1].filter((bound) => least < bound).length;
  const span = el("span", { class: `token t${level}` }, text);
  tips.set(span, () => entries.map(tokenTip));
  return span;
}

function tokenTip(entry) {
  const others = entry.top_logprobs.some((each) => each.token === entry.token && each.logprob === entry.logprob)
    ? entry.top_logprobs
    : [...entry.top_logprobs, entry];
  const rows = others.map((each) =>
    el("tr", { class: each.token === entry.token ? "chosen" : "" },
      el("td", {}, el("code", {}, visible(each.token) || "∅")),
      el("td", {}, el("b", { class: "bar", "--share": Math.exp(each.logprob) })),
      el("td", {}, percent(Math.exp(each.logprob)))));
  return el("table", { class: "alternatives" }, ...rows);
}

function settings() {
  const body = {};
  for (const name of NUMBERS) if ($(name).value !== "") body[name] = Number($(name).value);
  if ($("logprobs").checked) Object.assign(body, { logprobs: true, top_logprobs: ALTERNATIVES });
  return body;
}

function summarize() {
  const changed = NUMBERS.filter((name) => $(name).value !== $(name).defaultValue);
  const set = changed.map((name) => `${name} ${$(name).value || "unset"}`);
  if ($("system").value.trim()) set.unshift("system prompt");
  $("settings-summary").textContent = set.join(" · ");
  $("legend").hidden = !$("logprobs").checked;
}

function addMessage(role, text) {
  $("welcome").hidden = true;
  const box = el("article", { class: role }, el("div", { class: "text" }, text));
  $("messages").append(box);
  chat.following = true;
  follow();
  return box;
}

/** Keep the end in sight, unless the reader has scrolled away from it. */
function follow() {
  const log = $("messages");
  if (chat.following) log.scrollTop = log.scrollHeight;
}

/** The place of a model's thoughts, above its answer. */
function thoughtsOf(box) {
  let thoughts = box.querySelector("details");
  if (!thoughts) {
    thoughts = el("details", { class: "thoughts" }, el("summary", {}, "Thinking"), el("div", { class: "text" }));
    box.prepend(thoughts);
  }
  return thoughts.querySelector(".text");
}

async function send(text) {
  if (chat.running || !text.trim()) return;
  for (const old of document.querySelectorAll(".again")) old.remove();
  const asked = addMessage("user", text);
  const box = addMessage("assistant", "");
  const reply = { role: "assistant", content: "" };
  chat.messages.push({ role: "user", content: text });
  chat.running = new AbortController();
  setRunning(true);
  const note = el("footer", { class: "note" });
  try {
    note.append(await stream(box, reply));
  } catch (error) {
    const stopped = error.name === "AbortError";
    note.append(stopped ? "stopped" : error.message);
    note.classList.toggle("error", !stopped);
    if (error.status === 401 || error.status === 403) $("keys").showModal();
  }
  box.append(note);
  box.classList.remove("writing");
  follow();
  chat.running = null;
  setRunning(false);
  finish(text, asked, reply, note);
}

/** Keep what was said; of what failed only the question, which goes back to where it was written. */
function finish(text, asked, reply, note) {
  if (!reply.content) {
    chat.messages.pop();
    asked.classList.add("unanswered");
    if (!$("prompt").value) $("prompt").value = text;
    return;
  }
  chat.messages.push(reply);
  const again = el("button", { type: "button", class: "quiet again" }, "Ask again");
  again.addEventListener("click", () => {
    chat.messages.splice(-2);
    asked.nextElementSibling.remove();
    asked.remove();
    send(text);
  });
  note.append(again);
}

/** Fill `box` and `reply` from the server's stream; what is to be said below it. */
async function stream(box, reply) {
  box.classList.add("writing");
  const system = $("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...chat.messages];
  const body = { messages, stream: true, stream_options: { include_usage: true }, ...settings() };
  const began = performance.now();
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal: chat.running.signal,
  });
  const writer = new Writer();
  const answer = box.querySelector(":scope > .text");
  let first = 0, usage = null, reason = "", turn = 0;
  for await (const event of events(response)) {
    usage = event.usage ?? usage;
    const choice = event.choices[0];
    if (!choice) continue;
    const { content, reasoning_content: thought } = choice.delta;
    if (choice.logprobs) writer.expect(choice.logprobs.content);
    if (content || thought) first ||= performance.now();
    if (thought) writer.write(thoughtsOf(box), thought);
    if (content) writer.write(answer, content);
    reply.content += content ?? "";
    reason = choice.finish_reason ?? reason;
    if (performance.now() - turn < TURN) continue;
    follow();
    await new Promise((done) => setTimeout(done));
    turn = performance.now();
  }
  follow();
  return describe(usage, (first || performance.now()) - began, performance.now() - first, reason);
}

function describe(usage, wait, rest, reason) {
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const said = [
    plural(usage.completion_tokens, "token"),
    `first after ${duration(wait / 1e3)}`,
    usage.completion_tokens > 1 ? `${short((usage.completion_tokens - 1) / (rest / 1e3))} per second` : "",
    `${short(cached)} of ${plural(usage.prompt_tokens, "prompt token")} cached`,
    reason === "stop" ? "" : reason,
  ];
  return said.filter(Boolean).join(" · ");
}

function setRunning(running) {
  $("send").hidden = running;
  $("stop").hidden = !running;
  $("new-chat").disabled = running;
}

function startChat() {
  const submit = () => {
    if (chat.running) return;
    const text = $("prompt").value;
    $("prompt").value = "";
    send(text);
  };
  $("send").addEventListener("click", submit);
  $("stop").addEventListener("click", () => chat.running?.abort());
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  $("new-chat").addEventListener("click", () => {
    chat.messages = [];
    $("messages").replaceChildren($("welcome"));
    $("welcome").hidden = false;
    $("prompt").focus();
  });
  $("settings").addEventListener("input", summarize);
  const log = $("messages");
  log.addEventListener("scroll", () => {
    chat.following = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  });
  for (const text of EXAMPLES) {
    const button = el("button", { type: "button" }, text);
    button.addEventListener("click", () => send(text));
    $("examples").append(button);
  }
  summarize();
}
