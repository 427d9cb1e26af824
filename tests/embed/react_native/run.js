// Runs a bundle of Metro under node: node run.js JOB.json, where the job is {platform, bundle, resources, home, url}. All
// JavaScript is that of the app: the package's, React Native's, onnxruntime-react-native's. What a phone has in native code
// is here: files, where assets are, and ONNX Runtime, in onnxruntime-node, whose binding has the same interface.

const { createHash } = require("node:crypto");
const fs = require("node:fs");
const path = require("node:path");

const job = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const ort = require("onnxruntime-node/dist/binding.js").binding;

const log = [];
const files = {
  getConstants: () => ({ CachesDirectoryPath: job.home, FileTypeRegular: "file", FileTypeDirectory: "directory" }),
  exists: async (name) => fs.existsSync(name),
  stat: async (name) => ({ size: fs.statSync(name).size, mtime: 0, ctime: 0, type: "file" }),
  mkdir: async (name) => void fs.mkdirSync(name, { recursive: true }),
  unlink: async (name) => fs.rmSync(name, { recursive: true }),
  hash: async (name, kind) => createHash(kind).update(fs.readFileSync(name)).digest("hex"),
  readFile: async (name) => fs.readFileSync(name).toString("base64"),
  readDir: async (name) => fs.readdirSync(name).map((entry) => ({ name: entry, path: path.join(name, entry), size: 0, type: "file" })),
  copyFile: async (from, to) => {
    log.push(`copy ${path.relative(job.resources, from)}`);
    fs.copyFileSync(from, to, fs.constants.COPYFILE_EXCL);
  },
  moveFile: async (from, to) => {
    if (fs.existsSync(to)) throw new Error(`${to} exists`); // as on iOS
    fs.renameSync(from, to);
  },
  // As the library does: the name without its ending is a resource's, of the kind "raw".
  copyFileRes: async (name, to) => {
    log.push(`resource ${name}`);
    const wanted = name.slice(0, name.lastIndexOf("."));
    const [found] = fs.readdirSync(path.join(job.resources, "raw")).filter((file) => path.parse(file).name === wanted);
    if (found === undefined) throw new Error(`Res '${name}' could not be opened`);
    fs.copyFileSync(path.join(job.resources, "raw", found), to);
  },
  downloadFile: async ({ fromUrl, toFile }) => {
    log.push(`download ${new URL(fromUrl).pathname}`);
    const answer = await fetch(fromUrl);
    fs.writeFileSync(toFile, Buffer.from(await answer.arrayBuffer()));
    return { statusCode: answer.status };
  },
};

const screen = { width: 400, height: 800, scale: 2, fontScale: 1 };
const modules = {
  ReactNativeFs: files,
  SourceCode: { getConstants: () => ({ scriptURL: job.url }) },
  DeviceInfo: { getConstants: () => ({ Dimensions: { window: screen, screen, windowPhysicalPixels: screen, screenPhysicalPixels: screen } }) },
  Onnxruntime: { install: () => true, ORT_EXTENSIONS_PATH: null },
};

globalThis.__DEV__ = false;
globalThis.window = globalThis.global = globalThis;
globalThis.nativeModuleProxy = modules;
// Anything else, such as what React Native asks for to draw, is there and has nothing in it.
globalThis.__turboModuleProxy = (name) => modules[name] ?? { getConstants: () => ({}) };
let Tensor;
globalThis.OrtApi = {
  listSupportedBackends: () => job.providers.map((name) => ({ name })),
  initOrtOnce: (level, constructor) => ort.initOrtOnce(level, (Tensor = constructor)),
  createInferenceSession: () => {
    const session = new ort.InferenceSession();
    return {
      loadModel: (...some) => session.loadModel(...some),
      get inputMetadata() {
        return session.inputMetadata;
      },
      get outputMetadata() {
        return session.outputMetadata;
      },
      run: (feeds, ...others) => {
        const read = Object.entries(feeds).map(([name, tensor]) => [name, fromTheBeginning(tensor)]);
        return session.run(Object.fromEntries(read), ...others);
      },
      dispose: () => session.dispose(),
    };
  },
  version: "test",
};

/** As TensorUtils.cpp of onnxruntime-react-native 1.24.3 reads it: the buffer, wherever the array begins. */
function fromTheBeginning({ type, data, dims }) {
  return new Tensor(type, new data.constructor(data.buffer, 0, data.length), dims);
}

globalThis.readPixels = (name) => new Uint8Array(fs.readFileSync(name));

(0, eval)(fs.readFileSync(job.bundle, "utf8"));
globalThis.app(job).then(
  (found) => fs.writeFileSync(job.answer, JSON.stringify({ ...found, log })),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
