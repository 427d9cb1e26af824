"""The command that lists devices."""

from __future__ import annotations

import click

from edgeq.cli.options import command, print_json

__all__ = ["devices_command"]


@command(None, name="devices")
@click.option("--device", "-d", "named", multiple=True, metavar="DEVICE", help="Look at this one only; repeatable.")
def devices_command(json_output: bool, named: tuple[str, ...]) -> None:
    """List the devices that can be reached, and say why others cannot be used.

    Nothing is run on them. Those that are reached by name alone, such as ssh:HOST, are listed with
    --device; exit code 5 says that one of those named cannot be used.

    \b
    Example:
      edgeq devices --device browser:wasm
    """
    from edgeq.cli.progress import make_progress
    from edgeq.devices.listing import list_devices
    from edgeq.devices.registry import DEVICE_KINDS, DISCOVERY
    from edgeq.errors import ProviderError

    progress = make_progress(quiet=json_output)
    progress.start("looking for devices", None)
    try:
        found = list_devices(named)
    finally:
        progress.finish()
    if json_output:
        print_json(found)
    else:
        from edgeq.cli.render_devices import show_devices

        show_devices(found, by_name_only=[] if named else [kind for kind in DEVICE_KINDS if kind not in DISCOVERY])
    if named and any(info.problem for info in found):
        raise SystemExit(ProviderError.exit_code)
