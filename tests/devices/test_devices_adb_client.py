"""adb: where it is found, and each usual failure in words. A script stands for adb where no phone can fail so."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest

from edgeq.devices.adb import AdbDevice, find_phones
from edgeq.devices.adb_client import Adb, Listed, find_adb
from edgeq.devices.adb_transport import AdbTransport
from edgeq.devices.registry import parse_device
from edgeq.devices.remote import parse_df
from edgeq.errors import ConfigError, EdgeqError, ProviderError

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a shell script stands for adb")

HEADER = "List of devices attached"
PHONE = "R5CT10ABCDE            device usb:1-2 product:dm1q model:SM_S911B device:dm1q transport_id:3"


def fake(folder: Path, devices: str = PHONE, body: str = "exit 1") -> Path:
    """An adb whose ``devices`` prints these lines, and whose other commands are ``body``."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "adb"
    program.write_text(
        f"#!/bin/sh\nif [ \"$1\" = devices ]; then cat <<'END'\n{HEADER}\n{devices}\n\nEND\nexit 0; fi\n{body}\n"
    )
    program.chmod(0o755)
    return program


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No adb on the PATH, no SDK, no adbutils."""
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PATH", f"{empty}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(empty))
    for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("shutil.which", lambda name: str(empty / name) if (empty / name).exists() else None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    return empty


def message(call: object, *arguments: object) -> str:
    with pytest.raises((ProviderError, ConfigError)) as caught:
        call(*arguments)  # type: ignore[operator]
    assert caught.value.remedy
    return str(caught.value)


def test_adb_on_the_path_is_taken_first(nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDROID_HOME", str(tmp_path / "sdk"))
    in_sdk = fake(tmp_path / "sdk/platform-tools")
    assert find_adb() == in_sdk
    assert find_adb() != fake(nowhere).with_name("none")
    assert find_adb() == nowhere / "adb"


@pytest.mark.parametrize("variable", ["ANDROID_HOME", "ANDROID_SDK_ROOT"])
def test_adb_of_the_sdk_is_found(nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "sdk"))
    assert find_adb() is None
    assert fake(tmp_path / "sdk/platform-tools") == find_adb()


def test_adb_is_found_where_android_studio_puts_it(nowhere: Path) -> None:
    assert fake(nowhere / "Android/Sdk/platform-tools") == find_adb()


def test_adb_of_the_package_is_found_without_an_sdk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("adbutils")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT"):
        monkeypatch.delenv(name, raising=False)
    found = find_adb()
    assert found is not None
    assert found.parent.parent.name == "adbutils"


def test_no_adb(nowhere: Path) -> None:
    told = message(Adb.find)
    assert "there is no adb" in told
    assert "pip install 'edgeq[device]'" in told


def test_no_phone(tmp_path: Path) -> None:
    told = message(Adb(fake(tmp_path, "")).choose, "")
    assert "no phone is attached" in told
    assert "USB debugging" in told


@pytest.mark.parametrize(
    ("state", "what", "remedy"),
    [
        ("unauthorized usb:1-2 transport_id:3", "has not allowed this computer", "Allow USB debugging?"),
        ("offline transport_id:3", "is offline", "plug it in again"),
        ("authorizing usb:1-2", "is being asked", "say yes"),
        (
            "no permissions (missing udev rules? user is in the plugdev group); see [http://example.org]",
            "may not be opened by this user",
            "udev rules",
        ),
        ("bootloader usb:1-2", "is in its bootloader", "fastboot reboot"),
        ("recovery usb:1-2", "is in recovery mode", "adb reboot"),
        ("rescue usb:1-2", "is in the state 'rescue'", "adb devices -l"),
    ],
    ids=lambda value: value.split()[0] if value.count(" ") < 3 else None,
)
@pytest.mark.parametrize("named", ["", "R5CT10ABCDE"])
def test_a_phone_that_cannot_be_used(tmp_path: Path, state: str, what: str, remedy: str, named: str) -> None:
    told = message(Adb(fake(tmp_path, f"R5CT10ABCDE            {state}")).choose, named)
    assert f"the phone R5CT10ABCDE {what}" in told
    assert remedy in told


def test_several_phones_are_listed(tmp_path: Path) -> None:
    adb = Adb(fake(tmp_path, f"{PHONE}\nemulator-5554          offline transport_id:4\nX device model:Pixel_8"))
    told = message(adb.choose, "")
    assert "several phones" in told
    assert "adb:R5CT10ABCDE (SM S911B), adb:emulator-5554 (offline), adb:X (Pixel 8)" in told
    assert adb.choose("X") == "X"


def test_the_only_phone_that_can_be_used_is_taken(tmp_path: Path) -> None:
    adb = Adb(fake(tmp_path, f"{PHONE}\nemulator-5554          offline transport_id:4"))
    assert adb.choose("") == "R5CT10ABCDE"


def test_another_phone_than_those_attached(tmp_path: Path) -> None:
    told = message(Adb(fake(tmp_path)).choose, "0123")
    assert "there is no phone '0123'" in told
    assert "adb:R5CT10ABCDE (SM S911B)" in told


def test_words_of_the_server_are_no_phones(tmp_path: Path) -> None:
    adb = Adb(fake(tmp_path, f"* daemon not running; starting now at tcp:5037\n* daemon started successfully\n{PHONE}"))
    facts = {"usb": "1-2", "product": "dm1q", "model": "SM_S911B", "device": "dm1q", "transport_id": "3"}
    assert adb.devices() == [Listed("R5CT10ABCDE", "device", facts)]


def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    program = tmp_path / "adb"
    program.write_text("#!/bin/sh\necho 'error: cannot connect to daemon: Connection refused' >&2; exit 1\n")
    program.chmod(0o755)
    told = message(Adb(program).devices)
    assert "cannot connect to daemon" in told
    assert "adb kill-server" in told


def test_an_adb_that_is_no_program(tmp_path: Path) -> None:
    program = tmp_path / "adb"
    program.write_bytes(b"\x7fELF of another machine")
    program.chmod(0o755)
    assert "adb does not start" in message(Adb(program).devices)
    phone = AdbTransport(Adb(program), "X")
    assert "adb does not start" in message(phone.run, ["true"])


@pytest.mark.parametrize(
    ("devices", "what"),
    [
        ("", "the phone R5CT10ABCDE was lost while it ran runner; adb's words: error: closed"),
        ("R5CT10ABCDE offline", "the phone R5CT10ABCDE is offline"),
        ("R5CT10ABCDE unauthorized", "the phone R5CT10ABCDE has not allowed this computer"),
        (PHONE, "the connection to the phone R5CT10ABCDE broke while it ran runner"),
    ],
    ids=["gone", "offline", "unauthorized", "back again"],
)
def test_a_phone_that_is_lost_in_the_middle(tmp_path: Path, devices: str, what: str) -> None:
    phone = AdbTransport(Adb(fake(tmp_path, devices, "echo 'error: closed' >&2; exit 1")), "R5CT10ABCDE")
    assert what in message(phone.run, ["/data/local/tmp/edgeq/runner", "job.json"])


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("adb: error: failed to copy 'x' to 'y': remote couldn't create file: Permission denied", "lets nothing be"),
        ("adb: error: failed to copy 'x' to 'y': remote write failed: No space left on device", "has no room for x"),
        ("adb: error: failed to copy 'x' to 'y': remote couldn't create file: Read-only file system", "lets nothing"),
        ("adb: error: failed to get feature set: device 'X' not found", "the phone X was lost while x was being"),
    ],
    ids=["permission", "no space", "read-only", "lost"],
)
def test_a_file_that_cannot_be_pushed(tmp_path: Path, words: str, what: str) -> None:
    body = f"""case "$3" in
    push) echo "{words}" >&2; exit 1 ;;
    shell) echo; echo edgeq-ended 0 >&2; exit 0 ;;
    esac"""
    (tmp_path / "x").write_text("content")
    phone = AdbTransport(Adb(fake(tmp_path / "bin", "", body)), "X")
    assert what in message(phone.push, tmp_path / "x", PurePosixPath("/data/local/tmp/edgeq/x"))


def test_a_folder_that_is_another_users(tmp_path: Path) -> None:
    body = "echo \"mkdir: '/data/local/tmp/edgeq': Permission denied\" >&2; echo edgeq-ended 1 >&2; exit 1"
    told = message(AdbTransport(Adb(fake(tmp_path, PHONE, body)), "X").folder)
    assert "lets nothing be written to /data/local/tmp/edgeq" in told


@pytest.mark.parametrize(
    "text",
    [
        "Filesystem     1024-blocks    Used Available Capacity Mounted on\n/dev/block/dm-5 112640 9000 2048 9% /data\n",
        "Filesystem 1K-blocks Used Available Use% Mounted on\nnone 4096 2048 2048 50% /data\n",
    ],
    ids=["toybox", "coreutils"],
)
def test_free_room_is_read(text: str) -> None:
    assert parse_df(text) == 2048 * 1024
    assert parse_df("df: /data: No such file or directory") is None


def test_errors_are_edgeqs_own(tmp_path: Path) -> None:
    """So that a build gets an exit code: 5 for what is not there, 2 for what was asked wrongly."""
    with pytest.raises(EdgeqError) as caught:
        Adb(fake(tmp_path, "")).choose("")
    assert caught.value.exit_code == 5
    with pytest.raises(EdgeqError) as caught:
        Adb(fake(tmp_path, f"{PHONE}\n{PHONE.replace('R5', 'R6')}")).choose("")
    assert caught.value.exit_code == 2


def test_devices_that_are_found_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One phone is the same machine, however it is named; none is an error that says what to do."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fake(tmp_path)
    assert find_phones() == [AdbDevice("R5CT10ABCDE")]
    assert AdbDevice().machine == AdbDevice("R5CT10ABCDE").machine == "adb:R5CT10ABCDE"
    assert AdbDevice().missing() is None
    assert "there is no phone '0'" in str(AdbDevice("0").missing())
    fake(tmp_path, "")
    assert "no phone is attached" in message(find_phones)
    assert AdbDevice().machine == "adb"


@pytest.mark.parametrize("text", ["adb:-s", "adb:a b", "adb:\n"])
def test_what_is_no_serial_number_is_never_given_to_adb(text: str) -> None:
    with pytest.raises(ConfigError, match="is no phone's serial number"):
        parse_device(text)


def test_serial_numbers_with_a_port() -> None:
    assert parse_device("adb:192.168.0.7:5555") == AdbDevice("192.168.0.7:5555")
    assert parse_device("adb") == AdbDevice("")
