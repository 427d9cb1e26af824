"""The kinds of app builds: one module and one folder of templates each."""

from edgeq.stages.embed.platforms.android import ANDROID

__all__ = ["PLATFORMS"]

PLATFORMS = {platform.name: platform for platform in (ANDROID,)}
