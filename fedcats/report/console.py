"""A terminal on which no name can do harm."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from fedcats.text import lines_shown


class SafeConsole(Console):
    """Rich's, which lets escape codes in a text through: here they are `shown`."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Segments of it; only Rich's own have control codes."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=lines_shown(segment.text))
