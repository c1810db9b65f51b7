"""The examples of a block, read the same way in both passes."""

from collections.abc import Iterator
from dataclasses import dataclass

from llmtune.config.data import RowConfig
from llmtune.data.cleaning.personal_data import mask_personal_data
from llmtune.data.reading.blocks import Block
from llmtune.data.records import Record
from llmtune.data.shaping.outcome import Unusable
from llmtune.data.shaping.shapes import RowShaper


@dataclass(frozen=True)
class BlockTask:
    """A block and where it belongs; picklable."""

    source: int
    """Number of its source."""
    block: Block


class ExampleReader:
    """Reads blocks; the same block always gives the same examples in the same order. Picklable.

    Args:
        rows: how each source's rows are read.
        masks: whether personal data gives way to placeholders.
    """

    def __init__(self, rows: tuple[RowConfig, ...], *, masks: bool) -> None:
        self._rows = rows
        self.masks = masks

    def read(self, task: BlockTask) -> Iterator[Record | Unusable]:
        """What each row of a block is, nothing masked yet."""
        yield from map(self.shaper(task), task.block.entries())

    def shaper(self, task: BlockTask) -> RowShaper:
        """What makes examples of a block's rows, and counts the columns that they are made of."""
        return RowShaper(self._rows[task.source], task.block.path)

    def kept(self, record: Record) -> Record:
        """A record as it is kept: masked where that is asked for."""
        return mask_personal_data(record) if self.masks else record
