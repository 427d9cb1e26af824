"""A manifest from a stranger must not make a provider load or write files."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgeq.bundle import Bundle, Manifest
from edgeq.errors import ValidationError
from edgeq.target import Provider, load_target, target_names
from edgeq.trust import check_providers


def bundle(provider: Provider) -> Bundle:
    return Bundle(Path("b"), Manifest(edgeq="0", name="n", target="t", precision="w8a8", provider=provider))


QNN = load_target("android-npu").provider


@pytest.mark.parametrize("name", target_names())
def test_what_edgeq_makes_is_trusted(name: str) -> None:
    check_providers(bundle(load_target(name).provider))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"module": "os"}, "the Python module 'os'"),
        ({"module": None, "package": "antigravity"}, "the Python module 'antigravity'"),
        ({"options": {"backend_path": "evil"}}, "backend_path = 'evil'"),
        ({"options": {"anything": "samples/evil.so"}}, "anything = 'samples/evil.so'"),
        ({"options": {"anything": "evil.dll"}}, "evil.dll"),
        ({"session": {"ep.context_file_path": "x"}}, "ep.context_file_path"),
    ],
)
def test_what_loads_or_writes_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match="--trust-provider") as raised:
        check_providers(bundle(msgspec.structs.replace(QNN, **changes)))
    assert said in raised.value.what


def test_the_second_graph_is_looked_at_too() -> None:
    from edgeq.bundle import GraphEntry

    second = GraphEntry(
        model="fallback/model.onnx",
        target="t",
        precision="w8a8",
        provider=msgspec.structs.replace(QNN, module="os"),
    )
    made = bundle(QNN)
    made = Bundle(made.path, msgspec.structs.replace(made.manifest, fallback=second))
    with pytest.raises(ValidationError, match=r"of fallback/model\.onnx load or write the Python module 'os'"):
        check_providers(made)
