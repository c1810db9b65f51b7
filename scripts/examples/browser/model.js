/** The graph of an export's folder: tokens in, logits out, earlier keys and values kept. */

import { fetchBytes, isThere } from "./files.js";
import { unpack } from "./unpack.js";

const RUNTIMES = {
  wasm: "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs",
  webgpu: "./node_modules/onnxruntime-web/dist/ort.webgpu.min.mjs",
};
/** As llmtune and optimum name them: float32, 8 bits, 4 bits. */
const GRAPHS = ["onnx/model.onnx", "onnx/model_quantized.onnx", "onnx/model_q4.onnx"];
/** Tokens of a prompt that are read at once: their logits take memory, and Stop waits for them. */
const CHUNK = 256;

/**
 * Read a graph and make it ready.
 *
 * @param {URL} folder the export, ending with a slash.
 * @param {number} layers how many layers the model has.
 * @param {object} options `backend`: wasm or webgpu; `file`: path in the folder, empty to look for it; `threads`: 0 for
 *     onnxruntime's own number; `onProgress(name, loaded, total)`.
 */
export async function loadModel(folder, layers, { backend, file, threads, onProgress }) {
  if (backend === "webgpu" && !(await navigator.gpu?.requestAdapter())) {
    throw new Error("This browser has no WebGPU here. Take wasm.");
  }
  const ort = await import(RUNTIMES[backend]);
  ort.env.wasm.numThreads = self.crossOriginIsolated ? threads : 1;
  const path = file || (await first(folder, GRAPHS));
  const bytes = await fetchBytes(new URL(path, folder), onProgress);
  const session = await ort.InferenceSession.create(backend === "wasm" ? unpack(bytes) : bytes, {
    executionProviders: [backend],
    logSeverityLevel: 3, // errors; it would warn that shapes are worked out beside the GPU, which is as it should be
    extra: { session: { disable_quant_qdq: "1" } }, // so that what was unpacked becomes float32 here, once
    externalData: await fetchWeights(folder, path, onProgress),
    ...(backend === "webgpu" && { preferredOutputLocation: staysOnGpu(layers) }),
  });
  return new Model(ort, session, { file: path, backend, threads: ort.env.wasm.numThreads });
}

class Model {
  constructor(ort, session, about) {
    this.ort = ort;
    this.session = session;
    /** `file`, `backend` and `threads` that it runs with. */
    this.about = about;
    this.past = {};
  }

  /** Begin a new text: logits [V] of the token after it; `pause()` is awaited between parts of a long one. */
  async start(ids, pause) {
    this.forget();
    for (const { name, type, shape } of this.session.inputMetadata) {
      if (!name.startsWith("past_key_values.")) continue;
      const dims = [1, shape[1], 0, shape[3]];
      this.past[name] = new this.ort.Tensor(type, [], dims);
    }
    let logits;
    for (let from = 0; from < ids.length; from += CHUNK) {
      if (from > 0) await pause();
      logits = await this.forward(ids.slice(from, from + CHUNK));
    }
    return logits;
  }

  /** One token further: logits [V] of the token after it. */
  step(token) {
    return this.forward([token]);
  }

  async forward(ids) {
    const total = this.length + ids.length;
    const feeds = {
      input_ids: this.row(ids),
      attention_mask: this.row(Array(total).fill(1)),
      position_ids: this.row(ids.map((_, number) => this.length + number)),
      ...this.past,
    };
    const { logits, ...present } = await this.session.run(feeds);
    this.release();
    this.past = Object.fromEntries(
      Object.entries(present).map(([name, tensor]) => [name.replace("present", "past_key_values"), tensor]),
    );
    this.length = total;
    return logits.data.subarray(-logits.dims[2]);
  }

  forget() {
    this.release();
    this.past = {};
    this.length = 0;
  }

  /** Keys and values on a GPU are ours to free. */
  release() {
    for (const tensor of Object.values(this.past)) tensor.dispose();
  }

  row(numbers) {
    return new this.ort.Tensor("int64", BigInt64Array.from(numbers, BigInt), [1, numbers.length]);
  }
}

/** The first of some files that the folder has. */
async function first(folder, paths) {
  for (const path of paths) if (await isThere(new URL(path, folder))) return path;
  throw new Error(`${folder.pathname} has none of ${paths.join(", ")}: is it a folder that llmtune exported as onnx?`);
}

/** Weights that stand in a file beside the graph, as a list for onnxruntime; only graphs near 2 GB have one. */
async function fetchWeights(folder, path, onProgress) {
  const url = new URL(`${path}_data`, folder);
  if (!(await isThere(url))) return [];
  return [{ path: url.pathname.split("/").pop(), data: await fetchBytes(url, onProgress) }];
}

/** Keys and values needn't leave the GPU between two tokens. */
function staysOnGpu(layers) {
  const numbers = Array.from({ length: layers }, (_, layer) => layer);
  return Object.fromEntries(
    numbers.flatMap((layer) => ["key", "value"].map((part) => [`present.${layer}.${part}`, "gpu-buffer"])),
  );
}
