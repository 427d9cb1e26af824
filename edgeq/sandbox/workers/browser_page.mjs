// Runs models with onnxruntime-web. Asks browser_worker.py for one task after another and sends back what
// became of it; after an error the page is loaded anew, as an aborted WebAssembly module is of no more use.

const ort = await import(`./ort/${new URLSearchParams(location.search).get("build")}`);
const gpu = new URLSearchParams(location.search).get("provider") === "webgpu";

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: globalThis.Float16Array ?? Uint16Array,
  int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, int32: Int32Array,
  uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array, bool: Uint8Array,
};
const GPU_OPTIONS = ["preferredLayout", "validationMode", "forceCpuNodeNames", "storageBufferCacheMode",
  "uniformBufferCacheMode", "queryResolveBufferCacheMode", "defaultBufferCacheMode"];

// What ONNX Runtime logs while it opens a session: which provider takes which node, and why it gives up.
let lines = null;
for (const level of ["log", "info", "warn", "error", "debug"]) {
  const print = console[level].bind(console);
  console[level] = (...words) => (lines === null ? print(...words) : lines.push(words.join(" ")));
}

async function bytes(name) {
  const answer = await fetch(`files/${name}`);
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

function options(task) {
  for (const key of Object.keys(task.options)) {
    if (!gpu || !GPU_OPTIONS.includes(key)) throw new Error(`onnxruntime-web takes no provider option ${key}`);
  }
  return {
    executionProviders: gpu ? [{ name: "webgpu", ...task.options }] : ["wasm"],
    extra: { ...task.session },
    logSeverityLevel: 0,
  };
}

// Either `All nodes placed on [CPUExecutionProvider]. Number of nodes: 7`, or for each provider
// ` Node(s) placed on [CPUExecutionProvider]. Number of nodes: 2` and then `  QLinearConv (conv)`.
function placements(log) {
  const found = { all: null, assigned: {} };
  let provider = null;
  for (const line of log) {
    const text = line.replace(/\x1b\[[0-9;]*m/g, "").replace(/^.*?\] /, "");
    const node = text.match(/^\s*\w+ \((.*)\)\s*$/);
    found.all ??= text.match(/All nodes placed on \[(\w+)\]/)?.[1] ?? null;
    if (provider && node) found.assigned[node[1]] = provider;
    else provider = text.match(/Node\(s\) placed on \[(\w+)\]/)?.[1] ?? null;
  }
  return found;
}

async function perform(task) {
  ort.env.wasm.numThreads = task.threads;
  const settings = options(task);
  const data = await Promise.all(task.external.map(async ({ path, file }) => ({ path, data: await bytes(file) })));
  if (data.length) settings.externalData = data;
  const model = await bytes(task.model);
  const session = await ort.InferenceSession.create(model, settings);
  const placed = placements(lines);
  lines = [];
  const outputs = [];
  const parts = [];
  for (const feed of task.feeds) {
    const inputs = {};
    for (const { name, type, dims, file } of feed) {
      const raw = await bytes(file);
      const array = type === "bool" || ARRAYS[type] === Uint8Array ? raw : new ARRAYS[type](raw.buffer);
      inputs[name] = new ort.Tensor(type, array, dims);
    }
    const results = await session.run(inputs);
    outputs.push(session.outputNames.map((name) => {
      const { type, dims, data: values } = results[name];
      parts.push(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
      return { name, type, dims, bytes: values.byteLength };
    }));
  }
  await session.release();
  return [{ status: "ran", ...placed, names: session.outputNames, outputs }, parts];
}

async function send(answer, parts) {
  const head = new TextEncoder().encode(JSON.stringify(answer) + "\n");
  await fetch("answer", { method: "POST", body: new Blob([head, ...parts]) });
}

for (;;) {
  const answer = await fetch("task");
  if (answer.status === 204) continue;
  const task = await answer.json();
  lines = [];
  try {
    await send(...await perform(task));
    lines = null;
  } catch (error) {
    const words = lines.filter((line) => /\[[EF]:onnxruntime/.test(line)).slice(-3);
    await send({ status: "refused", reason: [error?.message ?? String(error), ...words].join("\n") }, []);
    location.reload();
    break;
  }
}
