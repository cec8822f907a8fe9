"""A protocol defines a depth score: frame, range, crop and clamping of an evaluation, under a name and a version.

The shipped protocols are ``conf/protocol/*.yaml``; their numbers follow the released evaluation scripts and,
for ``kitti_official``, the benchmark's development kit.
"""

from dataclasses import dataclass

from sa2depth.depth_size import same_view
from sa2depth.errors import DataError, ShapeError
from sa2depth.metrics.any_size import by, padded_size
from sa2depth.metrics.formulas import METRICS
from sa2depth.metrics.protocol_fields import KINDS, check_fields

# Fractions of height (top, bottom) and width (left, right), from Garg et al. (2016) and Eigen et al. (2014).
_FRACTIONS = {
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "kitti_eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
}
# Eigen's crop of NYU v2 in pixels; it is defined on a 480x640 frame only.
_NYU_FRAME = (480, 640)
_NYU_BOX = (45, 471, 41, 601)

Box = tuple[int, int, int, int]
"""``(top, bottom, left, right)`` in pixels, bottom and right excluded."""


@dataclass(frozen=True)
class Protocol:
    """An evaluation protocol. It is frozen, because a score belongs to exactly one protocol.

    An image and its truth are cut to ``frame``. The network sees that frame as ``input`` says, its prediction is
    brought back to the frame, and the part inside ``crop`` is scored. Truth is cut, never resampled: if it has fewer
    pixels than its image, the prediction is resized to it, and ``crop`` applies at that size.

    Attributes:
        name: Unique name, written into every result.
        version: Increases whenever a change of the file changes a score.
        min_depth: Lower limit in metres: ground truth at or below it is not scored, predictions are raised to
            it.
        max_depth: Upper limit in metres: ground truth at or above it is not scored, predictions are lowered
            to it.
        crop: ``none``, ``nyu_eigen`` (rows 45-470, columns 41-600 of 480x640, no other frame), ``nyu_pixels``
            (the same pixels of any frame, cut to it), ``garg`` or ``kitti_eigen`` (fractions of the frame).
        clip_both_at: Metres at which prediction *and* ground truth are clipped before scoring (SUN RGB-D: 8),
            or None. Pixels that saturate in both count as perfect.
        expected_images: Number of images with ground truth in the full test split, or None for any number;
            ``check_images`` fails on another count.
        images_without_truth: Number of images in the full split that have no ground truth and are left out.
        frame: ``(height, width)`` of the bottom-centre window to which image and truth are cut before
            anything else, or None for the whole image.
        input: How the network sees the frame (`sa2depth.metrics.view`): ``as_is``, ``pad``, ``resize``,
            ``max_side`` or ``bottom_centre``.
        input_size: ``(height, width)`` in pixels, for ``resize`` and ``bottom_centre``.
        max_side: Longest side in pixels, for ``max_side``.
        metrics: Names of the reported errors, in this order, from ``KNOWN_METRICS``.
        depth_ranges: Rising edges in metres; errors are also pooled over the pixels of each interval of true depth
            (``Evaluation.by_depth``), unless this is empty.
        flip: Whether the prediction is averaged with the one on the mirrored image (``flip_average``).
        description: One sentence for people, copied into the results.

    Raises:
        ConfigError: A value is out of its range, or two contradict each other.
    """

    name: str
    version: int
    min_depth: float
    max_depth: float
    crop: str = "none"
    clip_both_at: float | None = None
    expected_images: int | None = None
    images_without_truth: int = 0
    frame: tuple[int, int] | None = None
    input: str = "as_is"
    input_size: tuple[int, int] | None = None
    max_side: int | None = None
    metrics: tuple[str, ...] = METRICS
    depth_ranges: tuple[float, ...] = ()
    flip: bool = False
    description: str = ""

    def __post_init__(self) -> None:
        for key in ("frame", "input_size", "metrics", "depth_ranges"):
            if isinstance(getattr(self, key), list):  # YAML gives lists
                object.__setattr__(self, key, tuple(getattr(self, key)))
        check_fields({key: getattr(self, key) for key in KINDS}, self.name)

    def frame_box(self, height: int, width: int) -> Box:
        """The place of the frame in an image of ``height`` x ``width`` pixels.

        It is the bottom-centre window of the KITTI benchmark's own cropping: rows from ``height - h``, columns from
        ``int((width - w) / 2)``.

        Raises:
            ShapeError: The image is smaller than the frame.
        """
        if self.frame is None:
            return 0, height, 0, width
        return _bottom_centre(height, width, self.frame, f"protocol '{self.name}': the frame")

    def input_box(self, height: int, width: int) -> Box:
        """The part of a *frame* of ``height`` x ``width`` pixels that the network sees: all except in bottom_centre.

        Raises:
            ShapeError: The frame is smaller than the window, or the window does not hold the crop: the network
                would be scored on pixels that it has not seen.
        """
        if self.input != "bottom_centre" or self.input_size is None:
            return 0, height, 0, width
        where = f"protocol '{self.name}': the network's window"
        top, bottom, left, right = window = _bottom_centre(height, width, self.input_size, where)
        box = self._crop_box(height, width)
        if box[0] < top or box[1] > bottom or box[2] < left or box[3] > right:
            raise ShapeError(
                f"{where} {_words(window)} of a {height}x{width} frame does not hold the scored box "
                f"{_words(box)}: enlarge input_size, or use another crop or input policy"
            )
        return window

    def crop_box(self, height: int, width: int) -> Box:
        """The scored part of an image, in its own pixels: ``(top, bottom, left, right)``.

        Args:
            height: Height of the image in pixels; whole, or already cut to the protocol's frame.
            width: Width of the same image.

        Raises:
            ShapeError: The image is smaller than the frame, or the crop is defined on another frame.
        """
        top, bottom, left, right = self.frame_box(height, width)
        box = self._crop_box(bottom - top, right - left)
        return top + box[0], top + box[1], left + box[2], left + box[3]

    def check_smaller_truth(self, image: tuple[int, int], truth: tuple[int, int]) -> None:
        """Refuse a truth of another size than its image if this protocol does not define how to score it.

        Args:
            image: ``(H, W)`` in pixels.
            truth: ``(h, w)`` in pixels.

        Raises:
            ShapeError: The truth does not show the view of the image (`sa2depth.depth_size`), or the protocol cuts at
                pixels of the image, which have no counterpart in a smaller map.
        """
        sizes = f"a depth map of {by(truth)} beside an image of {by(image)}"
        if not same_view(truth, image):
            raise ShapeError(
                f"{sizes}: expected the same size, or fewer pixels of the same aspect (within 1 %)"
            )
        cuts = {
            f"frame={by(self.frame or ())}": self.frame is not None,
            f"crop={self.crop}": self.crop == "nyu_pixels",
            f"input={self.input}": self.input == "bottom_centre",
        }
        if counted := [name for name, yes in cuts.items() if yes]:
            raise ShapeError(
                f"protocol '{self.name}' counts in pixels of the image ({', '.join(counted)}), and does not fit "
                f"{sizes}: use a protocol without these cuts, such as protocol=custom, or depth maps of the size of "
                "their images"
            )

    def check_images(self, found: int, without_truth: int = 0) -> None:
        """Refuse to call a partial evaluation by this protocol's name.

        If ``expected_images`` is None (partial runs), images without truth may be fewer than the protocol
        says, never more.

        Args:
            found: Number of images to score: those with ground truth.
            without_truth: Number of images that are left out because they have none.

        Raises:
            DataError: There is no image, or the full split has another number of either kind.
        """
        if found < 1:
            raise DataError(
                f"protocol '{self.name}': no image to evaluate; check the data folder and the split"
            )
        if self.expected_images is not None and found != self.expected_images:
            raise DataError(
                f"protocol '{self.name}' has {self.expected_images} images, but {found} were evaluated: "
                "check the data folder and the split, or set protocol.expected_images=null for a partial run"
            )
        partial = self.expected_images is None and without_truth < self.images_without_truth
        if without_truth != self.images_without_truth and not partial:
            raise DataError(
                f"protocol '{self.name}' has {self.images_without_truth} images without ground truth, but "
                f"{without_truth} were found: complete the data set, or, if that many really have none, set "
                f"protocol.images_without_truth={without_truth}"
            )

    def check_multiple(self, multiple: int, image: tuple[int, int] | None = None) -> None:
        """Refuse, before anything runs, a network that cannot take the protocol's frame as it is.

        Args:
            multiple: Sides of the network's input are multiples of this many pixels.
            image: ``(height, width)`` of an image of the data set, if known.

        Raises:
            ShapeError: The input is ``as_is`` and a side of the frame is not a multiple, or the frame does not fit
                the image.
        """
        size = self.frame or self._own_frame()
        if image is not None:
            top, bottom, left, right = self.frame_box(*image)
            size = bottom - top, right - left
            self.input_box(*size)
        if self.input == "as_is" and size is not None and any(side % multiple for side in size):
            raise ShapeError(
                f"protocol '{self.name}': a {by(size)} frame cannot go through the network as it is, because the "
                f"network needs sides that are multiples of {multiple}: use protocol.input=pad (mirrored up to the "
                "next multiple), resize, max_side or bottom_centre; the results then give a shipped protocol another "
                "name"
            )

    def describe(self, frame: tuple[int, int] | None = None, multiple: int = 32) -> list[str]:
        """The protocol in words, one line per fact, for the screen and for reports.

        Args:
            frame: ``(height, width)`` of the images in pixels, for the crop box; None if they differ.
            multiple: The network's input is padded to multiples of this many pixels.

        Raises:
            ShapeError: The protocol does not fit images of that size.
        """
        size = frame or self.frame or self._own_frame()
        clip = "" if self.clip_both_at is None else f", both clipped at {self.clip_both_at:g} m"
        count = "any number" if self.expected_images is None else f"{self.expected_images:,}"
        missing = f", {self.images_without_truth} more without truth" if self.images_without_truth else ""
        lines = [
            f"protocol: {self.name} v{self.version}: {self.description}".rstrip(": "),
            f"images: {count}{missing}",
            f"frame: {self._frame_words()}",
            f"input: {self._input_words(multiple)}",
            f"crop: {self.crop}"
            + ("" if size is None else f", {_words(self.crop_box(*size))} of {by(size)}"),
            f"depth: {self.min_depth:g}-{self.max_depth:g} m, limits excluded{clip}",
            f"flip averaging: {'yes' if self.flip else 'no'}",
            f"metrics: {', '.join(self.metrics)}; mean of per-image errors",
        ]
        if self.depth_ranges:
            lines.append(f"also by true depth: {', '.join(f'{edge:g}' for edge in self.depth_ranges)} m")
        return lines

    def _crop_box(self, height: int, width: int) -> Box:
        """The scored box in pixels of a frame of that size."""
        if self.crop == "none":
            return 0, height, 0, width
        if self.crop in _FRACTIONS:
            top, bottom, left, right = _FRACTIONS[self.crop]
            return int(top * height), int(bottom * height), int(left * width), int(right * width)
        # OFFICIAL: the released scripts put this pixel box onto frames of any size; here only `nyu_pixels` does.
        if self.crop == "nyu_eigen" and (height, width) != _NYU_FRAME:
            raise ShapeError(
                f"protocol '{self.name}': the crop nyu_eigen is defined on 480x640 frames, not on "
                f"{height}x{width}: bring image and truth to that size or use another protocol"
            )
        top, bottom, left, right = _NYU_BOX
        if height <= top or width <= left:
            raise ShapeError(
                f"protocol '{self.name}': the crop {self.crop}, {_words(_NYU_BOX)}, leaves nothing of a "
                f"{height}x{width} frame: use larger images or another protocol"
            )
        return top, min(bottom, height), left, min(right, width)

    def _frame_words(self) -> str:
        return "whole image" if self.frame is None else f"bottom-centre {by(self.frame)} of the image"

    def _own_frame(self) -> tuple[int, int] | None:
        """The only size of frame that the crop is defined on."""
        return _NYU_FRAME if self.crop == "nyu_eigen" else None

    def _input_words(self, multiple: int) -> str:
        words = {
            "as_is": "the frame as it is",
            "pad": f"the frame, mirrored at the right and the bottom up to the next multiple of {multiple}",
            "resize": "the frame resized to {size}{note}, the prediction resized back (bilinear)",
            "max_side": f"the frame shrunk to at most {self.max_side} pixels, the prediction resized back "
            "(bilinear)",
            "bottom_centre": "bottom-centre {size} of the frame{note}",
        }[self.input]
        if self.input_size is None:
            return words
        padded = padded_size(self.input_size, multiple)
        note = "" if padded == self.input_size else f", mirrored up to {by(padded)} (multiples of {multiple})"
        return words.format(size=by(self.input_size), note=note)


def _bottom_centre(height: int, width: int, size: tuple[int, int], what: str) -> Box:
    if height < size[0] or width < size[1]:
        raise ShapeError(
            f"{what} is {by(size)} pixels (height x width), but an image is only {height}x{width}: check the data "
            "set, or use a protocol for smaller images"
        )
    top, left = height - size[0], (width - size[1]) // 2
    return top, top + size[0], left, left + size[1]


def _words(box: Box) -> str:
    return f"rows {box[0]}-{box[1] - 1}, columns {box[2]}-{box[3] - 1}"
