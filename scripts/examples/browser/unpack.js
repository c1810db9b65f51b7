/**
 * Rewrites products with 8-bit and 4-bit weights of an ONNX file, so that they become float32 once, when the model is
 * made ready. onnxruntime's wasm has no code of its own for `MatMulNBits`: it unpacks all weights again for each token,
 * which takes 15 times as long as the product itself. The bytes stay; only what they are called changes:
 * MatMulNBits(x, codes, scales, zeros) becomes MatMul(x, Transpose(DequantizeLinear(codes, scales, zeros))).
 *
 * Field numbers are those of onnx.proto.
 */

const MODEL = { irVersion: 1, graph: 7, opset: 8 };
const GRAPH = { node: 1, initializer: 5 };
const NODE = { input: 1, output: 2, name: 3, type: 4, attribute: 5 };
const ATTRIBUTE = { name: 1, int: 3, ints: 8, type: 20 };
const ATTRIBUTE_TYPE = { int: 2, ints: 7 };
const TENSOR = { dims: 1, type: 2, name: 8, bytes: 9 };
const UINT8 = 2;
const UINT4 = 21;
/** The first versions whose DequantizeLinear knows blocks and 4 bits; other operators of a model stay as they were. */
const OPSET = 21;
const IR_VERSION = 10;
/** Above this the weights stay packed: slow is better than out of memory. */
const LARGEST_FLOAT32_BYTES = 1.2e9;

const utf8 = new TextDecoder();

/** The file with its products rewritten, or as it is where there is nothing to rewrite, or too much. */
export function unpack(file) {
  const model = read(file);
  const graph = read(model.find(({ number }) => number === MODEL.graph).value);
  const nodes = graph.filter(({ number }) => number === GRAPH.node).map((field) => describe(field));
  const tensors = new Map(
    graph.filter(({ number }) => number === GRAPH.initializer).map(({ value }) => [textOf(value, TENSOR.name), value]),
  );
  const products = nodes.filter((node) => canUnpack(node, tensors));
  const size = products.reduce((sum, { N, K }) => sum + N * K * 4, 0);
  if (products.length === 0 || size > LARGEST_FLOAT32_BYTES) return file;
  const chosen = new Set(products.map(({ field }) => field));
  const stillUsed = new Set(nodes.filter(({ field }) => !chosen.has(field)).flatMap(({ inputs }) => inputs));
  const packed = new Set(products.flatMap(({ inputs }) => inputs.slice(1)));
  const isIdle = (name) => packed.has(name) && !stillUsed.has(name);
  const kept = graph.filter(({ number, value }) => {
    if (number === GRAPH.node) return false;
    return number !== GRAPH.initializer || !isIdle(textOf(value, TENSOR.name));
  });
  const written = nodes.flatMap((node) => (chosen.has(node.field) ? rewrite(node, tensors) : [node.field.whole]));
  const rest = model.filter(({ number }) => number !== MODEL.graph).flatMap(raise);
  return join([...rest, ...block(MODEL.graph, [...written, ...kept.map(({ whole }) => whole)])]);
}

function describe(field) {
  const parts = read(field.value);
  const texts = (number) => parts.filter((part) => part.number === number).map(({ value }) => utf8.decode(value));
  const attributes = parts.filter(({ number }) => number === NODE.attribute).map(({ value }) => read(value));
  const ints = attributes.map((attribute) => [
    utf8.decode(valueOf(attribute, ATTRIBUTE.name)),
    valueOf(attribute, ATTRIBUTE.int),
  ]);
  const { N, K, bits, block_size: blockSize } = Object.fromEntries(ints);
  const [type] = texts(NODE.type);
  return { field, type, inputs: texts(NODE.input), outputs: texts(NODE.output), N, K, bits, blockSize };
}

/** Whether its weights lie in the file in the order that DequantizeLinear reads, with no gap at the end of a row. */
function canUnpack({ type, inputs, K, bits, blockSize }, tensors) {
  if (type !== "MatMulNBits" || inputs.length !== 4 || ![4, 8].includes(bits)) return false;
  const inFile = inputs.slice(1).every((name) => tensors.has(name) && valueOf(read(tensors.get(name)), TENSOR.bytes));
  return inFile && K % ((blockSize * 8) / bits) === 0;
}

