"""What holds for the project of every platform."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from embed_models import HOSTILE, MakeBundle, MakeDetectorBundle

import edgeq
from edgeq.bundle import Bundle
from edgeq.cli.main import cli
from edgeq.errors import ConfigError, EdgeqError, OutputError, ValidationError
from edgeq.escape import Foreign
from edgeq.recipe import ImagePreprocess
from edgeq.stages.embed import PLATFORMS
from edgeq.stages.embed.render import _environment
from edgeq.stages.embed.write import RECORD
from edgeq.target import Provider

BINARY = {".onnx", ".ort", ".npy", ".data", ".png", ".jpg"}
COPIED = {"labels.txt", "LICENSES.md", "tokenizer.json"}
"""Files of the bundle that are passed on as they are."""

_STRINGS = r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
_BRACES = re.compile(rf"//[^\n]*|/\*.*?\*/|{_STRINGS}", re.DOTALL)
_PYTHON = re.compile(rf'#[^\n]*|""".*?"""|{_STRINGS}', re.DOTALL)
CODE = {**dict.fromkeys((".kt", ".kts", ".swift", ".ts", ".js", ".mjs", ".c", ".h"), _BRACES), ".py": _PYTHON}
"""Comments and strings of each language: what is left of a file without them is code."""

every_platform = pytest.mark.parametrize("platform", PLATFORMS)


def generated(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    kept = (path for path in files if path.suffix not in BINARY and path.name not in COPIED)
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in kept}


def everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@every_platform
def test_the_same_bundle_gives_the_same_bytes(platform: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    for folder in ("one", "two"):
        edgeq.embed(bundle.path, platform=platform, output=tmp_path / folder)
    assert everything(tmp_path / "one") == everything(tmp_path / "two")


@every_platform
def test_hostile_names_stay_inside_their_quotes(platform: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(names=HOSTILE, name=HOSTILE[0], labels=["a*/b", "${x}", '"'])
    _stays_inside(edgeq.embed(bundle.path, platform=platform, output=tmp_path / "out").path)


@every_platform
def test_hostile_names_of_boxes_stay_inside_their_quotes(
    platform: str, detector_bundle: MakeDetectorBundle, tmp_path: Path
) -> None:
    steps = ImagePreprocess(crop=(8, 8))
    bundle = detector_bundle(steps, names=HOSTILE[:4], labels=["a*/b", "${System.exit(1)}", '"); Runtime.exec("rm'])
    folder = edgeq.embed(bundle.path, platform=platform, output=tmp_path / "out").path
    assert any("etections" in text for text in generated(folder).values())
    _stays_inside(folder)


def _stays_inside(folder: Path) -> None:
    for path, text in generated(folder).items():
        assert "\u202e" not in text, path
        assert path == RECORD or str(70 * 719) not in text, path  # a template in a template
        if Path(path).suffix in CODE:
            outside = CODE[Path(path).suffix].sub("", text)
            assert not re.search(r"\.exec\(|pwn\(\)|System\.exit|exit\(1\)|script>", outside), path


@every_platform
def test_nothing_takes_one_picture_where_the_model_takes_two(
    platform: str, detector_bundle: MakeDetectorBundle, tmp_path: Path
) -> None:
    steps = ImagePreprocess(crop=(8, 8))
    made = {
        batch: edgeq.embed(
            detector_bundle(steps, str(batch), batch=batch).path, platform=platform, output=tmp_path / f"o{batch}"
        )
        for batch in (1, "batch", 2)
    }
    detects = {batch: "detect(" in "".join(generated(one.path).values()) for batch, one in made.items()}
    assert detects == {1: platform != "c", "batch": platform != "c", 2: False}
    notes = {batch: [note for note in one.notes if "pictures at a time" in note] for batch, one in made.items()}
    assert (len(notes[1]), len(notes["batch"]), len(notes[2])) == (0, 0, 1)


@every_platform
def test_generated_text_is_tidy(
    platform: str, make_bundle: MakeBundle, detector_bundle: MakeDetectorBundle, tmp_path: Path
) -> None:
    steps = ImagePreprocess(crop=(8, 8))
    of_picture = detector_bundle(steps, "of picture", of="picture", batch="batch", labels=())
    texts = {}
    for number, bundle in enumerate((make_bundle(), detector_bundle(steps), of_picture)):
        folder = edgeq.embed(bundle.path, platform=platform, output=tmp_path / f"out{number}").path
        texts |= {f"{number}/{path}": text for path, text in generated(folder).items()}
    for path, text in texts.items():
        assert text.endswith("\n"), path
        assert not text.endswith("\n\n"), path
        assert not text.startswith("\n"), path
        blank = 3 if path.endswith(".py") else 2  # two blank lines are Python's style
        assert "\n" * (blank + 1) not in text, path
        assert "\t" not in text, path
        assert "{{" not in text, path
        assert "{%" not in text, path
        assert all(line == line.rstrip() for line in text.splitlines()), path


@every_platform
def test_the_model_is_the_bundles(platform: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    folder = edgeq.embed(bundle.path, platform=platform, output=tmp_path / "out").path
    (model,) = folder.rglob("model.onnx")
    assert model.read_bytes() == bundle.model.read_bytes()


@every_platform
def test_the_readme_gives_shapes_as_they_are_written(platform: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle(shape=(2, 3))
    folder = edgeq.embed(bundle.path, platform=platform, output=tmp_path / "out").path
    text = (folder / "README.md").read_text("utf-8")
    assert "float32_" not in text
    if platform in ("python", "android"):
        assert "float32[2, 3]" in text


@every_platform
def test_an_edited_file_survives_a_new_model(platform: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    first, second = make_bundle("first"), make_bundle("second", labels=["a", "b", "c"], shape=("n", 3))
    folder = tmp_path / "out"
    edgeq.embed(first.path, platform=platform, output=folder)
    (folder / "README.md").write_text("mine")
    found = edgeq.embed(second.path, platform=platform, output=folder)
    assert found.kept == ("README.md",)
    assert (folder / "README.md").read_text() == "mine"
    (model,) = folder.rglob("model.onnx")
    assert model.read_bytes() == second.model.read_bytes()


@every_platform
def test_options_are_remembered(platform: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    edgeq.embed(bundle.path, platform=platform, output=tmp_path / "out", name="Detector")
    before = everything(tmp_path / "out")
    again = edgeq.embed(bundle.path, platform=platform, output=tmp_path / "out")
    assert not again.written
    assert everything(tmp_path / "out") == before
    assert any("etector" in path or "etector" in text for path, text in generated(tmp_path / "out").items())


@every_platform
def test_an_option_of_another_platform_is_an_error(platform: str, make_bundle: MakeBundle, tmp_path: Path) -> None:
    values = {"abis": ["arm64-v8a"], "bench": True, "model_format": "ort", "package": "a.b"}
    known = {"model_format" if name == "format" else name for name in PLATFORMS[platform].options}
    for name in values.keys() - known:
        with pytest.raises(ConfigError, match="has no option"):
            edgeq.embed(make_bundle(name).path, platform=platform, output=tmp_path / "out", **{name: values[name]})  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@every_platform
@pytest.mark.parametrize("name", ["return", "Outputs"])
def test_a_chosen_name_is_no_keyword_and_no_class_of_the_generated_code(
    platform: str, name: str, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_bundle()
    if platform == "c":  # has no classes: the name is a prefix
        edgeq.embed(bundle.path, platform=platform, output=tmp_path / "project", name=name)
        return
    with pytest.raises(ConfigError, match=f"'{name}'"):
        edgeq.embed(bundle.path, platform=platform, output=tmp_path / "project", name=name)
    assert not (tmp_path / "project").exists()


def test_a_provider_that_the_platform_lacks_is_an_error(make_bundle: MakeBundle, tmp_path: Path) -> None:
    provider = Provider(name="TensorrtExecutionProvider", package="onnxruntime-gpu", version=">=1.24")
    with pytest.raises(ConfigError, match="does not exist on Android"):
        edgeq.embed(make_bundle(provider=provider).path, platform="android", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_platform_is_an_error(make_bundle: MakeBundle) -> None:
    with pytest.raises(ConfigError, match="unknown platform 'symbian'") as caught:
        edgeq.embed(make_bundle().path, platform="symbian")
    assert all(name in str(caught.value) for name in PLATFORMS)


def test_the_help_lists_the_platforms() -> None:
    (option,) = [p for p in cli.commands["embed"].params if p.name == "platform"]
    assert all(name in str(getattr(option, "help", "")) for name in PLATFORMS)


def test_a_changed_bundle_is_refused(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle: Bundle = make_bundle()
    (bundle.path / "labels.txt").write_text("other\n")
    with pytest.raises(ValidationError):
        edgeq.embed(bundle.path, platform="android", output=tmp_path / "out")


def test_the_bundle_itself_is_not_written_to(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    with pytest.raises(OutputError):
        edgeq.embed(bundle.path, platform="android", output=bundle.path)


def test_the_default_place_is_beside_the_bundle(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    found = edgeq.embed(bundle.path, platform="android")
    assert found.path == bundle.path.parent / "bundle-embed" / "android"
    assert json.loads((found.path / ".edgeq.json").read_text())["platform"] == "android"


def test_a_template_cannot_print_a_strangers_text_by_mistake() -> None:
    environment = _environment()
    assert environment.from_string("{{ x|kotlin }}").render(x=Foreign("a")) == '"a"'
    with pytest.raises(TypeError, match="without escaping"):
        environment.from_string("{{ x }}").render(x=Foreign("a"))


def test_errors_are_edgeqs_own(make_bundle: MakeBundle, tmp_path: Path) -> None:
    import onnx_ir as ir

    bundle = make_bundle(dtype=ir.DataType.UINT16, labels=())
    with pytest.raises(EdgeqError, match="cannot pass uint16"):
        edgeq.embed(bundle.path, platform="android", output=tmp_path / "out")


def test_a_package_for_another_machine_is_said_to_be_one(make_bundle: MakeBundle, tmp_path: Path) -> None:
    bundle = make_bundle()
    target = bundle.manifest.target
    for platform in ("android", "ios", "web"):
        found = edgeq.embed(bundle.path, platform=platform, output=tmp_path / platform)
        words = f"was made for {target}: it runs, but its kernels were chosen for another processor"
        assert any(words in note for note in found.notes) == (platform not in target)
        assert PLATFORMS[platform].notes(f"{platform}-npu") == ()
        assert f"--target {platform} makes one" in PLATFORMS[platform].notes("linux-x64")[0]
    assert PLATFORMS["python"].notes(target) == ()
    assert PLATFORMS["react-native"].notes("android-xnnpack") == PLATFORMS["react-native"].notes("ios-npu") == ()
    assert "--target android or ios makes one" in PLATFORMS["react-native"].notes("linux-x64")[0]
