"""Text files in one folder per class: root/class/*.txt, or root/train|test/class/*.txt (IMDB's layout)."""

from __future__ import annotations

from pydantic import Field

from fmdist.data.class_folders import list_class_files
from fmdist.data.config import Location
from fmdist.data.raw import BadRecord, RawData
from fmdist.data.text_inputs import read_text_file
from fmdist.data.texts import Labelled, TextConfig
from fmdist.errors import DataError

REQUIRES = ("text",)


class Config(TextConfig):
    """Classes are the folders' names in alphabetical order; a file that isn't UTF-8 is a bad record.

    The split layout is that of the Large Movie Review Dataset (Maas et al. 2011, aclanthology.org/P11-1015).
    """

    root: Location
    """Folder that holds one folder per class, or ``train`` (with ``val``, ``test``) that hold them."""
    leave_out: list[str] = Field(default_factory=list)
    """Folders that are no classes, such as ``unsup`` of the Large Movie Review Dataset."""

    def read(self) -> RawData:
        """Return the texts of all files that are UTF-8 and not empty."""
        names, files = list_class_files(self.root, (".txt",), self.leave_out)
        found, bad = [], []
        for file in files:
            try:
                found.append(Labelled(read_text_file(file.path), file.label, str(file.path), file.split))
            except DataError as error:
                bad.append(BadRecord(str(file.path), error.problems[0].problem))
        return self.to_raw(found, bad, self.unfitted(), names)
