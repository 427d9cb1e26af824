"""Debian's packages are fetched and unpacked beside the machine's own apt, never through it."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from edgeq.errors import ProviderError
from edgeq.sandbox import debian

needs_apt = pytest.mark.skipif(shutil.which("apt-config") is None, reason="needs apt")
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with one program, one library and a script that must not run."""
    tree = tmp_path / "tree"
    for name in ("usr/bin/tool", "usr/lib/libtool.so", "usr/lib64/ld-tool.so", "usr/share/doc/tool/copyright"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    (tree / "DEBIAN").mkdir()
    control = "Package: tool\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@b>\nDescription: none\n"
    (tree / "DEBIAN" / "control").write_text(control)
    script = tree / "DEBIAN" / "postinst"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    script.chmod(0o755)
    file = tmp_path / "tool.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, file], check=True, capture_output=True)
    return file


@needs_apt
def test_apt_gets_folders_of_its_own_and_keeps_the_way_to_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = tmp_path / "way.conf"
    way.write_text('Acquire::http::Proxy "http://proxy.invalid:1";\nAPT::Update::Pre-Invoke {"echo hook";};\n')
    monkeypatch.setenv("APT_CONFIG", str(way))
    (tmp_path / "debs").mkdir()
    work = tmp_path / "work"
    work.mkdir()
    file = debian._configure(work, "http://mirror.invalid/debian", "trixie", "arm64", tmp_path / "debs")
    settings = debian._apt(["apt-config", "dump"], file, None)
    assert 'Acquire::http::Proxy "http://proxy.invalid:1"' in settings
    assert "Invoke" not in settings
    for key in ("Dir::State::lists", "Dir::State::status", "Dir::Etc::sourcelist", "Dir::Cache::archives"):
        assert f'{key} "{tmp_path}' in settings
    fields = "$(CREATED_BY) $(SITE) $(RELEASE) $(ARCHITECTURE)"
    listed = debian._apt(["apt-get", "indextargets", "--no-release-info", "--format", fields], file, None)
    assert "Packages http://mirror.invalid/debian trixie arm64" in listed.splitlines()
    assert len({line.split()[1] for line in listed.splitlines()}) == 1


@needs_apt
def test_apt_fails_in_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="Unable to locate package no-such-package"):
        debian._apt(["apt-get", "download", "no-such-package"], None, tmp_path)


def test_other_systems_are_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"ID": "fedora", "NAME": "Fedora Linux"})
    with pytest.raises(ProviderError, match="Fedora Linux"):
        debian.suite_of_this_machine()


@needs_dpkg
def test_a_package_is_unpacked_without_its_scripts(package: Path, tmp_path: Path) -> None:
    debian.extract([package], tmp_path / "root")
    assert (tmp_path / "root/usr/bin/tool").read_text() == "usr/bin/tool"
    for name in ("lib/libtool.so", "lib64/ld-tool.so"):  # programs name their loader by /lib64 on x86-64
        assert (tmp_path / "root" / name).read_text() == f"usr/{name}", "Debian 13 links /lib to /usr/lib"
    assert not (tmp_path / "ran").exists()


@needs_dpkg
def test_single_files_are_taken_out_of_a_package(package: Path, tmp_path: Path) -> None:
    (found,) = debian.extract_files(package, ["usr/bin/tool"], tmp_path / "only")
    assert found == tmp_path / "only/tool"
    assert [file.name for file in (tmp_path / "only").iterdir()] == ["tool"]
    with pytest.raises(ProviderError, match=r"does not hold \./usr/bin/other"):
        debian.extract_files(package, ["usr/bin/other"], tmp_path / "none")
