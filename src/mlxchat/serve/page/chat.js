// The page of `mlxchat serve`. Everything that a model or a person writes becomes a text node, never
// markup; nothing is fetched from another host.

const KEPT = "mlxchat.conversation."; // and an id
const KEPT_ONCE = "mlxchat.conversations"; // all in one list: what the page kept before
const SETTINGS = "mlxchat.settings";
const KEY = "mlxchat.key";
const OPEN = "mlxchat.open"; // the id of the tab's conversation
const TEXT = "mlxchat.text"; // of a base model: {text, before}
const RETRY_MS = 3000; // between looks at a server that is gone
const UNFINISHED = "unfinished"; // the note of an answer while it is written, seen if the page is left
const TITLE_LENGTH = 60;
const ANSWERED = 512; // tokens that an answer should have room for, unless the settings say
const CONTINUED = 256; // tokens of a continuation, unless the settings say; OpenAI's are 16
const NUMBERS = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_tokens", "seed"];

const $ = (id) => document.getElementById(id);
const number = (n, digits = 0) => n.toLocaleString("en", { maximumFractionDigits: digits });

/** Make an element with properties and children, which are elements or text. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// ==== What the browser keeps ====

/** Read a value from a storage of the window; `otherwise` if there is none, it is forbidden or damaged. */
function recall(storage, name, otherwise) {
  try {
    return JSON.parse(window[storage].getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** Keep a value, and return whether it worked. If not, it lasts until the page is left. */
function keep(storage, name, value) {
  try {
    window[storage].setItem(name, JSON.stringify(value));
    return true;
  } catch (error) {
    console.info("not kept:", error.message);
    return false;
  }
}

/** Remove a value, if that is allowed. */
function drop(storage, name) {
  try {
    window[storage].removeItem(name);
  } catch (error) {
    console.info("not removed:", error.message);
  }
}

/** Return the names of all values. */
function namesIn(storage) {
  try {
    return Object.keys(window[storage]);
  } catch {
    return [];
  }
}

const unkept = new Map(); // by id: conversations that the storage has no room for
splitList();
let conversations = allConversations(); // latest first
let settings = recall("localStorage", SETTINGS, {});
const opened = recall("sessionStorage", OPEN, "");
let current = conversations.find(({ id }) => id === opened) ?? conversations[0] ?? begin();

/** Keep the conversations of a list each by itself, so that no tab writes what another one has changed. */
function splitList() {
  const list = [recall("localStorage", KEPT_ONCE, [])].flat().filter(isConversation);
  drop("localStorage", KEPT_ONCE); // first: there may not be room for both
  for (const [age, conversation] of list.entries()) write({ ...conversation, changed: -age });
}

/** Return whether a value from storage is a conversation; anything may be there. */
function isConversation(value) {
  return Array.isArray(value?.messages);
}

/** Write a conversation into storage. */
function write(conversation) {
  if (keep("localStorage", KEPT + conversation.id, conversation)) unkept.delete(conversation.id);
  else unkept.set(conversation.id, conversation);
}

/** Return all conversations, whichever tab kept them. */
function allConversations() {
  const stored = namesIn("localStorage").filter((name) => name.startsWith(KEPT));
  const all = new Map(stored.map((name) => [name.slice(KEPT.length), recall("localStorage", name, null)]));
  for (const [id, conversation] of unkept) all.set(id, conversation);
  return [...all.values()].filter(isConversation).sort((one, other) => other.changed - one.changed);
}

/** Keep a conversation. If another tab has continued it since this one read it, both are kept. */
function keepConversation(conversation) {
  const theirs = recall("localStorage", KEPT + conversation.id, null);
  const changed = theirs && theirs.revision !== conversation.revision;
  if (changed && !unkept.has(conversation.id)) conversation.id = newId();
  conversation.revision = (conversation.revision ?? 0) + 1;
  conversation.changed = Date.now();
  write(conversation);
  conversations = allConversations();
  showConversations();
}

/** Take over what another tab has kept. */
function heedOtherTab({ key }) {
  if (key === SETTINGS) settings = recall("localStorage", SETTINGS, {});
  if (key !== null && !key.startsWith(KEPT)) return;
  conversations = allConversations();
  const theirs = conversations.find(({ id }) => id === current.id);
  if (theirs && theirs.revision !== current.revision && !running && !editing) {
    const same = (message, place) => JSON.stringify(message) === JSON.stringify(current.messages[place]);
    const from = theirs.messages.findIndex((message, place) => !same(message, place));
    current = theirs;
    follow($("messages"), () => showMessages(from < 0 ? theirs.messages.length : from));
  }
  showConversations();
}

/** Return a new conversation, which is kept from its first message on. */
function begin() {
  return { id: newId(), title: "New chat", messages: [] };
}

/** Return an id that no other tab has; browsers make such ones only for addresses that they trust. */
function newId() {
  return crypto.randomUUID?.() ?? String(Date.now() + Math.random());
}

// ==== The server ====

/** What the server says is wrong: `status` of HTTP, and `code`, a word that programs know. */
class ServerError extends Error {
  constructor(error, status) {
    super(error?.message ?? `The server answered with ${status}.`);
    this.code = error?.code;
    this.status = status;
  }
}

/** Send a request; throws ServerError with what the server says is wrong. */
async function request(path, body, signal) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  const key = recall("sessionStorage", KEY, "");
  if (key) headers.Authorization = `Bearer ${key}`;
  const options = { method: body ? "POST" : "GET", headers, signal };
  const response = await fetch(path, body ? { ...options, body: JSON.stringify(body) } : options);
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  throw new ServerError(said?.error, response.status);
}

/** Yield the data of each server-sent event. A character or line may be cut between two reads. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { value, done } = await reader.read();
    left += value ?? "";
    const parts = left.split(/\r?\n\r?\n/);
    left = done ? "" : parts.pop();
    for (const part of parts) {
      const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
    if (done) return;
  }
}

/** Yield `{text}`, `{usage}` and `{reason}` of a streamed answer or continuation. */
async function* stream(path, body, signal) {
  const options = { ...body, ...sampling(), stream: true, stream_options: { include_usage: true } };
  let ended = false;
  for await (const data of events(await request(path, options, signal))) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error);
    if (chunk.usage) yield { usage: chunk.usage };
    const choice = chunk.choices[0];
    const text = choice?.delta?.content ?? choice?.text;
    if (text) yield { text };
    if (choice?.finish_reason) yield { reason: choice.finish_reason };
    ended ||= Boolean(choice?.finish_reason);
  }
  if (!ended) throw new ServerError({ message: "The answer was interrupted." });
}

