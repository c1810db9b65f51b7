"""Writes docs/configuration.md from the config's dataclasses and the files in conf (`make reference`)."""

from pathlib import Path

from llmtune.config.reference import reference_page
from llmtune.flags import FLAGS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"


def main() -> None:
    PAGE.write_text(reference_page(FLAGS), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
