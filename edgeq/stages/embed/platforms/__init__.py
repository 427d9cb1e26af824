"""The kinds of app builds: one module and one folder of templates each."""

from edgeq.stages.embed.platforms.android import ANDROID
from edgeq.stages.embed.platforms.c import C_HEADER
from edgeq.stages.embed.platforms.ios import IOS
from edgeq.stages.embed.platforms.python import PYTHON_MODULE
from edgeq.stages.embed.platforms.react_native import REACT_NATIVE
from edgeq.stages.embed.platforms.web import WEB

__all__ = ["PLATFORMS"]

PLATFORMS = {platform.name: platform for platform in (ANDROID, C_HEADER, IOS, PYTHON_MODULE, REACT_NATIVE, WEB)}