function rewrite({ inputs: [x, ...weights], outputs: [y], N, K, bits, blockSize }, tensors) {
  const [codes, scales, zeros] = weights.map((name) => `${name}/${y}`);
  const [codeBytes, scaleBytes, zeroBytes] = weights.map((name) => valueOf(read(tensors.get(name)), TENSOR.bytes));
  const type = bits === 4 ? UINT4 : UINT8;
  const blocks = K / blockSize;
  const attributes = [int("axis", 1), int("block_size", blockSize)];
  return [
    ...tensor(codes, type, [N, K], codeBytes),
    ...tensor(scales, 1, [N, blocks], scaleBytes),
    ...tensor(zeros, type, [N, blocks], zeroBytes),
    ...node("DequantizeLinear", [codes, scales, zeros], `${y}/rows`, attributes),
    ...node("Transpose", [`${y}/rows`], `${y}/columns`, [ints("perm", [1, 0])]),
    ...node("MatMul", [x, `${y}/columns`], y, []),
  ];
}

/** A field of the model, its versions no lower than what is written needs. */
function raise(field) {
  if (field.number === MODEL.irVersion) return number(MODEL.irVersion, Math.max(field.value, IR_VERSION));
  if (field.number !== MODEL.opset) return [field.whole];
  const set = read(field.value);
  if (valueOf(set, 1)?.length) return [field.whole]; // another domain's
  return block(MODEL.opset, number(2, Math.max(valueOf(set, 2), OPSET)));
}

// Reading and writing protobuf.

/** The fields of a message: number, value (an integer, or bytes), and the bytes of the whole field. */
function read(bytes) {
  const found = [];
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const from = at;
    const tag = varint();
    let value;
    if (tag % 8 === 0) value = varint();
    else {
      const size = { 1: 8, 2: undefined, 5: 4 }[tag % 8] ?? varint();
      value = bytes.subarray(at, (at += size));
    }
    found.push({ number: Math.floor(tag / 8), value, whole: bytes.subarray(from, at) });
  }
  return found;
}

function valueOf(fields, number) {
  return fields.find((field) => field.number === number)?.value;
}

function textOf(message, number) {
  return utf8.decode(valueOf(read(message), number));
}

function varint(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) + 128);
  return Uint8Array.from([...bytes, value]);
}

function number(field, value) {
  return [varint(field * 8), varint(value)];
}

function text(field, value) {
  return block(field, [new TextEncoder().encode(value)]);
}

function block(field, parts) {
  return [varint(field * 8 + 2), varint(parts.reduce((sum, part) => sum + part.length, 0)), ...parts];
}

function tensor(name, type, dims, bytes) {
  const shape = dims.flatMap((dim) => number(TENSOR.dims, dim));
  const parts = [...shape, ...number(TENSOR.type, type), ...text(TENSOR.name, name), ...block(TENSOR.bytes, [bytes])];
  return block(GRAPH.initializer, parts);
}

function node(type, inputs, output, attributes) {
  const names = inputs.flatMap((name) => text(NODE.input, name));
  const rest = [...text(NODE.output, output), ...text(NODE.name, `${output}/${type}`), ...text(NODE.type, type)];
  return block(GRAPH.node, [...names, ...rest, ...attributes.flatMap((parts) => block(NODE.attribute, parts))]);
}

function int(name, value) {
  const type = number(ATTRIBUTE.type, ATTRIBUTE_TYPE.int);
  return [...text(ATTRIBUTE.name, name), ...number(ATTRIBUTE.int, value), ...type];
}

function ints(name, values) {
  const parts = values.flatMap((value) => number(ATTRIBUTE.ints, value));
  return [...text(ATTRIBUTE.name, name), ...parts, ...number(ATTRIBUTE.type, ATTRIBUTE_TYPE.ints)];
}

function join(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
