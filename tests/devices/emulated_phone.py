"""A phone without a phone: Debian's adbd in a network of its own, whose programs for Arm are emulated.

What is real: adb's client, server, daemon and protocol, the kernel's view of processes, memory and room, and every
instruction of a program for arm64. What is not: the kernel is this machine's, the C library is not Android's, and
what Android itself would answer (`getprop`, `cmd`, `dumpsys`) comes from scripts in ``stubs``. Nothing of it can be
reached from outside the namespace, and all of it ends with the process that made it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from device_tools import phone_parts, why_no_phone

from edgeq.devices.adb import ANDROID_RUNNER
from edgeq.devices.adb_client import find_adb
from edgeq.devices.programs import find_runner
from edgeq.devices.runtimes import ANDROID_RUNTIME

__all__ = ["DRAGON", "Phone", "emulated_phone"]

MAGIC = (
    r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00",
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff",
)
"""How Linux tells a program for arm64: QEMU's own numbers for binfmt_misc."""

DRAGON = {
    "ro.product.manufacturer": "Example",
    "ro.product.model": "Dragon 7",
    "ro.soc.manufacturer": "QTI",
    "ro.soc.model": "SM8550",
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.product.cpu.abilist": "arm64-v8a,armeabi-v7a,armeabi",
    "ro.build.version.release": "15",
    "ro.build.version.sdk": "35",
    "ro.boot.qemu": "1",
}
"""What the phone says of itself, if nothing else is asked for."""

GETPROP = """#!/bin/sh
sed -n "s/^$1=//p" /system/properties
"""
CMD = """#!/bin/sh
echo "cmd $*" >> /data/calls
case "$*" in
"power set-fixed-performance-mode-enabled true") test ! -e /system/no-fixed-performance ;;
"power set-fixed-performance-mode-enabled false") ;;
*) echo "cmd: Can't find service: $1" >&2; exit 20 ;;
esac
"""
DUMPSYS = """#!/bin/sh
test "$#" = 1 && test -e "/system/dumpsys/$1" || { echo "Can't find service: $1" >&2; exit 1; }
cat "/system/dumpsys/$1"
"""
THERMAL = """IsStatusOverride: false
ThermalEventListeners:
	callbacks: 3
Thermal Status: {status}
Cached temperatures:
	Temperature{{mValue=31.2, mType=2, mName=battery, mStatus=0}}
	Temperature{{mValue={celsius}, mType=0, mName=CPU0, mStatus={status}}}
HAL Ready: true
Current temperatures from HAL:
	Temperature{{mValue={celsius}, mType=0, mName=CPU0, mStatus={status}}}
	Temperature{{mValue=30.1, mType=3, mName=skin, mStatus=0}}
Current cooling devices from HAL:
"""
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  status: 2
  level: 83
  scale: 100
  temperature: 312
"""
SETUP = r"""set -e
ip link set lo up
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
printf ':edgeq-aarch64:M::%s:%s:%s:F' '{magic}' '{mask}' '{qemu}' > /proc/sys/fs/binfmt_misc/register
for name in usr etc bin lib lib32 lib64 sbin dev tmp var opt {first_of_parts}; do
  if [ -L "/$name" ]; then ln -sfn "$(readlink "/$name")" "{root}/$name"
  elif [ -d "/$name" ]; then mkdir -p "{root}/$name"; mount --rbind "/$name" "{root}/$name"; fi
done
mkdir -p "{root}/sys" "{root}/proc" "{root}/data"
mount --rbind /sys "{root}/sys"
mount --bind "{folder}/cpu" "{root}/sys/devices/system/cpu"
if [ -d /sys/class/thermal ]; then mount --bind "{folder}/thermal" "{root}/sys/class/thermal"; fi
mount -t tmpfs -o size={room_mb}m,mode=0771 none "{root}/data"
mkdir -p "{root}/data/local/tmp"
unshare --pid --fork --kill-child --mount sh -c '
  mount -t proc proc "{root}/proc"
  mount --bind "{folder}/cpuinfo" "{root}/proc/cpuinfo"
  exec env -i HOME=/data PATH=/system/bin:/usr/bin:/bin QEMU_CPU={cpu} QEMU_LD_PREFIX="{arm_root}" \
    "$(command -v chroot)" "{root}" "{loader}" --library-path "{libraries}" "{adbd}"' &
