"""Raw pixels to what a model computes with, as a piece of graph: resize, crop, channels, normalize, layout.

Each step is what ``edgeq.stages.calibrate.images`` does with Pillow, in the same order and with the same rounding.
An antialiased Resize of uint8 in ONNX Runtime is Pillow's algorithm: a horizontal and a vertical pass, each rounded
to a whole level. With ``exclude_outside`` the border is Pillow's, too. What is left are ties that float32 breaks
otherwise than float64: one level, at a few pixels in a thousand (see ``docs/preprocessing.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeq.errors import ConfigError
from edgeq.geometry import origin, resized
from edgeq.graph import TensorInfo
from edgeq.recipe import ImagePreprocess
from edgeq.stages.wrap.snippet import Lines, parse_snippet

__all__ = ["PIXELS", "SEEN", "pixel_front"]

PIXELS = "pixels"
"""What the new input is called."""

SEEN = f"{PIXELS}/seen"
"""What the second output is called that says which part of a picture the model sees."""

_MADE = "made"

_LEAST_OPSET = 18

_RESIZE = {
    "bicubic": 'mode = "cubic", cubic_coeff_a = -0.5, antialias = 1, exclude_outside = 1',
    "bilinear": 'mode = "linear", antialias = 1, exclude_outside = 1',
}

_LUMA = np.array([19595, 38470, 7471], np.int32)
"""ITU-R BT.601, in parts of 65536, as Pillow has it."""


def pixel_front(
    reads: TensorInfo,
    steps: ImagePreprocess,
    size: tuple[int, int] | None,
    *,
    opset: int,
    channels: int | None = None,
    tells_seen: bool = False,
) -> ir.Model:
    """The piece of graph from ``pixels``, uint8 ``[batch, height, width, channels]``, to the model's input.

    Args:
        reads: The model's input, ``[batch, channels, height, width]``, or with the channels last.
        steps: What is to be done.
        size: ``(height, width)`` of all pictures, or None: any, all steps then follow from the picture's own.
        opset: The model's.
        channels: 3 or 4; None: either. A fourth one (alpha) is ignored.
        tells_seen: Also give ``pixels/seen``, float32 ``[4]``, what ``edgeq.geometry.seen`` says of each picture; only
            where that depends on the picture's size.

    Raises:
        ConfigError: steps that no operator computes, pictures too small for the crop, another input than one of
            pictures, or an opset before Resize could filter (18).
    """
    _check(reads, steps, size, opset)
    return _Front(reads, steps, size, channels).build(opset, tells_seen)


class _Front:
    """Lines of the snippet and its constants; the methods run in the order of ``build``."""

    def __init__(
        self, reads: TensorInfo, steps: ImagePreprocess, size: tuple[int, int] | None, channels: int | None
    ) -> None:
        self.reads = reads
        self.steps = steps
        self.size = size
        self.channels = channels
        self.made = Lines(PIXELS)
        self._add = self.made.add
        self.last = _quote(PIXELS)
        # Names of the size after the resize, of the crop's origin in it, and of what is filled before: int64 [2] each.
        self.scaled = self.start = self.before = ""

    def build(self, opset: int, tells_seen: bool) -> ir.Model:
        if self.steps.color == "L":
            self._grey()
        if self.steps.letterbox is None:
            self._resize()
            self._crop()
        else:
            self._letterbox()
        self._channels()
        self._arrange()
        self._normalize()
        height, width = self.size or ("height", "width")
        channels = "channels" if self.channels is None else self.channels
        given = f"uint8[batch, {height}, {width}, {channels}] {PIXELS}"
        made = f"{_TYPES[self.reads.dtype.name]}[{', '.join(str(d) for d in self._made())}] {_MADE}"
        if tells_seen:
            self._tell_seen()
            made += f", float[4] {_quote(SEEN)}"
        model = parse_snippet(f"({given}) => ({made}) {{ {self.made.text} }}", self.made.constants, opset)
        # The model's own names are a stranger's text: they go past the parser.
        value, result = model.graph.inputs[0], model.graph.outputs[0]
        for one in (value, result):
            assert one.shape is not None
            one.shape = ir.Shape([self.reads.shape[0], *one.shape[1:]])
        result.name = self.reads.name
        return model

    def _made(self) -> tuple[int | str, ...]:
        height, width = self.steps.crop
        count = 1 if self.steps.color == "L" else 3
        return ("batch", count, height, width) if self.steps.layout == "NCHW" else ("batch", height, width, count)

    def _step(self, name: str, call: str, constants: Mapping[str, Any] = MappingProxyType({})) -> None:
        """One more step of the picture itself: ``$`` stands for what was made of it so far."""
        self.last = self._add(name, call.replace("$$", self.last), constants)

    # -- the steps

    def _grey(self) -> None:
        """``L = (19595 R + 38470 G + 7471 B + 32768) / 65536``, in integers, before anything is resized."""
        self._step("colours", "Gather<axis = 3>($$, $which)", {"which": [0, 1, 2]})
        self._step("wide", "Cast<to = 6>($$)")
        self._step("weighted", "Mul($$, $luma)", {"luma": _LUMA})
        self._step("summed", "ReduceSum<keepdims = 1>($$, $axis)", {"axis": [3]})
        self._step("rounded", "Add($$, $half)", {"half": np.int32(1 << 15)})
        self._step("levels", "Div($$, $whole)", {"whole": np.int32(1 << 16)})
        self._step("grey", "Cast<to = 2>($$)")

    def _resize(self) -> None:
        """The short side to ``resize``, the long side in proportion, rounded down; or straight to ``crop``."""
        steps = self.steps
        if steps.resize is None and not steps.stretch:
            return
        if self.size is not None or steps.stretch:
            wanted = resized(steps, self.size or (0, 0))
            if wanted != self.size:
                self._step("resized", f"{self._filter}($$, , , $size)", {"size": wanted})
            return
        assert steps.resize is not None
        sides = self._add("sides", f"Shape<start = 1, end = 3>({self.last})")
        short = self._add("short", f"ReduceMin<keepdims = 1>({sides})")
        scaled = self._add("scaled", f"Mul({sides}, $resize)", {"resize": steps.resize})
        size = self._add("size", f"Div({scaled}, {short})")
        self._step("resized", f"{self._filter}($$, , , {size})")

    def _crop(self) -> None:
        """The middle; an odd number of pixels to leave out is halved as Python rounds, to even."""
        steps, crop = self.steps, np.array(self.steps.crop)
        if steps.stretch:
            return
        if self.size is not None:
            start = np.array(origin(steps, self.size))
            if resized(steps, self.size) != steps.crop:
                cut = {"start": start, "end": start + crop, "axes": [1, 2]}
                self._step("cropped", "Slice($$, $start, $end, $axes)", cut)
            return
        sides = self._add("found", f"Shape<start = 1, end = 3>({self.last})")
        spare = self._add("spare", f"Sub({sides}, $crop)", {"crop": crop})
        half = self._add("half", f"Div({spare}, $two)", {"two": 2})
        # Of an odd number half a pixel is left over: it goes where it makes the half even.
        odd, odd_half = (self._add(name, f"Mod({of}, $two)", {"two": 2}) for name, of in (("odd", spare), ("up", half)))
        more = self._add("more", f"Mul({odd}, {odd_half})")
        self.scaled, self.start = sides, self._add("start", f"Add({half}, {more})")
        end = self._add("end", f"Add({self.start}, $crop)", {"crop": crop})
        self._step("cropped", f"Slice($$, {self.start}, {end}, $axes)", {"axes": [1, 2]})
        self._fix()

    def _letterbox(self) -> None:
        """In proportion into ``crop``, filled around it."""
        crop, at = np.array(self.steps.crop), {"fill": np.uint8(self.steps.fill), "axes": [1, 2]}
        if self.size is not None:
            wanted, start = np.array(resized(self.steps, self.size)), np.array(origin(self.steps, self.size))
            if tuple(wanted) != self.size:
                self._step("resized", f"{self._filter}($$, , , $size)", {"size": wanted})
            if np.any(wanted != crop):
                at["pads"] = np.concatenate([-start, crop + start - wanted])
                self._step("filled", "Pad($$, $pads, $fill, $axes)", at)
            return
        sides = self._add("sides", f"Shape<start = 1, end = 3>({self.last})")
        size = self.scaled = self._fitted(sides)
        self._step("resized", f"{self._filter}($$, , , {size})")
        after = self._add("spare", f"Sub($crop, {size})", {"crop": crop})
        if self.steps.letterbox == "centre":
            before = self._add("before", f"Div({after}, $two)", {"two": 2})
            self.before = before
            after = self._add("after", f"Sub({after}, {before})")
            pads = self._add("pads", f"Concat<axis = 0>({before}, {after})")
        else:
            pads = self._add("pads", f"Concat<axis = 0>($none, {after})", {"none": [0, 0]})
        self._step("filled", f"Pad($$, {pads}, $fill, $axes)", at)
        self._fix()

    def _fitted(self, sides: str) -> str:
        """``[height, width]`` within ``crop`` in the proportion of ``sides``, as `edgeq.geometry` rounds.

        In integers, as some builds of ONNX Runtime have no float64. Each side is multiplied by what would make the
        height, and the width, as long as ``crop`` says; the smaller product is what fits.
        """
        column = self._add("column", f"Reshape({sides}, $shape)", {"shape": [2, 1]})
        twice = self._add("twice", f"Mul({column}, $crop)", {"crop": [[2 * side for side in self.steps.crop]]})
        above = self._add("above", f"Add({twice}, {sides})")
        double = self._add("double", f"Mul({sides}, $two)", {"two": 2})
        up, rest = self._add("rounded_up", f"Div({above}, {double})"), self._add("rest", f"Mod({above}, {double})")
        # Without a rest it was a tie: an odd number is one too many then.
        odd = self._add("odd", f"Mod({up}, $two)", {"two": 2})
        untied = self._add("untied", f"Min({rest}, $one)", {"one": 1})
        tied = self._add("tied", f"Sub($one, {untied})", {"one": 1})
        more = self._add("more", f"Mul({odd}, {tied})")
        nearest = self._add("nearest", f"Sub({up}, {more})")
        least = self._add("least", f"ReduceMin<keepdims = 0>({nearest}, $axis)", {"axis": [1]})
        return self._add("size", f"Max({least}, $one)", {"one": 1})

    def _tell_seen(self) -> None:
        """Left, top, right, bottom: the origin and ``crop`` behind it, in parts of the size after the resize."""
        whole = {"whole": [0, 0, *self.steps.crop]}
        if self.before:
            moved = self._add("filled_before", f"Concat<axis = 0>({self.before}, {self.before})")
            corners = self._add("corners", f"Sub($whole, {moved})", whole)
        elif self.start:
            moved = self._add("cut_before", f"Concat<axis = 0>({self.start}, {self.start})")
            corners = self._add("corners", f"Add($whole, {moved})", whole)
        else:
            corners = self._add("corners", "Identity($whole)", whole)
        sides = self._add("scaled_twice", f"Concat<axis = 0>({self.scaled}, {self.scaled})")
        corners, sides = (
            self._add(f"{name}_numbers", f"Cast<to = 1>({of})") for name, of in (("corner", corners), ("side", sides))
        )
        parts = self._add("parts", f"Div({corners}, {sides})")
        self._add("seen", f"Gather({parts}, $order)", {"order": [1, 0, 3, 2]})

    @property
    def _filter(self) -> str:
        how = _RESIZE[self.steps.interpolation]
        return f'Resize<axes = [1, 2], coordinate_transformation_mode = "half_pixel", {how}>'

    def _fix(self) -> None:
        """The size is ``crop`` now, but the operators hide it: all behind is of fixed size again."""
        self._step("fixed", "Reshape($$, $shape)", {"shape": [0, *self.steps.crop, -1]})

    def _channels(self) -> None:
        """Alpha goes, and BGR is put in order; after the crop, where there is least to copy."""
        if self.steps.color == "BGR":
            self._step("ordered", "Gather<axis = 3>($$, $which)", {"which": [2, 1, 0]})
        elif self.steps.color == "RGB" and self.channels != 3:
            self._step("colours", "Gather<axis = 3>($$, $which)", {"which": [0, 1, 2]})

    def _arrange(self) -> None:
        if self.steps.layout == "NCHW":
            self._step("planes", "Transpose<perm = [0, 3, 1, 2]>($$)")

    def _normalize(self) -> None:
        """``(pixel - mean) / std`` in float32, as the recipe computes it; the last step is the model's input."""
        calls: list[tuple[str, str, dict[str, np.ndarray]]] = []
        if self.reads.dtype != np.uint8:
            # By way of int32: Qualcomm's HTP casts uint8 to floats of 0 and 1 (measured, onnxruntime-qnn 2.7.0).
            calls.append(("whole_numbers", "Cast<to = 6>($$)", {}))
            calls.append(("numbers", f"Cast<to = {_ONNX[self.reads.dtype.name]}>($$)", {}))
        for name, op, numbers, neutral in (
            ("centred", "Sub", self.steps.mean, 0),
            ("scaled_to", "Div", self.steps.std, 1),
        ):
            array = self._per_channel(numbers)
            if np.any(array != neutral):
                calls.append((name, f"{op}($$, $by)", {"by": array}))
        for name, call, constants in calls or [("numbers", "Identity($$)", {})]:
            self._step(name, call, constants)
        *before, last = self.made.lines
        self.made.lines = [*before, f"{_MADE} = {last.split(' = ', 1)[1]}"]

    def _per_channel(self, numbers: tuple[float, ...]) -> np.ndarray:
        array = np.array(numbers, np.float32)
        if np.all(array == array[0]):
            return array[0].reshape(())
        return array.reshape(3, 1, 1) if self.steps.layout == "NCHW" else array


