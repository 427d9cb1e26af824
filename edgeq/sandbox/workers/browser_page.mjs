// Runs models with onnxruntime-web, and times them. Asks browser_worker.py for one task after another and sends
// back what became of it; after an error the page is loaded anew, as an aborted WebAssembly module is of no more use.

const ort = await import(`./ort/${new URLSearchParams(location.search).get("build")}`);
const gpu = new URLSearchParams(location.search).get("provider") === "webgpu";

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, float16: globalThis.Float16Array ?? Uint16Array,
  int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, int32: Int32Array,
  uint32: Uint32Array, int64: BigInt64Array, uint64: BigUint64Array, bool: Uint8Array,
};
const GPU_OPTIONS = ["preferredLayout", "validationMode", "forceCpuNodeNames", "storageBufferCacheMode",
  "uniformBufferCacheMode", "queryResolveBufferCacheMode", "defaultBufferCacheMode"];

// What ONNX Runtime logs while it opens a session: which provider takes which node, and why it gives up. A profile
// is printed, too.
const VERBOSE = { logSeverityLevel: 0 };
const QUIET = { logSeverityLevel: 3 };  // for sessions that are timed
let lines = null;
for (const level of ["log", "info", "warn", "error", "debug"]) {
  const print = console[level].bind(console);
  console[level] = (...words) => (lines === null ? print(...words) : lines.push(words.join(" ")));
}

const MEMORY_MS = 2000;
const now = () => performance.now();

async function bytes(name) {
  const answer = await fetch(`files/${name}`);
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

function options(entry) {
  for (const key of Object.keys(entry.options)) {
    if (!gpu || !GPU_OPTIONS.includes(key)) throw new Error(`onnxruntime-web takes no provider option ${key}`);
  }
  return {
    executionProviders: gpu ? [{ name: "webgpu", ...entry.options }] : ["wasm"],
    extra: { ...entry.session },
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

// The session, how long it took to make (not to fetch the file), and where its nodes went, if it is verbose.
async function open(entry, more) {
  const settings = { ...options(entry), ...more };
  const data = await Promise.all(entry.external.map(async ({ path, file }) => ({ path, data: await bytes(file) })));
  if (data.length) settings.externalData = data;
  const model = await bytes(entry.model);
  lines = [];
  const start = now();
  const session = await ort.InferenceSession.create(model, settings);
  const load_ms = now() - start;
  return { session, load_ms, ...placements(lines) };
}

async function tensors(feed) {
  const inputs = {};
  for (const { name, type, dims, file } of feed) {
    const raw = await bytes(file);
    const array = type === "bool" || ARRAYS[type] === Uint8Array ? raw : new ARRAYS[type](raw.buffer);
    inputs[name] = new ort.Tensor(type, array, dims);
  }
  return inputs;
}

// What each feed gives, and how long the first run took.
async function answers(session, feeds, parts) {
  let first_ms = null;
  const outputs = [];
  for (const feed of feeds) {
    const inputs = await tensors(feed);
    const start = now();
    const results = await session.run(inputs);
    first_ms ??= now() - start;
    outputs.push(session.outputNames.map((name) => {
      const { type, dims, data: values } = results[name];
      parts.push(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
      return { name, type, dims, bytes: values.byteLength };
    }));
  }
  return { names: session.outputNames, outputs, first_ms };
}

// One run of each session after another until every one has had `least` runs and `ms`, or `most` runs: [[ms, ...], ...]
async function turns(sessions, inputs, least, ms, most) {
  const times = sessions.map(() => []);
  const spent = sessions.map(() => 0);
  while (times[0].length < least || (times[0].length < most && Math.min(...spent) < ms)) {
    for (const [index, session] of sessions.entries()) {
      const start = now();
      await session.run(inputs);
      const took = now() - start;
      times[index].push(took);
      spent[index] += took;
    }
  }
  return times;
}

// ONNX Runtime prints its profile to the console when it ends, one event per line.
async function profile(entry, inputs, how) {
  const { session } = await open(entry, { ...QUIET, enableProfiling: true });
  await turns([session], inputs, how.least, how.ms, how.most);
  lines = [];
  session.endProfiling();
  const events = lines.join("\n");
  lines = [];
  await session.release();
  return events;
}

// Bytes of the page with its workers and their WebAssembly, which never gives memory back; null if it is not told:
// threads that wait for work do not answer the browser.
async function memory(threads) {
  if (threads > 1) return null;
  const told = performance.measureUserAgentSpecificMemory?.().then(({ bytes: all }) => all);
  return await Promise.race([told, new Promise((resolve) => setTimeout(resolve, MEMORY_MS, null))]) ?? null;
}

// The outputs of each entry and where its nodes go. To be timed, each has a quiet session of its own first.
async function perform(task) {
  ort.env.wasm.numThreads = task.threads;
  const parts = [];
  const runs = [];
  const found = task.measure ? await measure(task, runs, parts) : {};
  await each(task.entries, async (entry, index) => {
    const { session, ...told } = await open(entry, VERBOSE);
    runs[index] ??= { load_ms: told.load_ms, ...await answers(session, task.feeds, parts) };
    Object.assign(runs[index], { all: told.all, assigned: told.assigned });
    await session.release();
    if (task.profile) runs[index].events = await profile(entry, await tensors(task.feeds[0]), task.profile);
  });
  return [{ status: "ran", ...found, runs }, parts];
}

async function measure(task, runs, parts) {
  const { measure: how } = task;
  lines = [];
  const start = now();
  const nothing = { ...options({ options: {}, session: {} }), ...QUIET };
  await (await ort.InferenceSession.create(await bytes("nothing"), nothing)).release();
  const runtime_ms = now() - start;
  const baseline = await memory(task.threads);
  const sessions = [];
  await each(task.entries, async (entry) => {
    const { session, load_ms } = await open(entry, QUIET);
    sessions.push(session);
    runs.push({ load_ms, ...await answers(session, task.feeds, parts) });
  });
  const inputs = await tensors(task.feeds[0]);
  const warm = await turns(sessions, inputs, how.warmup_runs, how.warmup_ms, how.max_runs);
  const times = await turns(sessions, inputs, how.min_runs, how.ms, how.max_runs);
  runs.forEach((run, index) => Object.assign(run, { warmup_runs: warm[index].length, wall_ms: times[index] }));
  const peak = await memory(task.threads);
  for (const session of sessions) await session.release();
  return { runtime_ms, baseline, peak };
}

// An error says at which entry it came.
async function each(entries, work) {
  for (const [index, entry] of entries.entries()) {
    try {
      await work(entry, index);
    } catch (error) {
      throw Object.assign(error instanceof Error ? error : new Error(String(error)), { entry: index });
    }
  }
}

async function about() {
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" });
  return {
    status: "ran",
    isolated: crossOriginIsolated,
    cores: navigator.hardwareConcurrency,
    adapter: adapter && {
      name: [adapter.info.vendor, adapter.info.architecture, adapter.info.description].filter(Boolean).join(" "),
      software: adapter.info.isFallbackAdapter ?? false,
      float16: adapter.features.has("shader-f16"),
    },
  };
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
    await send(...(task.about ? [await about(), []] : await perform(task)));
    lines = null;
  } catch (error) {
    const words = lines.filter((line) => /\[[EF]:onnxruntime/.test(line)).slice(-3);
    const reason = [error?.message ?? String(error), ...words].join("\n");
    await send({ status: "refused", reason, entry: error?.entry ?? null }, []);
    location.reload();
    break;
  }
}
