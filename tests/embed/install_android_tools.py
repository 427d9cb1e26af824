"""Fetches what the Android checks need: ``make android-tools``. Nothing is installed outside edgeq's cache but by apt.

A Kotlin compiler (npm, Apache-2.0), the AAR of onnxruntime-android (inside an npm package of another project, MIT),
Android's classes of API 23 and the dexer (Debian 11, Apache-2.0); 260 MB in all. From Debian, with the machine's own
apt and as root: aapt, zipalign, apksigner, a JDK and JUnit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from edgeq.resources import cache_folder
from edgeq.sandbox.debian import extract, fetch_packages

KOTLIN = "kotlin-compiler@2.4.20"
RUNTIME = "com.github.asus4.onnxruntime@0.4.9"  # holds onnxruntime-android 1.29.0
DEBIAN = ("aapt", "apksigner", "default-jdk-headless", "junit4", "unzip", "zipalign")


def folder() -> Path:
    return cache_folder() / "android-tools"


def main() -> None:
    missing = [name for name in ("aapt2", "apksigner", "javac", "unzip", "zipalign") if shutil.which(name) is None]
    if missing or not Path("/usr/share/java/junit4.jar").exists():
        if os.geteuid() != 0:
            sys.exit(f"these need root: apt-get install {' '.join(DEBIAN)}")
        subprocess.run(["apt-get", "install", "--yes", "--no-install-recommends", *DEBIAN], check=True)
    goal = folder()
    if goal.exists():
        print(f"{goal} is there already; remove it to fetch it again")
        return
    goal.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=goal.parent) as scratch:
        work = Path(scratch) / "tools"
        work.mkdir()
        _npm(KOTLIN, work / "kotlin")
        _npm(RUNTIME, work / "npm")
        (aar,) = (work / "npm").rglob("onnxruntime.aar")
        zipfile.ZipFile(aar).extractall(work / "aar")
        aar.rename(work / "onnxruntime.aar")
        shutil.rmtree(work / "npm")
        debs = fetch_packages(
            ["libandroid-23-java", "dalvik-exchange"], suite="bullseye", architecture="amd64", folder=work / "debs"
        )
        extract(debs, work / "debian")
        work.rename(goal)
    print(goal)


def _npm(package: str, goal: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["npm", "pack", "--silent", package], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
        (archive,) = Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as file:
            file.extractall(goal, filter="data")


if __name__ == "__main__":
    main()
