/** Loads a model and writes with it, beside the page, so that the page stays awake. */

import { fetchTexts } from "./files.js";
import { loadModel } from "./model.js";
import { Text } from "./text.js";

const PAUSE_MILLISECONDS = 50;

let model;
let text;
let stopped = false;
let lastPause = 0;

const TASKS = { load, write, stop: () => (stopped = true) };

self.onmessage = async ({ data: { task, ...wishes } }) => {
  try {
    await TASKS[task](wishes);
  } catch (error) {
    console.error(error);
    tell("failed", { message: explain(error) });
  }
};

async function load({ folder, backend, file, threads }) {
  const began = performance.now();
  const url = new URL(`${folder.replace(/\/+$/, "")}/`, self.location.href);
  const files = await fetchTexts(url);
  text = new Text(files);
  const layers = files.config.num_hidden_layers ?? files.config.n_layer;
  const onProgress = (name, loaded, total) => tell("progress", { name, loaded, total });
  model = await loadModel(url, layers, { backend, file, threads, onProgress });
  tell("ready", { ...model.about, seconds: (performance.now() - began) / 1000 });
}

async function write({ prompt, chat, tokens, temperature, seed }) {
  stopped = false;
  const promptIds = text.promptIds(prompt, chat);
  const room = Math.min(tokens, text.maxPositions - promptIds.length);
  if (room <= 0) {
    throw new Error(`The prompt has ${promptIds.length} tokens, and the model reads ${text.maxPositions} at most.`);
  }
  tell("reading", { promptIds });
  const random = randomNumbers(seed);
  const ids = [];
  let logits = await model.start(promptIds, pause);
  const began = performance.now();
  let why = "length";
  while (ids.length < room) {
    await pause();
    const id = pick(logits, temperature, random);
    if (stopped) why = "stop";
    else if (text.endTokenIds.includes(id)) why = "end";
    if (why !== "length") break;
    ids.push(id);
    // The first token came with the prompt, so that the time is that of the others.
    const speed = ids.length > 1 ? ((ids.length - 1) * 1000) / (performance.now() - began) : 0;
    tell("token", { ids, text: text.decode(ids), speed });
    if (ids.length < room) logits = await model.step(id);
  }
  tell("done", { why, text: text.decode(ids) });
}

/** Let messages in, such as a wish to stop; not at each token, since a timer takes 4 ms at least. */
async function pause() {
  if (performance.now() - lastPause < PAUSE_MILLISECONDS) return;
  await new Promise((resolve) => setTimeout(resolve));
  lastPause = performance.now();
}

/** The likeliest token, or one by chance where the temperature isn't 0. */
function pick(logits, temperature, random) {
  const best = logits.reduce((best, score, id) => (score > logits[best] ? id : best), 0);
  if (temperature <= 0) return best;
  const weights = logits.map((score) => Math.exp((score - logits[best]) / temperature));
  let rest = random() * weights.reduce((sum, weight) => sum + weight, 0);
  const chosen = weights.findIndex((weight) => (rest -= weight) < 0);
  return chosen < 0 ? best : chosen;
}

/** Numbers from 0 to 1 that a seed repeats (mulberry32). */
function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** An error in words that say what to do. */
function explain(error) {
  const message = error?.message ?? String(error);
  if (/bad_alloc|out of memory|allocat/i.test(message) || error instanceof RangeError) {
    return `The model doesn't fit in the memory that the browser gives a page. Take a smaller one. (${message})`;
  }
  if (/SIMD|WebAssembly/.test(message)) return `This browser is too old: it can't run the model. (${message})`;
  return message;
}

function tell(what, about) {
  self.postMessage({ what, ...about });
}