/** Return the sampling settings as the server takes them. */
function sampling() {
  const given = NUMBERS.filter((name) => settings[name] != null);
  return Object.fromEntries(given.map((name) => [name, settings[name]]));
}

let model = null; // {id, chat, context_length}
let names = []; // of all models that the server has
let look = 0; // the number of the latest look at the server: the only one that counts
let retry; // its timer, while the server does not answer

/** Ask the server for its models, and again until it answers. */
async function connect() {
  clearTimeout(retry);
  const mine = ++look;
  const { found, problem } = await lookForModel();
  if (mine !== look) return;
  say(problem);
  if (found) showModel(found);
  else retry = setTimeout(connect, RETRY_MS);
}

/** Return the model that the settings name, or the server's first, or the problem that prevents it. */
async function lookForModel() {
  try {
    const { data } = await (await request("/v1/models")).json();
    names = data.map(({ id }) => id);
    return { found: data.find(({ id }) => id === settings.model) ?? data[0], problem: "" };
  } catch (error) {
    if (!(error instanceof ServerError)) return { problem: "The server does not respond. Is it running?" };
    return { problem: error.status === 401 ? `${error.message} Enter it in the settings.` : error.message };
  }
}

/** Show the part of the page that is for a model. */
function showModel(found) {
  const hidden = $("chat").hidden;
  model = found;
  $("model").textContent = document.title = model.id;
  const base = model.chat === false;
  $("skip").href = base ? "#text" : "#input";
  $("base").hidden = !base;
  $("chat").hidden = $("list").hidden = base;
  $("toggle-list").hidden = base;
  if (base) return;
  if (hidden) show();
  else showContext(tokensUsed());
}

