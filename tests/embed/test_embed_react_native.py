"""The package for React Native: bundled by Metro and run under Node, with stand-ins for a phone's native code only."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx_ir as ir
import pytest
from embed_detections import found_in, same
from embed_models import HOSTILE, PREPARATIONS, MakeBundle, MakeDetectorBundle, MakePictureBundle, with_fallback

import edgeq
from edgeq.bundle import read_bundle
from edgeq.errors import ConfigError
from edgeq.graph import input_infos, load_model
from edgeq.recipe import ImagePreprocess
from edgeq.runtime import open_session, session_options
from edgeq.stages.calibrate.images import ImageStore, load_image
from edgeq.target import Provider

HERE = Path(__file__).parent
PHOTOS = HERE.parents[1] / "calibration" / "photos"
TEXTS = ["Two people ride a bicycle.", "Zwei Leute fahren Rad, ΟΔΟΣ 中文 😀", "", "word " * 300]
COREML = Provider(
    name="CoreMLExecutionProvider",
    package="onnxruntime-objc",
    version=">=1.24",
    options={"ModelFormat": "MLProgram", "MLComputeUnits": "CPUOnly", "RequireStaticInputShapes": "1"},
)
APP = (
    "react-native@0.81.6",
    "@react-native/metro-config@0.81.6",
    "@react-native/babel-preset@0.81.6",
    "@react-native-community/cli@20.2.0",
    "@dr.pogodin/react-native-fs@2.40.3",
    "onnxruntime-react-native@1.24.3",
    "onnxruntime-node@1.24.3",
)
"""onnxruntime-node has the native code of the same release for this machine."""


def test_the_provider_gets_what_the_binding_passes_on(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = with_fallback(make_bundle(provider=COREML))
    folder = edgeq.embed(bundle.path, platform="react-native", output=tmp_path / "out").path
    source, readme = (folder / "src/index.ts").read_text(), (folder / "README.md").read_text()
    assert 'provider: { name: "coreml", coreMlFlags: 0x018 }' in source  # coreml_provider_factory.h: 0x008 and 0x010
    assert 'provider: { name: "cpu", useArena: true }' in source
    assert "does not pass on `MLComputeUnits=CPUOnly`, `session.x=1`: ONNX Runtime's defaults hold" in readme


def test_the_key_of_a_graph_follows_its_files(make_bundle: MakeBundle, tmp_path: Path) -> None:
    keys = []
    for name, shape in (("one", (1, 3)), ("two", (1, 4)), ("three", (1, 3))):
        bundle = make_bundle(name, shape=shape, labels=())
        folder = edgeq.embed(bundle.path, platform="react-native", output=tmp_path / f"{name}-out").path
        keys += re.findall('key: "([0-9a-f]{16})"', (folder / "src/index.ts").read_text())
    assert keys[0] == keys[2] != keys[1]


def test_16_bit_floats_are_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(dtype=ir.DataType.FLOAT16, labels=())
    with pytest.raises(ConfigError, match="onnxruntime-react-native cannot pass float16"):
        edgeq.embed(bundle.path, platform="react-native", output=tmp_path / "out")


@pytest.mark.parametrize("name", ["QNNExecutionProvider", "WebGpuExecutionProvider"])
def test_a_provider_that_the_binding_lacks_is_refused(name: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(provider=Provider(name=name, package="onnxruntime", version=">=1.24"))
    with pytest.raises(ConfigError, match="make a package for android, android-xnnpack, ios or ios-npu"):
        edgeq.embed(bundle.path, platform="react-native", output=tmp_path / "out")


def test_nobody_is_told_that_it_ran_on_a_phone(make_bundle: MakeBundle, tmp_path: Path) -> None:
    found = edgeq.embed(make_bundle().path, platform="react-native", output=tmp_path / "out")
    assert any("not run on a phone" in note for note in found.notes)
    assert "nothing of this ran on a phone" in (found.path / "README.md").read_text()


def npm(folder: Path, *arguments: str) -> str:
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class App(NamedTuple):
    """A React Native app with both example packages installed, and what Metro made of it for each system in `built`.

    ``compiler`` is the folder of modules that a package is compiled with.
    """

    folder: Path
    compiler: Path
    bundles: dict[str, Path]

    def metro(self, entry: str, platform: str, to: Path) -> None:
        command = ["node_modules/.bin/react-native", "bundle", "--dev", "false", "--entry-file", entry]
        command += ["--platform", platform, "--bundle-output", str(to / "index.bundle"), "--assets-dest", str(to)]
        to.mkdir(parents=True)
        npm(self.folder, *command)

    def run(self, built: Path, home: Path, *, url: str, fails: bool = False, **job: Any) -> Any:
        job = {"providers": ["cpu", "xnnpack"], "pictures": [], "texts": ["one"], **job, "url": url}
        job |= {"bundle": str(built / "index.bundle"), "resources": str(built), "home": str(home)}
        home.mkdir(exist_ok=True)
        (home / "job.json").write_text(json.dumps({**job, "answer": str(home / "answer.json")}))
        command = ["node", "run.js", str(home / "job.json")]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=280)
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr if fails else json.loads((home / "answer.json").read_text())


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> App:
    for program in ("npm", "node"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}: apt-get install nodejs npm")
    folder = tmp_path_factory.mktemp("react-native")
    bundles, packed = {}, list[Path]()
    for name in ("efficientnet-lite0", "minilm"):
        bundle = edgeq.export(f"example:{name}", target="android", effort=0, measure=False, output=folder / name).path
        project = edgeq.embed(bundle, platform="react-native", output=folder / f"{name}-project").path
        if packed:
            (project / "node_modules").symlink_to(packed[0].parent / "node_modules")
            npm(project, "npm", "run", "build")
        else:
            npm(project, "npm", "install", "--no-audit", "--no-fund")  # also compiles it
        npm(project, "npm", "pack")
        bundles[name] = bundle
        packed.append(project / f"{name}-1.0.0.tgz")
    made = folder / "app"
    shutil.copytree(HERE / "react_native", made)
    (made / "package.json").write_text('{ "name": "app", "version": "1.0.0", "private": true }')
    (made / "babel.config.js").write_text('module.exports = { presets: ["module:@react-native/babel-preset"] };')
    npm(made, "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *APP, *map(str, packed))
    found = App(made, packed[0].parent / "node_modules", bundles)
    for platform in ("android", "ios"):
        found.metro("index.js", platform, made / "built" / platform)
    return found


def urls(app: App) -> dict[str, str]:
    """Where the JavaScript of a release is, as React Native sees it."""
    return {"android": "assets://index.android.bundle", "ios": f"file://{app.folder / 'built/ios'}/index.bundle"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    from PIL import Image

    found = []
    for index, file in enumerate(sorted(PHOTOS.glob("*.jpg"))):
        image = Image.open(file).convert("RGBA" if index % 2 else "RGB")
        pixels = tmp_path_factory.mktemp("pixels") / "pixels.bin"
        pixels.write_bytes(image.tobytes())
        found.append({"file": str(pixels), "width": image.width, "height": image.height, "photo": str(file)})
    return found


@pytest.fixture(scope="module", params=["android", "ios"])
def answer(request: pytest.FixtureRequest, app: App, pictures: list[dict[str, Any]], tmp_path_factory: Any) -> Any:
    """What a release bundle says under Node, where the app was never started before."""
    home = tmp_path_factory.mktemp(f"home {request.param}")
    built = app.folder / "built" / request.param
    found = app.run(built, home, url=urls(app)[request.param], pictures=pictures, texts=TEXTS)
    return {**found, "platform": request.param, "home": home}


@pytest.mark.slow
@pytest.mark.torch
class TestRelease:
    def test_the_models_are_copied_once_from_where_metro_put_them(self, answer: Any) -> None:
        names = [line for line in answer["log"] if ".onnx" in line]
        if answer["platform"] == "android":
            made = ("efficientnetlite0", "minilm")
            assert sorted(names) == [f"resource node_modules_{name}_assets_model.onnx" for name in made]
        else:
            made = ("efficientnet-lite0", "minilm")
            assert sorted(names) == [f"copy assets/node_modules/{name}/assets/model.onnx" for name in made]

    def test_outputs_are_the_hosts(self, answer: Any, app: App) -> None:
        bundle = read_bundle(app.bundles["efficientnet-lite0"])
        feed = {"inputs": np.full((1, 3, 224, 224), 0.25, np.float32)}
        with open_session(bundle.model, session_options(threads=1)) as session:
            (logits,) = session.run(None, feed)
        np.testing.assert_allclose(answer["logits"], logits[0], atol=0.05)
        assert answer["provider"] == "cpu"

    def test_pictures_are_classified_as_on_the_host(self, answer: Any, app: App, pictures: Any) -> None:
        bundle = read_bundle(app.bundles["efficientnet-lite0"])
        steps = bundle.manifest.preprocess
        with open_session(bundle.model, session_options(threads=1)) as session:
            for picture, (best, _) in zip(pictures, answer["classes"], strict=True):
                pixels = load_image(Path(picture["photo"]), steps).transpose(2, 0, 1)[None]  # type: ignore[arg-type]
                logits = session.run(None, {"inputs": (pixels - np.float32(127)) / np.float32(128)})[0][0]
                powers = np.exp(logits.astype(np.float64) - logits.max())
                assert best["index"] == logits.argmax(), picture["photo"]
                assert best["probability"] == pytest.approx(powers.max() / powers.sum(), abs=0.01)

    def test_samples_are_as_close_to_float_as_they_were(self, answer: Any) -> None:
        for found in answer["closeness"]:
            (output,) = found
            assert output["here"] == pytest.approx(output["promised"], abs=1), output

    def test_texts_become_the_tokens_of_tokenizers(self, answer: Any, app: App) -> None:
        tokenizers = pytest.importorskip("tokenizers")
        reference = tokenizers.Tokenizer.from_file(str(app.bundles["minilm"] / "tokenizer.json"))
        reference.enable_truncation(128)
        reference.enable_padding(length=128)
        expected = [encoding.ids for encoding in reference.encode_batch(TEXTS)]
        np.testing.assert_array_equal(np.reshape(answer["ids"], (len(TEXTS), 128)), expected)
        vectors = np.array(answer["embeddings"])
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert vectors[0] @ vectors[1] < 0.999  # not the same vector for all


@pytest.mark.slow
@pytest.mark.torch
class TestFiles:
    def test_a_second_start_copies_nothing_and_old_models_go(self, app: App, tmp_path: Path) -> None:
        built, home = app.folder / "built/android", tmp_path / "home"
        old = home / "edgeq/minilm/0123456789abcdef"
        old.mkdir(parents=True)
        (old / "model.onnx").write_text("an earlier version")
        first, second = (app.run(built, home, url=urls(app)["android"]) for _ in range(2))
        assert len([line for line in first["log"] if ".onnx" in line]) == 2
        assert not [line for line in second["log"] if ".onnx" in line]
        assert not old.exists()
        assert len(list(home.rglob("model.onnx"))) == 2

    def test_a_copy_that_was_cut_off_is_made_again(self, app: App, tmp_path: Path) -> None:
        built, home = app.folder / "built/ios", tmp_path / "home"
        app.run(built, home, url=urls(app)["ios"])
        for model in home.rglob("model.onnx"):
            model.write_bytes(model.read_bytes()[:1000])
            model.with_name("model.onnx.part").write_text("left by a crash")
        again = app.run(built, home, url=urls(app)["ios"])
        assert len([line for line in again["log"] if ".onnx" in line]) == 2
        assert not list(home.rglob("*.part"))

    def test_another_file_than_was_packaged_is_refused(self, app: App, tmp_path: Path) -> None:
        built = shutil.copytree(app.folder / "built/android", tmp_path / "built")
        model = built / "raw/node_modules_efficientnetlite0_assets_model.onnx"
        model.write_bytes(model.read_bytes()[:-1] + b"x")
        said = app.run(built, tmp_path / "home", url=urls(app)["android"], fails=True)
        found = hashlib.sha256(model.read_bytes()).hexdigest()
        assert f"model.onnx is not the file that was packaged: its sha256 is {found}" in said

    def test_a_place_with_spaces_is_found(self, app: App, tmp_path: Path) -> None:
        built = shutil.copytree(app.folder / "built/ios", tmp_path / "My App #1.app")
        found = app.run(built, tmp_path / "home", url=f"{built.as_uri()}/index.bundle")
        assert found["provider"] == "cpu"

    def test_a_development_build_gets_the_model_from_metro(self, app: App, tmp_path: Path, server: str) -> None:
        found = app.run(app.folder / "built/ios", tmp_path / "home", url=f"{server}/index.bundle?platform=ios&dev=true")
        assert "download /assets/node_modules/minilm/assets/model.onnx" in found["log"]

    @pytest.fixture
    def server(self, app: App) -> Iterator[str]:
        handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(app.folder / "built/ios"))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
            threading.Thread(target=serving.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{serving.server_port}"
            serving.shutdown()


@pytest.mark.slow
@pytest.mark.torch
class TestOtherModels:
    def compiled(self, bundle: Path, project: Path, app: App) -> Path:
        """A project compiled with what another one has installed."""
        folder = edgeq.embed(bundle, platform="react-native", output=project).path
        (folder / "node_modules").symlink_to(app.compiler)
        npm(folder, "npm", "run", "build")
        return folder

    def install(self, bundle: Path, name: str, app: App, scratch: Path) -> None:
        """Compiled, and in the app in place of the one of its name."""
        folder = self.compiled(bundle, scratch / "out", app)
        (folder / "node_modules").unlink()
        installed = app.folder / "node_modules" / name
        shutil.rmtree(installed, ignore_errors=True)
        shutil.copytree(folder, installed)

    def test_hostile_names_compile(self, app: App, make_bundle: MakeBundle, tmp_path: Path) -> None:
        bundle = make_bundle(names=HOSTILE, name=HOSTILE[0], labels=["a*/b", "${x}", '"'], shape=("n", "m", 2))
        assert (self.compiled(bundle.path, tmp_path / "out", app) / "dist/index.d.ts").exists()

    @pytest.mark.parametrize("dtype", ["DOUBLE", "INT64", "UINT8", "BOOL"])
    def test_every_type_compiles(self, dtype: str, app: App, make_bundle: MakeBundle, tmp_path: Path) -> None:
        bundle = make_bundle(dtype=ir.DataType[dtype], labels=())
        assert (self.compiled(bundle.path, tmp_path / "out", app) / "dist/check.js").exists()

    @pytest.mark.parametrize("providers", [["coreml", "cpu"], ["cpu"]], ids=["iOS", "Android"])
    def test_the_second_graph_runs_where_the_first_cannot(
        self, providers: list[str], app: App, make_bundle: MakeBundle, tmp_path: Path
    ) -> None:
        self.install(with_fallback(make_bundle(provider=COREML)).path, "tiny", app, tmp_path)
        (app.folder / "tiny.js").write_text(
            'import { Tiny } from "tiny";\nglobalThis.app = async () => {\n  const model = await Tiny.load();\n'
            "  const { xOut } = await model.run({ x: new Float32Array([1, 2, 3]) });\n"
            "  return { provider: model.provider, found: [...xOut] };\n};\n"
        )
        app.metro("tiny.js", "ios", tmp_path / "built")
        url = f"file://{tmp_path}/built/index.bundle"
        # The node binding has no CoreML either: it says so, as a phone may whose model CoreML refuses.
        found = app.run(tmp_path / "built", tmp_path / "home", url=url, providers=providers)
        assert (found["provider"], found["found"]) == ("cpu", [1, 2, 3])

    def test_boxes_are_found_as_on_the_host(
        self, app: App, detector_bundle: MakeDetectorBundle, tmp_path: Path
    ) -> None:
        steps = ImagePreprocess(letterbox="centre", crop=(8, 12))
        bundle = detector_bundle(steps)
        folder = self.compiled(bundle.path, tmp_path / "out", app)
        (folder / "node_modules").unlink()
        installed = app.folder / "node_modules" / "tiny-net"
        shutil.rmtree(installed, ignore_errors=True)
        shutil.copytree(folder, installed)
        from PIL import Image

        pixels = np.random.default_rng(1).integers(0, 256, (23, 31, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "picture.png")
        (app.folder / "detect.js").write_text(
            'import { TinyNet } from "tiny-net";\nimport { checkSamples } from "tiny-net/dist/check";\n'
            f"const data = new Uint8Array({pixels.ravel().tolist()});\n"
            "globalThis.app = async () => {\n  const model = await TinyNet.load();\n"
            "  const found = await model.detect({ data, width: 31, height: 23 });\n"
            "  return { found, closeness: await checkSamples(model) };\n};\n"
        )
        app.metro("detect.js", "ios", tmp_path / "built")
        said = app.run(tmp_path / "built", tmp_path / "home", url=f"file://{tmp_path}/built/index.bundle")
        keys = ("index", "label", "score", "left", "top", "right", "bottom")
        same([tuple(one[key] for key in keys) for one in said["found"]], found_in(bundle, tmp_path / "picture.png"))
        closeness = {one["output"]: one["here"] for one in said["closeness"]}
        assert closeness["boxes"] == 100
        assert closeness["light"] > 90
        assert set(closeness) == {"boxes", "light"}

    @pytest.mark.parametrize("steps", PREPARATIONS, ids=lambda steps: f"{steps.interpolation}-{steps.color}")
    def test_pictures_are_prepared_as_for_calibration(
        self, steps: ImagePreprocess, app: App, picture_bundle: MakePictureBundle, tmp_path: Path
    ) -> None:
        from PIL import Image

        bundle = picture_bundle(steps)
        module = self.compiled(bundle.path, tmp_path / "out", app) / "dist" / "pictures.js"
        shutil.copy(module, tmp_path / "pictures.mjs")
        pixels = np.random.default_rng(1).integers(0, 256, (23, 31, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "picture.png")
        (tmp_path / "pixels.bin").write_bytes(pixels.tobytes())
        script = """
