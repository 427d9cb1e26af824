"""Target profiles: every shipped one is sound, and a wrong one is refused with its place and a remedy."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgeq.errors import ConfigError
from edgeq.qtypes import IntType
from edgeq.resources import data_folder, data_path
from edgeq.target import Capability, TargetProfile, load_target, target_names

SMALL = """
name = "toy"
summary = "a toy"
precisions = ["w8a8"]
absorbs = ["Relu"]
sources = ["invented"]

[provider]
name = "CPUExecutionProvider"
package = "onnxruntime"
version = ">=1.20"

[graph]
source = "invented"

[floats]
source = "invented"

[activations]
types = { "8" = "uint8" }
source = "invented"

[weights]
types = { "8" = "int8" }
source = "invented"

[bias]
mode = "int32"
source = "invented"

[verification]
note = "a toy"

[[capability]]
ops = ["Conv"]
kind = "compute"
activation_bits = [8]
weight_bits = [8]
source = "invented"
"""


@pytest.fixture
def write(tmp_path: Path):
    def write_profile(text: str, name: str = "toy.toml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_profile


# -- what ships


@pytest.mark.parametrize("name", target_names())
def test_every_shipped_profile_is_sound(name: str) -> None:
    from edgeq.request import parse_scheme

    target = load_target(name)
    assert target.name == name
    assert target.summary
    assert target.sources
    assert target.precisions
    for table in (target.graph, target.activations, target.weights, target.bias):
        assert len(table.source) > 10, f"{name}: {type(table).__name__} has no source"
    for item in (*target.capability, *target.fixed):
        assert len(item.source) > 10, f"{name}: {item} has no source"
    for precision in target.precisions:
        parse_scheme(precision, target)
    for bits, kind in (*target.activations.types.items(), *target.weights.types.items()):
        assert IntType.parse(kind).bits == int(bits)


@pytest.mark.parametrize("name", target_names())
def test_capabilities_ask_for_types_that_the_profile_has(name: str) -> None:
    target = load_target(name)
    for capability in target.capability:
        assert capability.ops, f"{name}: a capability names no operator"
        if capability.kind == "weight-only":
            assert not capability.activation_bits
        if capability.kind == "compute":
            assert {str(bits) for bits in capability.weight_bits} <= set(target.weights.types)


def test_there_are_targets() -> None:
    assert {"android", "linux-x64"} <= set(target_names())
    assert list(target_names()) == sorted(target_names())
    assert data_path("targets", "android").parent == data_folder("targets")


def test_unknown_target_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match="unknown target 'nokia-3310'") as caught:
        load_target("nokia-3310")
    assert caught.value.remedy == f"choose one of: {', '.join(target_names())}"
    assert caught.value.exit_code == 2


def test_unknown_calibration_recipe_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match="unknown calibration recipe 'nothing'") as caught:
        data_path("calibration", "nothing")
    assert "choose one of: " in str(caught.value.remedy)


def test_a_name_is_no_path() -> None:
    with pytest.raises(ConfigError, match="unknown target"):
        load_target("../targets/android")


# -- what a user writes


def test_a_small_profile_has_defaults(write) -> None:
    target = load_target(write(SMALL))
    assert target.graph.opset == 21
    assert target.graph.linear == "as-is"
    assert not target.activations.symmetric
    assert target.fixed == ()
    assert target.fixed_range("Softmax") is None
    (conv,) = target.capabilities("Conv")
    assert (conv.output, conv.per_channel, conv.constant_weight) == ("required", True, True)
    assert target.capabilities("Gelu") == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('absorbs = ["Relu"]', 'absorbs = ["Relu"]\nabsorb = ["Clip"]', "unknown field `absorb`"),
        ('mode = "int32"', 'mode = "int32"\nmood = 3', r"unknown field `mood` - at `\$.bias`"),
        ('kind = "compute"', 'kind = "compute"\nbits = 8', r"unknown field `bits` - at `\$.capability\[0\]`"),
        ('summary = "a toy"', "", "missing required field `summary`"),
        ('[graph]\nsource = "invented"', "[graph]", r"missing required field `source` - at `\$.graph`"),
        ('summary = "a toy"', "summary = 5", r"Expected `str`, got `int` - at `\$.summary`"),
        ("activation_bits = [8]", 'activation_bits = ["8"]', r"Expected `int`, got `str` - at"),
        ('kind = "compute"', 'kind = "computes"', r"Invalid enum value 'computes' - at `\$.capability\[0\].kind`"),
        ('mode = "int32"', 'mode = "int16"', "Invalid enum value 'int16'"),
    ],
)
def test_a_wrong_key_or_type_is_named_with_its_place(write, old: str, new: str, message: str) -> None:
    assert old in SMALL
    path = write(SMALL.replace(old, new))
    with pytest.raises(ConfigError, match=f"target profile 'toy' is not valid: .*{message}") as caught:
        load_target(path)
    assert caught.value.where == str(path)
    assert "docs/targets.md" in str(caught.value.remedy)


def test_not_toml(write) -> None:
    with pytest.raises(ConfigError, match=r"the target profile is not valid TOML: .*line 2"):
        load_target(write("name = 'toy'\nsummary = = 3\n"))


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(b"name = '\xff\xfe'")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_target(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the target profile: No such file") as caught:
        load_target(tmp_path / "none.toml")
    assert caught.value.where == str(tmp_path / "none.toml")


CHILD = """
name = "child"
inherits = "base"
precisions = ["w4"]
sources = ["child"]

