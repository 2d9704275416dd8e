"""Films of clips side by side, written as GIF or MP4."""

import importlib.util
import io
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from metarl.files import write_bytes
from metarl.pictures.frames import Frame

STRIP = 22
"""Height of a line of text, in pixels."""
Watch = Callable[[float], object]
"""Called with the share of the work that is done."""
STILL = 1.0
"""Seconds for which the last frame is shown."""
FADED = 0.45
"""Share of white blended into a clip that has ended before the others."""
GIF_FPS = 50
"""Frames per second that browsers show of a GIF at most; they take a tenth of a second for each of a faster one."""
PALETTE_FRAMES = 12
"""Number of frames from which a GIF's palette is chosen."""


class Clip(NamedTuple):
    """The frames of one episode, with a caption."""

    caption: str
    frames: list[Frame]


def check_suffix(path: Path) -> None:
    """Raise ValueError for a suffix whose format cannot be written."""
    if path.suffix not in (".gif", ".mp4"):
        raise ValueError(f"{path} is neither .gif nor .mp4, the formats that films are written in")
    if path.suffix == ".mp4" and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise ValueError('MP4 needs imageio-ffmpeg: pip install "metarl-toolkit[render]", or write a .gif')


def write(
    rows: Sequence[tuple[str, Sequence[Clip]]], path: Path, fps: float, progress: Watch = lambda share: None
) -> Path:
    """Write a film with one titled row of clips per task; return the path.

    All clips start together. A clip that has ended fades and waits for the others. ``progress`` is called with the
    share that is done, from 0 to 1.

    Raises:
        ValueError: a suffix other than .gif and .mp4, or .mp4 without imageio-ffmpeg.
    """
    check_suffix(path)
    encode = _gif if path.suffix == ".gif" else _mp4
    write_bytes(path, encode(list(_composed(rows, progress)), fps, progress))
    return path


def _composed(rows: Sequence[tuple[str, Sequence[Clip]]], progress: Watch) -> Iterator[Image.Image]:
    longest = max(len(clip.frames) for _, clips in rows for clip in clips)
    for time in range(longest):
        yield _stacked([_row(title, clips, time) for title, clips in rows])
        progress((time + 1) / longest / 2)


def _row(title: str, clips: Sequence[Clip], time: int) -> Image.Image:
    panels = [_panel(clip, time) for clip in clips]
    row = Image.new("RGB", (sum(panel.width for panel in panels), STRIP + panels[0].height), "white")
    ImageDraw.Draw(row).text((6, STRIP // 2), title, fill="black", font=ImageFont.load_default(13), anchor="lm")
    left = 0
    for panel in panels:
        row.paste(panel, (left, STRIP))
        left += panel.width
    return row


def _panel(clip: Clip, time: int) -> Image.Image:
    """Return a clip's frame at a time, under its caption; the panel is wide enough for both."""
    frame = Image.fromarray(clip.frames[min(time, len(clip.frames) - 1)])
    if time >= len(clip.frames):
        frame = Image.blend(frame, Image.new("RGB", frame.size, "white"), FADED)
    font = ImageFont.load_default(13)
    width = max(frame.width, math.ceil(font.getlength(clip.caption)) + 12)
    panel = Image.new("RGB", (width, STRIP + frame.height), "white")
    ImageDraw.Draw(panel).text((6, STRIP // 2), clip.caption, fill="black", font=font, anchor="lm")
    left = (width - frame.width) // 2
    panel.paste(frame, (left, STRIP))
    ImageDraw.Draw(panel).rectangle([left, STRIP, left + frame.width - 1, panel.height - 1], outline=(200, 200, 200))
    return panel


def _stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """Return the rows one below another. Sizes are even, as video codecs require."""
    width, height = max(row.width for row in rows), sum(row.height for row in rows)
    whole = Image.new("RGB", (width + width % 2, height + height % 2), "white")
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height
    return whole


def _gif(frames: Sequence[Image.Image], fps: float, progress: Watch) -> bytes:
    """Encode with one palette for all frames and without dithering, so that still regions compress well.

    Of more than 50 frames a second, some are left out, so that the film lasts as long as what it shows.
    """
    every = math.ceil(fps / GIF_FPS)
    frames, fps = [*frames[:-1:every], frames[-1]], fps / every
    chosen = frames[:: math.ceil(len(frames) / PALETTE_FRAMES)]
    palette = _stacked(chosen).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    reduced = []
    for number, frame in enumerate(frames, start=1):
        reduced.append(frame.quantize(palette=palette, dither=Image.Dither.NONE))
        progress(0.5 + number / len(frames) / 2)
    ends = [10 * round(100 * number / fps) for number in range(len(frames))]  # a GIF counts hundredths of a second
    durations = [*(end - start for start, end in pairwise(ends)), round(1000 * STILL)]
    buffer = io.BytesIO()
    reduced[0].save(buffer, "GIF", save_all=True, append_images=reduced[1:], duration=durations, loop=0)
    return buffer.getvalue()


def _mp4(frames: Sequence[Image.Image], fps: float, progress: Watch) -> bytes:
    import imageio_ffmpeg

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        writer = imageio_ffmpeg.write_frames(str(path), frames[0].size, fps=fps, macro_block_size=2)
        writer.send(None)
        whole = [*frames, *[frames[-1]] * round(fps * STILL)]
        for number, frame in enumerate(whole, start=1):
            writer.send(frame.tobytes())
            progress(0.5 + number / len(whole) / 2)
        writer.close()
        return path.read_bytes()
