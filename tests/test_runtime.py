"""Sessions fail loudly, with one sentence, and never fall back in silence."""

from __future__ import annotations

import os

import numpy as np
import pytest
from small_models import parse, weights

from edgeq import graph
from edgeq.errors import ModelError, ProviderError
from edgeq.machine import describe_machine
from edgeq.runtime import check_available, open_session, run_model, session_options
from edgeq.target import Provider


def linear():
    return parse("g (float[N,8] x) => (float[N,4] y, float[N,4] z) { y = MatMul(x, w) z = Tanh(y) }", w=weights(8, 4))


def provider(name: str, **changes: object) -> Provider:
    return Provider(name=name, package="some-package", version=">=1", **changes)  # type: ignore[arg-type]


def test_run_model_gives_outputs_by_name() -> None:
    x = weights(2, 8)
    out = run_model(linear(), {"x": x})
    assert list(out) == ["y", "z"]
    np.testing.assert_allclose(out["y"], x @ weights(8, 4), rtol=1e-5, atol=1e-6)
    assert list(run_model(linear(), {"x": x}, outputs=["z"])) == ["z"]


def test_threads_without_the_systems_word_on_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and Windows have no ``sched_getaffinity``."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert session_options().intra_op_num_threads == describe_machine().cores == 3
    assert session_options(threads=2).intra_op_num_threads == 2


def test_a_large_model_goes_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run_model(linear(), {"x": weights(2, 8)})
    monkeypatch.setattr(graph, "EXTERNAL_DATA_THRESHOLD", 10)
    np.testing.assert_array_equal(run_model(linear(), {"x": weights(2, 8)})["y"], expected["y"])


def test_an_operator_that_does_not_exist() -> None:
    model = parse("g (float[4] x) => (float[4] y) { y = toy.Abacus(x) }")
    with pytest.raises(ModelError, match=r"ONNX Runtime \d.* cannot load the model: .*Abacus") as caught:
        run_model(model, {"x": weights(4)})
    assert "[ONNXRuntimeError]" not in str(caught.value)
    assert "check that every operator" in str(caught.value.remedy)


def test_a_model_that_fails_while_running() -> None:
    with pytest.raises(ModelError, match=r"the model fails while running: .*Got: 7 Expected: 8"):
        run_model(linear(), {"x": weights(2, 7)})


def test_a_provider_that_this_build_lacks() -> None:
    with pytest.raises(
        ProviderError, match=r"has no NonsenseExecutionProvider; it has .*CPUExecutionProvider"
    ) as caught:
        check_available(provider("NonsenseExecutionProvider"))
    assert caught.value.remedy == "install some-package>=1 on a machine that supports it"
    assert caught.value.exit_code == 5


def test_a_plugin_that_is_not_installed() -> None:
    missing = provider("AbacusExecutionProvider", registration="plugin", module="no_such_plugin")
    with (
        pytest.raises(ProviderError, match="needs the package some-package>=1, which is not installed") as caught,
        open_session(linear(), None, missing),
    ):
        pass
    assert caught.value.remedy == "pip install 'some-package>=1'"


def test_options() -> None:
    options = session_options(threads=3, config={"session.x64quantprecision": "1"})
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.x64quantprecision") == "1"
    assert session_options().intra_op_num_threads >= 1


def test_telemetry_is_off() -> None:
    import os

    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_a_failure_is_told_once_not_on_stderr_as_well(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError), open_session(parse("g (float[4] x) => (float[4] y) { y = toy.Abacus(x) }")):
        pass
    with pytest.raises(ModelError, match="fails while running"):
        run_model(parse("g (float[N] x, int64[K] s) => (float[M] y) { y = Reshape(x, s) }"), RESHAPE)
    assert capfd.readouterr().err == ""


RESHAPE = {"x": np.zeros(4, np.float32), "s": np.array([3], np.int64)}