import { readFileSync, writeFileSync } from "node:fs";
import { prepare } from "./pictures.mjs";
const rgb = new Uint8Array(readFileSync("pixels.bin"));
const alpha = (i) => (i % 4 === 3 ? 7 : rgb[3 * (i >> 2) + (i % 4)]);
const rgba = Uint8Array.from({ length: (rgb.length / 3) * 4 }, (_, i) => alpha(i));
writeFileSync("rgb.bin", (await prepare({ data: rgb, width: 31, height: 23 })).image);
writeFileSync("rgba.bin", (await prepare({ data: rgba, width: 31, height: 23 })).image);
await prepare({ data: rgb, width: 31, height: 24 }).then(() => process.exit(1), () => undefined);
"""
        (tmp_path / "run.mjs").write_text(script)
        subprocess.run(["node", "run.mjs"], cwd=tmp_path, check=True)
        infos = input_infos(load_model(bundle.model))
        expected = ImageStore([tmp_path / "picture.png"], steps, infos).read([0])["image"]
        for name in ("rgb.bin", "rgba.bin"):
            found = np.frombuffer((tmp_path / name).read_bytes(), np.float32).reshape(expected.shape)
            np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("platform", ["android", "ios"])
def test_hermes_compiles_the_bundle(platform: str, app: App, tmp_path: Path) -> None:
    compiler = app.folder / "node_modules/react-native/sdks/hermesc/linux64-bin/hermesc"
    compiler.chmod(0o755)
    bundle = app.folder / "built" / platform / "index.bundle"
    npm(app.folder, str(compiler), "-emit-binary", "-O", "-w", "-out", str(tmp_path / "app.hbc"), str(bundle))
    assert (tmp_path / "app.hbc").stat().st_size > 1_000_000


@pytest.mark.slow
@pytest.mark.torch
def test_android_takes_the_resources(app: App, tmp_path: Path) -> None:
    if shutil.which("aapt2") is None:
        pytest.skip("there is no aapt2: apt-get install aapt")
    npm(app.folder, "aapt2", "compile", "--dir", "built/android", "-o", str(tmp_path / "compiled.zip"))
    names = zipfile.ZipFile(tmp_path / "compiled.zip").namelist()
    assert "raw_node_modules_efficientnetlite0_assets_model.onnx.flat" in names


@pytest.mark.slow
@pytest.mark.torch
def test_react_native_links_the_native_code(app: App) -> None:
    """The dependencies of the README are what the command line tool finds to link."""
    manifest = app.folder / "android/app/src/main/AndroidManifest.xml"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('<manifest package="com.app"/>')
    (app.folder / "android/app/build.gradle").write_text('android { namespace "com.app" }')
    said = npm(app.folder, "node_modules/.bin/react-native", "config")
    found = msgspec.json.decode(said[said.index("{") :])["dependencies"]
    assert found["onnxruntime-react-native"]["platforms"]["android"]["packageInstance"] == "new OnnxruntimePackage()"
    assert found["@dr.pogodin/react-native-fs"]["platforms"]["android"] is not None
    assert "efficientnet-lite0" not in found or found["efficientnet-lite0"]["platforms"]["android"] is None
