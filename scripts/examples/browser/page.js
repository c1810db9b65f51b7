/** What a person sees and clicks; what a program reads stands in the data attributes of `#answer`. */

const UNREAD = "The page's scripts can't be read: run npm ci in its folder, or open it in a newer browser.";
const ENDINGS = { end: "", length: " · token limit reached", stop: " · stopped" };

const form = document.querySelector("form");
const fields = form.elements;
const answer = document.querySelector("#answer");
const line = document.querySelector("#line");
const bar = document.querySelector("progress");

let worker;
/** What the worker's model was asked for with, empty where it has none. */
let loadedWith = "";
let about = {};

/** What the worker tells, and what to show of it. */
const heard = {
  progress({ name, loaded, total }) {
    bar.hidden = false;
    Object.assign(bar, { value: loaded, max: total || loaded });
    const amount = total ? `${megabytes(loaded)} of ${megabytes(total)}` : megabytes(loaded);
    show("loading", loaded === total ? `Making ${name} ready` : `Loading ${name}: ${amount}`);
  },
  ready(details) {
    bar.hidden = true;
    about = details;
    loadedWith = wishes().join();
    askToWrite();
  },
  reading({ promptIds }) {
    answer.dataset.promptIds = promptIds.join(" ");
    show("writing", `Reading ${promptIds.length} tokens`);
  },
  token({ ids, text, speed }) {
    answer.dataset.ids = ids.join(" ");
    answer.dataset.tokensPerSecond = speed.toFixed(2);
    // The rest of a letter may be still to come.
    if (!text.endsWith("\ufffd")) answer.textContent = text;
    show("writing", `${ids.length} tokens · ${speed.toFixed(1)} per second · ${madeBy()}`);
  },
  done({ why, text }) {
    answer.dataset.why = why;
    answer.textContent = text;
    show("done", line.textContent + ENDINGS[why]);
  },
  failed({ message }) {
    bar.hidden = true;
    show("failed", message);
  },
};

function run() {
  answer.textContent = "";
  for (const name of Object.keys(answer.dataset)) delete answer.dataset[name];
  if (loadedWith === wishes().join()) askToWrite();
  else load();
}

function load() {
  worker?.terminate();
  loadedWith = "";
  worker = new Worker("./worker.js", { type: "module" });
  worker.onmessage = ({ data: { what, ...details } }) => heard[what](details);
  worker.onerror = () => heard.failed({ message: UNREAD });
  const [folder, backend, file, threads] = wishes();
  show("loading", `Looking into ${folder}`);
  worker.postMessage({ task: "load", folder, backend, file, threads: Number(threads) });
}

function askToWrite() {
  const { file, backend, threads, seconds } = about;
  Object.assign(answer.dataset, { file, backend, threads, loadSeconds: seconds.toFixed(2) });
  worker.postMessage({
    task: "write",
    prompt: fields.prompt.value,
    chat: fields.kind.value === "chat",
    tokens: Number(fields.tokens.value),
    temperature: Number(fields.temperature.value),
    seed: Number(fields.seed.value),
  });
}

/** What the fields say of the model. */
function wishes() {
  return ["model", "backend", "file", "threads"].map((name) => fields[name].value.trim());
}

function madeBy() {
  return `${about.file} · ${about.backend}, ${about.threads === 1 ? "1 thread" : `${about.threads} threads`}`;
}

/** Put a sentence under the answer, and let Write and Stop fit the state: loading, writing, done or failed. */
function show(state, sentence) {
  const busy = state === "loading" || state === "writing";
  answer.dataset.state = state;
  line.textContent = sentence;
  fields.write.disabled = busy;
  fields.stop.disabled = !busy;
}

function stop() {
  if (answer.dataset.state === "writing") return worker.postMessage({ task: "stop" });
  worker.terminate();
  bar.hidden = true;
  show("done", "Stopped while the model was loading.");
}

function megabytes(bytes) {
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
fields.stop.addEventListener("click", stop);

line.textContent = "";
// The address may hold any field by its name, and run=1 to begin at once.
const address = new URLSearchParams(location.search);
for (const [name, value] of address) if (fields[name]) fields[name].value = value;
if (address.get("run") === "1") run();