/** Show why nothing works, above everything else; "" takes it away. */
function say(problem) {
  $("gone").hidden = !problem;
  // The same text again would be read aloud again.
  if ($("gone").textContent !== problem) $("gone").textContent = problem;
}

/** Return what to say of a failed request, and look for the server: it may have another model now. */
function failed(error) {
  connect();
  return error instanceof ServerError ? error.message : "The connection was lost.";
}

// ==== Simple Markdown, as elements ====

// A star beside a letter, digit or space on the wrong side is that of a product: 2*3*4, 2 ** 3.
const PATTERNS = [
  /(`+)(.+?)\1/,
  /(?<!\w)\*\*(\S(?:.*?\S)?)\*\*(?!\w)/,
  /(?<!\w)__(\S(?:.*?\S)?)__(?!\w)/,
  /(?<![\w*])\*([^\s*](?:.*?[^\s*])?)\*(?![\w*])/,
  /\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/,
];
const INLINE = new RegExp(PATTERNS.map(({ source }) => source).join("|"));

/** Return the nodes of a line: code, bold, italics and links to other pages. */
function inline(text) {
  const nodes = [];
  for (let found; (found = INLINE.exec(text)); text = text.slice(found.index + found[0].length)) {
    const [, , code, bold, alsoBold, italic, label, address] = found;
    nodes.push(text.slice(0, found.index));
    if (code) nodes.push(make("code", {}, code));
    else if (bold ?? alsoBold) nodes.push(make("strong", {}, ...inline(bold ?? alsoBold)));
    else if (italic) nodes.push(make("em", {}, ...inline(italic)));
    else nodes.push(make("a", { href: address, target: "_blank", rel: "noreferrer" }, label));
  }
  return [...nodes, text];
}

/** Return a block of code with a button that copies it. */
function codeBlock(code) {
  const copy = copyButton("Copy code", () => code);
  return make("div", { className: "code" }, make("pre", { tabIndex: 0 }, make("code", {}, code)), copy);
}

/** Return the elements of a text: paragraphs, headings, lists, quotations and code. */
function markdown(text) {
  const lines = text.split("\n");
  const blocks = [];
  while (lines.length) {
    const line = lines.shift();
    const fence = /^\s*(```+|~~~+)/.exec(line);
    const heading = /^(#{1,6})\s+(.*)/.exec(line);
    if (fence) {
      const end = lines.findIndex((other) => other.trim() === fence[1]);
      const code = lines.splice(0, end < 0 ? lines.length : end);
      lines.shift();
      blocks.push(codeBlock(code.join("\n")));
    } else if (heading) {
      const level = Math.min(5, 2 + heading[1].length);
      blocks.push(make(`h${level}`, {}, ...inline(heading[2])));
    } else if (line.trim()) {
      blocks.push(paragraph(line, lines));
    }
  }
  return blocks;
}