[graph]
opset = 23
source = "child"

[provider]
options = { speed = "high" }

[weights]
types = { "4" = "int4" }

[[capability]]
ops = ["Gemm", "Conv"]
kind = "elementwise"
activation_bits = [8]
source = "child"

[[fixed]]
op = "Softmax"
lo = 0.0
hi = 1.0
source = "child"
"""


def test_inheritance_merges_tables_and_appends_lists(write) -> None:
    write(SMALL, "providers/base.toml")
    target = load_target(write(CHILD, "child.toml"))
    assert (target.name, target.summary, target.inherits) == ("child", "a toy", "base")
    assert target.precisions == ("w4",)  # replaced
    assert target.sources == ("invented", "child")  # appended
    assert (target.graph.opset, target.graph.ir_version) == (23, 10)
    assert target.provider.options == {"speed": "high"}
    assert target.provider.package == "onnxruntime"
    assert target.weights.types == {"8": "int8", "4": "int4"}
    assert [c.kind for c in target.capabilities("Conv")] == ["compute", "elementwise"]  # in the order of the files
    assert [c.kind for c in target.capabilities("Gemm")] == ["elementwise"]
    assert target.fixed_range("Softmax") == (0.0, 1.0)


def test_a_profile_may_inherit_from_a_shipped_provider(write) -> None:
    own = write('inherits = "cpu"\n' + SMALL.split("[provider]")[0] + SMALL[SMALL.index("[activations]") :])
    target = load_target(own)
    assert target.provider.name == "CPUExecutionProvider"
    assert target.graph.linear == "guarded-add"
    assert len(target.capabilities("Conv")) == 2


def test_providers_inherit_in_turn(write) -> None:
    write(SMALL, "providers/far.toml")
    write('inherits = "far"\nsources = ["near"]\n[graph]\nopset = 22\n', "providers/near.toml")
    target = load_target(write('inherits = "near"\nname = "child"\nsources = ["child"]\n', "child.toml"))
    assert target.sources == ("invented", "near", "child")
    assert (target.graph.opset, target.bias.mode) == (22, "int32")


def test_a_profile_that_inherits_from_itself_is_refused(write) -> None:
    write('inherits = "far"\n', "providers/near.toml")
    write('inherits = "near"\n', "providers/far.toml")
    with pytest.raises(ConfigError, match="inherits from itself"):
        load_target(write('inherits = "near"\n' + SMALL))


def test_an_unknown_base_is_named(write) -> None:
    with pytest.raises(ConfigError, match="cannot read the target profile") as caught:
        load_target(write('inherits = "abacus"\n' + SMALL))
    assert str(caught.value.where).endswith("abacus.toml")


def test_profiles_are_immutable(write) -> None:
    target = load_target(write(SMALL))
    assert isinstance(target, TargetProfile)
    assert isinstance(target.capability[0], Capability)
    with pytest.raises(AttributeError):
        target.bias.mode = "float"  # type: ignore[misc]
    assert msgspec.structs.asdict(target)["name"] == "toy"


# -- variants

VARIANTS = """
variant = "plain"

[variants.plain]
summary = "a plain toy"

[variants.reduced]
weights = { reduce_range = true }

[[variants.reduced.capability]]
ops = ["Gemm"]
kind = "compute"
source = "invented"
"""


def with_variants(only: str = "") -> str:
    top, tables = VARIANTS.split("\n\n", 1)
    return top.lstrip() + "\n" + SMALL.replace('kind = "compute"\n', f'kind = "compute"\n{only}') + "\n" + tables


def test_the_default_variant_is_taken_and_is_no_part_of_the_name(write) -> None:
    target = load_target(write(with_variants()))
    assert (target.name, target.variant, target.summary) == ("toy", "plain", "a plain toy")
    assert not target.weights.reduce_range


def test_a_variant_is_merged_over_the_profile(write) -> None:
    target = load_target(f"{write(with_variants())}@reduced")
    assert (target.name, target.variant, target.summary) == ("toy@reduced", "reduced", "a toy")
    assert target.weights.reduce_range
    assert [op for c in target.capability for op in c.ops] == ["Conv", "Gemm"]


def test_a_capability_may_belong_to_some_variants_only(write) -> None:
    path = write(with_variants(only='only = ["reduced"]\n'))
    assert not load_target(path).capabilities("Conv")
    assert load_target(f"{path}@reduced").capabilities("Conv")


def test_an_unknown_variant_is_named(write) -> None:
    with pytest.raises(ConfigError, match="no variant 'x': its variants are plain, reduced"):
        load_target(f"{write(with_variants())}@x")
    with pytest.raises(ConfigError, match="no variant 'x': it has none"):
        load_target("web@x")


def test_a_variant_that_is_no_table_is_named(write) -> None:
    with pytest.raises(ConfigError, match="variant 'one' is no table"):
        load_target(f"{write('variants = { one = 1 }' + chr(10) + SMALL)}@one")


@pytest.mark.parametrize("name", [f"{n}@{v}" for n in target_names() for v in load_target(n).variants])
def test_every_shipped_variant_is_sound(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    # A provider's file serves several targets, not each of which has all of its variants.
    family = (load_target(other) for other in target_names())
    known = {variant for member in family if member.inherits == target.inherits for variant in member.variants}
    for capability in target.capability:
        assert set(capability.only) <= known, f"{capability.ops} is only for unknown variants"