echo $! > "{folder}/holder.new"
mv "{folder}/holder.new" "{folder}/holder"
read -r forever
"""


@dataclass
class Phone:
    """A running phone. ``adb`` is a program that is adb's real client, started where it reaches the phone."""

    serial: str
    adb: Path
    folder: Path
    process: subprocess.Popen[bytes]
    inside: int

    @property
    def root(self) -> Path:
        """The phone's own root, as seen from here."""
        return Path(f"/proc/{self.inside}/root")

    def call(self, *command: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Adb's client with these arguments."""
        return subprocess.run([str(self.adb), *command], capture_output=True, text=True, check=False, timeout=timeout_s)

    def warm(self, celsius: float, status: int) -> None:
        """Set what ``dumpsys thermalservice`` says."""
        text = THERMAL.format(celsius=celsius, status=status)
        (self.folder / "root/system/dumpsys/thermalservice").write_text(text)

    def say(self, properties: Mapping[str, str]) -> None:
        """Set what ``getprop`` says."""
        text = "".join(f"{key}={value}\n" for key, value in properties.items())
        (self.folder / "root/system/properties").write_text(text)

    def remount_data(self, option: str) -> None:
        """Mount the phone's /data with another option."""
        inside = ["nsenter", "--target", str(self.inside), "--user", "--mount", "--preserve-credentials"]
        subprocess.run([*inside, "mount", "-o", f"remount,{option}", str(self.folder / "root/data")], check=True)

    def processes(self, name: str) -> list[int]:
        """The processes on the phone that run the program ``name``, by their ids there; not shells that watch it."""
        found = []
        for file in (self.root / "proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = file.read_bytes().split(b"\0")
                if words[1:2] != [b"-c"] and any(word.endswith(f"/{name}".encode()) for word in words[:3]):
                    found.append(int(file.parent.name))
        return found

    def lose(self) -> None:
        """Pull the cable: the daemon and all that runs on the phone are gone at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.inside, signal.SIGKILL)


@contextlib.contextmanager
def emulated_phone(
    folder: Path,
    *,
    properties: Mapping[str, str] = DRAGON,
    room_mb: int = 200,
    cpu: str = "cortex-a76",
) -> Iterator[Phone]:
    """A phone with ``room_mb`` on /data.

    Raises RuntimeError with adbd's words if it does not start.
    """
    parts = phone_parts()
    folder.mkdir(exist_ok=True)
    root = folder / "root"
    _stub(root)
    _pretend(folder)
    adbd = parts.adbd
    triplet = next(adbd.glob("usr/lib/*-linux-gnu"))
    setup = SETUP.format(
        magic=MAGIC[0],
        mask=MAGIC[1],
        qemu=parts.qemu,
        root=root,
        first_of_parts=parts.arm_root.parts[1],
        folder=folder,
        room_mb=room_mb,
        cpu=cpu,
        arm_root=parts.arm_root,
        loader=next(triplet.glob("ld-linux-*.so.*")),
        libraries=f"{triplet}:{triplet / 'android'}",
        adbd=adbd / "usr/lib/android-sdk/platform-tools/adbd",
    )
    log = folder / "adbd.log"
    spaces = ["unshare", "--user", "--map-root-user", "--mount", "--net"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*spaces, "sh", "-c", setup], stdin=subprocess.PIPE, stdout=stream, stderr=stream, start_new_session=True
        )
    adb = _client(folder, process.pid)
    try:
        phone = Phone("127.0.0.1:5555", adb, folder, process, _daemon(process, folder))
        phone.say(properties)
        phone.warm(41.5, 0)
        _connect(phone)
        yield phone
    finally:
        subprocess.run([str(adb), "kill-server"], capture_output=True, check=False)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _stub(root: Path) -> None:
    programs = root / "system/bin"
    programs.mkdir(parents=True)
    (root / "system/dumpsys").mkdir()
    for name, text in {"getprop": GETPROP, "cmd": CMD, "dumpsys": DUMPSYS}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (root / "system/dumpsys/battery").write_text(BATTERY)


def _pretend(folder: Path) -> None:
    """Two cores of two kinds, the second the faster, and a sensor."""
    cores = os.cpu_count() or 1
    for core in range(cores):
        frequency = folder / f"cpu/cpu{core}/cpufreq"
        frequency.mkdir(parents=True)
        fast = core >= cores // 2
        (frequency / "cpuinfo_max_freq").write_text("2800000\n" if fast else "1800000\n")
        (frequency / "scaling_cur_freq").write_text("2400000\n" if fast else "1200000\n")
    for name in ("possible", "present", "online"):
        (folder / "cpu" / name).write_text(f"0-{cores - 1}\n")
    zone = folder / "thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-0-0\n")
    (zone / "temp").write_text("42500\n")
    core_facts = (
        "BogoMIPS\t: 38.40\nFeatures\t: fp asimd aes crc32 atomics fphp asimdhp asimddp\nCPU implementer\t: 0x41\n"
    )
    text = "".join(f"processor\t: {core}\n{core_facts}CPU part\t: 0xd0b\n\n" for core in range(cores))
    (folder / "cpuinfo").write_text(text)


def _daemon(process: subprocess.Popen[bytes], folder: Path) -> int:
    """The id, as seen from here, of the phone's first process."""
    for _ in range(200):
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError):
            holder = int((folder / "holder").read_text())
            if found := Path(f"/proc/{holder}/task/{holder}/children").read_text().split():
                return int(found[0])
        time.sleep(0.05)
    raise RuntimeError(f"the emulated phone does not start: {(folder / 'adbd.log').read_text()}")


def _client(folder: Path, holder: int) -> Path:
    """A program that starts adb's client where it reaches the phone, and nothing else."""
    client = folder / "adb"
    client.write_text(
        f"#!/bin/sh\nexec nsenter --target {holder} --user --net --preserve-credentials "
        f"env HOME='{folder}' ADB_MDNS_OPENSCREEN=0 ADB_EMU=0 '{find_adb()}' \"$@\"\n"
    )
    client.chmod(0o755)
    return client


def _connect(phone: Phone) -> None:
    words = ""
    for _ in range(60):
        if phone.process.poll() is not None:
            break
        found = phone.call("connect", phone.serial)
        words = found.stdout + found.stderr
        if "connected to" in found.stdout and phone.call("-s", phone.serial, "shell", "echo ready").stdout == "ready\n":
            return
        time.sleep(0.25)
    raise RuntimeError(f"adb does not reach the emulated phone: {words} {(phone.folder / 'adbd.log').read_text()}")


def _main() -> int:
    """Run a command that has a phone: ``python tests/devices/emulated_phone.py edgeq run BUNDLE --device adb``."""
    if why := why_no_phone():
        sys.exit(why)
    library = next(phone_parts().arm_root.rglob("libonnxruntime.so*"))
    with tempfile.TemporaryDirectory(prefix="edgeq-phone-") as folder, emulated_phone(Path(folder)) as phone:
        programs = {ANDROID_RUNNER: str(find_runner("linux-aarch64")), ANDROID_RUNTIME: str(library)}
        path = f"{phone.adb.parent}:{os.environ['PATH']}"
        return subprocess.run(sys.argv[1:] or ["sh"], env={**programs, **os.environ, "PATH": path}).returncode


if __name__ == "__main__":
    sys.exit(_main())