/** Return the list, quotation or paragraph that begins with a line, and take its other lines. */
function paragraph(line, lines) {
  for (const [pattern, tag, item] of [
    [/^\s*[-*+]\s+/, "ul", "li"],
    [/^\s*\d+[.)]\s+/, "ol", "li"],
    [/^\s*>\s?/, "blockquote", "p"],
  ]) {
    if (!pattern.test(line)) continue;
    const items = [line];
    while (pattern.test(lines[0] ?? "")) items.push(lines.shift());
    const children = items.map((text) => make(item, {}, ...inline(text.replace(pattern, ""))));
    const list = make(tag, {}, ...children);
    if (tag === "ol") list.start = parseInt(line, 10);
    return list;
  }
  const nodes = inline(line);
  while (lines[0]?.trim() && !/^\s*(```|~~~|#{1,6}\s|[-*+]\s|\d+[.)]\s|>)/.test(lines[0])) {
    nodes.push(make("br"), ...inline(lines.shift()));
  }
  return make("p", {}, ...nodes);
}

// ==== The conversation ====

/** Return a button that copies a text, and says so. */
function copyButton(label, text) {
  const button = make("button", { type: "button" }, "Copy");
  button.setAttribute("aria-label", label);
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed"; // by the browser, where the address is not this machine's
    }
    tell(button.textContent); // the button's label stays the same
    setTimeout(() => (button.textContent = "Copy"), 1500);
  };
  return button;
}

/** Return a message's element; `index` is its place in the conversation. */
function article(message, index) {
  const mine = message.role === "user";
  const button = make("button", { type: "button" }, mine ? "Edit" : "Regenerate");
  button.onclick = () => (mine ? edit(index) : regenerate(index));
  const element = make(
    "article",
    { className: message.role },
    make("h2", {}, mine ? "You" : "Answer"),
    make("div", { className: "content" }, ...(mine ? [message.content] : markdown(message.content))),
    make("footer", {}, copyButton("Copy message", () => message.content), button),
  );
  conclude(element, message);
  return element;
}

/** Show what has become of a message: its error and its note. */
function conclude(element, message) {
  const footer = element.querySelector("footer");
  if (message.error) footer.before(make("p", { className: "error" }, message.error));
  if (message.note) footer.append(make("span", {}, message.note));
}

/** Replace the children that differ; the others keep what is selected or focused in them. */
function update(element, children) {
  for (const [place, child] of children.entries()) {
    const old = element.children[place];
    if (!old) element.append(child);
    else if (!old.isEqualNode(child)) old.replaceWith(child);
  }
  while (element.children.length > children.length) element.lastElementChild.remove();
}

/** Change what a box shows; whoever is at its end stays there, and whoever reads above stays too. */
function follow(box, change) {
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 80;
  change();
  if (atEnd) box.scrollTop = box.scrollHeight;
}

/** Show the list of conversations. */
function showConversations() {
  const items = conversations.map(({ id, title }) => {
    const open = make("button", { type: "button", className: "open" }, title);
    if (id === current.id) open.setAttribute("aria-current", "true");
    open.onclick = () => choose(conversations.find((one) => one.id === id)); // as it is by then
    const remove = make("button", { type: "button" }, "×");
    remove.setAttribute("aria-label", `Delete ${title}`);
    remove.onclick = () => forget(id, title);
    const item = make("li", {}, open, remove);
    item.dataset.id = id;
    return item;
  });
  update($("conversations"), items);
}

/** Show the messages from a place on, up to one that is edited. A focus stays at its message. */
function showMessages(from) {
  const box = $("messages");
  const articles = [...box.children];
  const focused = articles.findIndex((element) => element.contains(document.activeElement));
  for (const element of articles.slice(from)) element.remove();
  const messages = current.messages.slice(from, editing?.place);
  box.append(...messages.map((message, place) => article(message, from + place)));
  const button = focused >= from && box.children[focused]?.querySelector("footer button:last-of-type");
  if (button) button.focus({ preventScroll: true });
  showContext(tokensUsed());
}

/** Show the current conversation, at its end. */
function show() {
  showConversations();
  showMessages(0);
  scrollToEnd();
}

function scrollToEnd() {
  $("messages").scrollTop = $("messages").scrollHeight;
}

/** Return how many tokens the current conversation takes, as far as the server has said. */
function tokensUsed() {
  return current.messages.findLast(({ used }) => used)?.used;
}

/** Show how much of the context a conversation takes. */
function showContext(used) {
  const all = model?.context_length;
  $("status").textContent = used && all ? `context ${number(used)} of ${number(all)}` : "";
}

/** Open a conversation. */
function choose(conversation) {
  showList(false);
  if (conversation.id !== current.id) {
    halt();
    leaveEdit();
    current = conversation;
    show();
  }
  $("input").focus();
}

function forget(id, title) {
  if (!confirm(`Delete “${title}”?`)) return;
  unkept.delete(id);
  drop("localStorage", KEPT + id);
  conversations = allConversations();
  showConversations();
  if (id === current.id) choose(conversations[0] ?? begin());
  else $("new-chat").focus();
}

/** Put a text into the input. */
function put(text) {
  $("input").value = text;
  grow();
}

let editing = null; // {place, draft}: which message is written anew; what the input held before

/** Put one of the user's messages back into the input. It and everything after it stay until the new one is sent. */
function edit(place) {
  halt();
  editing = { place, draft: editing?.draft ?? $("input").value };
  $("editing").hidden = false;
  tell($("editing").firstChild.textContent);
  put(current.messages[place].content);
  showMessages(place);
  $("input").focus();
}

/** Put what the input held before an edit back into it; returns the place of the message. */
function leaveEdit() {
  if (!editing) return current.messages.length;
  const { place, draft } = editing;
  editing = null;
  $("editing").hidden = true;
  put(draft);
  return place;
}

function cancelEdit() {
  showMessages(leaveEdit());
  scrollToEnd();
  $("input").focus();
}

function regenerate(place) {
  const last = place + 1 === current.messages.length;
  if (!last && !confirm("A new answer also replaces everything after it. Continue?")) return;
  halt();
  leaveEdit();
  const old = current.messages.splice(place);
  answer(place, (!old[0].content && replaced.get(old[0])) || old);
}

/** Send what is in the input. */
function send() {
  const content = $("input").value.trim();
  if (!content || running) return;
  if (!editing) put("");
  const place = leaveEdit();
  current.messages.length = place;
  if (!place) current.title = content.slice(0, TITLE_LENGTH);
  current.messages.push({ role: "user", content });
  answer(place);
}

let running = null; // the AbortController of the request under way

/** Stop the answer or continuation under way. */
function halt() {
  running?.abort();
  busy(null);
}

/** Show whether something is being written. A focus stays where it is, on the button of that place. */
function busy(controller) {
  running = controller;
  for (const [go, stop] of [["send", "stop"], ["continue", "stop-text"]]) {
    const [shown, other] = controller ? [stop, go] : [go, stop];
    const focused = document.activeElement === $(other);
    $(shown).hidden = false;
    $(other).hidden = true;
    if (focused) $(shown).focus();
  }
}

/** Return the turns of messages, each with its answer but the last one. Failed turns are left out. */
function turnsOf(messages) {
  const turns = [];
  let turn = [];
  for (const message of messages) {
    turn.push(message);
    if (message.role === "user") continue;
    if (message.content) turns.push(turn);
    turn = [];
  }
  return [...turns, turn];
}

/** Return how many of the oldest turns to drop so that the last one and an answer fit the context. */
function outgrown(turns) {
  const length = (some) => some.flat().reduce((sum, { content }) => sum + content.length, 0);
  const latest = turns.at(-2)?.at(-1);
  let dropped = Math.min(latest?.dropped ?? 0, turns.length - 1); // what was dropped before stays so
  const perLetter = latest?.used / length(turns.slice(dropped, -1)); // NaN if that answer was stopped
  const room = Math.min(settings.max_tokens ?? ANSWERED, model.context_length / 2);
  while (
    dropped < turns.length - 1 &&
    perLetter * length(turns.slice(dropped)) + room > model.context_length
  ) {
    dropped += 1;
  }
  return dropped;
}

/** Yield the parts of the answer to turns; the oldest are dropped while all are too long for the context. */
async function* answerTo(turns, message, signal) {
  const system = settings.system ? [{ role: "system", content: settings.system }] : [];
  for (let dropped = outgrown(turns); ; dropped += 1) {
    const said = turns.slice(dropped).flat().map(({ role, content }) => ({ role, content }));
    const body = { model: model.id, messages: [...system, ...said] };
    try {
      for await (const part of stream("/v1/chat/completions", body, signal)) {
        message.dropped = dropped;
        yield part;
      }
      return;
    } catch (error) {
      if (error.code !== "context_length_exceeded" || dropped >= turns.length - 1) throw error;
    }
  }
}

const replaced = new WeakMap(); // by an answer: the messages that were in its place

/** Ask for the answer to the current conversation, and show it as it comes.
 *
 * `from` is the place of the first message to show anew; `old` are the messages that the answer replaces.
 */
async function answer(from, old = []) {
  const conversation = current;
  const turns = turnsOf(conversation.messages);
  const message = { role: "assistant", content: "" };
  conversation.messages.push(message);
  replaced.set(message, old);
  showMessages(from);
  scrollToEnd();
  const element = $("messages").lastElementChild;
  const content = element.querySelector(".content");
  content.classList.add("writing");
  message.note = UNFINISHED;
  if (!old.length) keepConversation(conversation); // else what is kept stays until there is a new answer
  const controller = new AbortController();
  busy(controller);
  await read(answerTo(turns, message, controller.signal), message, () =>
    changeArticle(element, () => update(content, markdown(message.content))),
  );
  if (running === controller) busy(null);
  const restored = restore(conversation, message, old);
  const deleted = !conversations.some(({ id }) => id === conversation.id);
  if (!deleted) keepConversation(conversation);
  changeArticle(element, () => {
    content.classList.remove("writing");
    if (restored) showMessages(from);
    else conclude(element, message);
    showContext(tokensUsed());
    tell([message.content, message.error].filter(Boolean).join("\n"));
  });
}

/** Have a screen reader read a text. The new element makes it read the same text again, too. */
function tell(text) {
  $("said").replaceChildren(make("span", {}, text));
}

/** Change an article, unless something else is shown in its place by now. */
function changeArticle(element, change) {
  if (element.isConnected) follow($("messages"), change);
}

/** Put back the old messages that an answer without any text was to replace; return whether there are any. */
function restore(conversation, message, old) {
  const place = conversation.messages.indexOf(message);
  if (message.content || place < 0 || !old.length) return false;
  const [first, ...others] = old;
  const answered = first.content ? Object.assign(first, { error: message.error }) : message;
  conversation.messages.splice(place, 1, answered, ...others);
  return true;
}

/** Keep, as the page is left, which conversation is open, and what has come of an answer or a text. */
function leave() {
  keep("sessionStorage", OPEN, current.id);
  keepText(before);
  const latest = current.messages.at(-1);
  if (running && latest?.note === UNFINISHED && latest.content) keepConversation(current);
}

/** Read a stream into a message, calling `changed` at most once for each frame. */
async function read(parts, message, changed) {
  const notes = [];
  let begun = 0;
  let drawn = 0;
  const draw = () => {
    drawn = 0;
    changed();
  };
  try {
    for await (const { text, usage, reason } of parts) {
      if (text) {
        begun ||= performance.now();
        message.content += text;
        drawn ||= requestAnimationFrame(draw);
      }
      if (reason === "length") notes.push("cut at the longest length");
      if (usage) {
        message.used = usage.total_tokens;
        notes.unshift(...speed(usage.completion_tokens, begun));
      }
    }
  } catch (error) {
    if (error.name === "AbortError") notes.push("stopped");
    else message.error = failed(error);
  }
  if (message.dropped) notes.push(`the oldest turns (${message.dropped}) no longer fit the context`);
  message.note = notes.join(", ");
  cancelAnimationFrame(drawn);
  changed();
}

/** Return how many tokens came since a time, and how fast, if that was long enough to tell. */
function speed(tokens, begun) {
  const seconds = (performance.now() - begun) / 1000;
  const rate = tokens / seconds;
  const told = begun && seconds > 0.1 ? [`${number(rate, rate < 10 ? 1 : 0)} tokens/s`] : [];
  return [`${number(tokens)} tokens`, ...told];
}

// ==== A base model ====

let before = null; // the text without its last continuation, as long as that is the last change

/** Note what the text was without its last continuation, and keep both for a reload. */
function keepText(without) {
  before = without;
  $("undo-text").disabled = before === null;
  keep("sessionStorage", TEXT, { text: $("text").value, before });
}

function recallText() {
  const kept = recall("sessionStorage", TEXT, {});
  $("text").value = kept.text ?? "";
  keepText(kept.before ?? null);
}

async function continueText() {
  const box = $("text");
  const start = box.value;
  const message = { content: "" };
  const controller = new AbortController();
  busy(controller);
  showOutcome(message);
  box.readOnly = true;
  box.scrollTop = box.scrollHeight;
  const body = { model: model.id, prompt: start, max_tokens: CONTINUED };
  await read(stream("/v1/completions", body, controller.signal), message, () => {
    if (!message.content) return;
    follow(box, () => (box.value = start + message.content));
    before = start;
  });
  box.readOnly = false;
  keepText(before);
  if (running === controller) busy(null);
  showOutcome(message);
  showContext(message.used);
  tell(message.content);
}

/** Show what has become of a continuation: its error or its note. */
function showOutcome({ error, note }) {
  $("outcome").className = error ? "error" : "";
  $("outcome").textContent = error ?? note ?? "";
}

// ==== What is pressed ====

/** Make the input as high as its text. */
function grow() {
  const input = $("input");
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight + 2}px`;
}

function showList(shown) {
  $("list").classList.toggle("shown", shown);
  $("toggle-list").setAttribute("aria-expanded", String(shown));
}

function openSettings() {
  const form = $("settings").querySelector("form");
  $("models").hidden = names.length < 2;
  form.elements.model.replaceChildren(...names.map((name) => make("option", {}, name)));
  if (model) form.elements.model.value = model.id;
  form.elements.system.value = settings.system ?? "";
  form.elements.key.value = recall("sessionStorage", KEY, "");
  for (const name of NUMBERS) form.elements[name].value = settings[name] ?? "";
  $("settings").returnValue = "cancel";
  $("settings").showModal();
}

function closeSettings() {
  if ($("settings").returnValue !== "save") return;
  const { elements } = $("settings").querySelector("form");
  const chosen = names.length > 1 ? elements.model.value : settings.model;
  settings = { system: elements.system.value.trim(), model: chosen };
  for (const name of NUMBERS) {
    if (elements[name].value !== "") settings[name] = elements[name].valueAsNumber;
  }
  keep("localStorage", SETTINGS, settings);
  keep("sessionStorage", KEY, elements.key.value);
  connect(); // the key or the model may be another one
}

/** Return whether a key belongs to an input method; Safari tells of the one that ends it by 229 alone. */
function composing(event) {
  return event.isComposing || event.keyCode === 229;
}

$("composer").onsubmit = (event) => {
  event.preventDefault();
  send();
};
$("input").oninput = grow;
$("input").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || composing(event)) return;
  event.preventDefault();
  send();
};
document.onkeydown = (event) => {
  if (event.key !== "Escape" || composing(event) || $("settings").open) return;
  if (running) halt();
  else if (editing) cancelEdit();
  else showList(false);
};
$("stop").onclick = $("stop-text").onclick = halt;
$("new-chat").onclick = () => choose(begin());
$("toggle-list").onclick = () => showList(!$("list").classList.contains("shown"));
$("cancel-edit").onclick = cancelEdit;
$("open-settings").onclick = openSettings;
$("settings").onclose = closeSettings;
$("continuer").onsubmit = (event) => {
  event.preventDefault();
  if (!$("text").readOnly) continueText();
};
$("text").oninput = () => keepText(null);
$("undo-text").onclick = () => {
  $("text").value = before;
  keepText(null);
  $("text").focus(); // the button can no longer have it
};
window.onstorage = heedOtherTab;
window.onpagehide = leave;

recallText();
connect();