_ONNX = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "float16": 10}
_TYPES = {name: name.replace("float32", "float") for name in _ONNX}


def _quote(name: str) -> str:
    return f'"{name}"'


def _check(reads: TensorInfo, steps: ImagePreprocess, size: tuple[int, int] | None, opset: int) -> None:
    remedy = "leave out --embed-preprocessing: the package then says what an app has to do"
    if len(reads.shape) != 4 or reads.dtype.name not in _ONNX:
        raise ConfigError(f"pixels cannot become {reads.describe()}: it is no picture", remedy=remedy)
    if (steps.resize or steps.stretch or steps.letterbox) and steps.interpolation not in _RESIZE:
        what = f"no ONNX operator resizes with the filter {steps.interpolation!r} as Pillow does, to the pixel"
        raise ConfigError(what, remedy=remedy)
    if opset < _LEAST_OPSET:
        what = f"the graph has opset {opset}, and a Resize that filters needs {_LEAST_OPSET}"
        raise ConfigError(what, remedy=remedy)
    smallest = resized(steps, size) if size is not None else (steps.resize or max(steps.crop),) * 2
    if not (steps.stretch or steps.letterbox) and (smallest[0] < steps.crop[0] or smallest[1] < steps.crop[1]):
        raise ConfigError(
            f"after resizing a picture may have {smallest[0]}x{smallest[1]} pixels (height x width), fewer than the "
            f"crop of {steps.crop[0]}x{steps.crop[1]}",
            remedy="set `resize`, `letterbox` or `stretch` in the recipe's [preprocess], or give larger pictures",
        )
