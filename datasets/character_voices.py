"""Voices of 15 cartoon characters as a folder of links, train/VOICE/ and test/VOICE/, with whole lines held out.

    python datasets/character_voices.py --source FOLDER --out data/voices

Card
    Content  777 recordings, 14 minutes, of 15 voices, ogg, 44.1 or 48 kHz, mostly stereo.
    Source   Debian's package hedgewars-data 1.0.2-6, Data/Sounds/voices; https://www.hedgewars.org.
    Licence  GPL-2 and GFDL-1.3: usr/share/doc/hedgewars-data/copyright in the package.
    Splits   By line: all voices say about the same 60 lines (Hello, Incoming, ...), and a line is in train for all of
             them or in test. train 558, test 219; .082 of test is the
             commonest voice.
             Some voices borrow recordings from others; one that several voices have is left out, since no listener
             could tell whose it is.
    Disk     145 MB packed (nearly all of it is other files of the game); the unpacked files stay where they are.

FOLDER holds, at any depth, what these commands leave (no root needed):
    apt-get download hedgewars-data
    dpkg -x hedgewars-data_*.deb .
Column of OUT/metadata.csv: line.
"""

import argparse
from collections import defaultdict
from pathlib import Path

from organise import Plan, content, fail, held_out, recordings

VOICES = 15


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the unpacked package")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/ and test/")
    args = parser.parse_args(argv)
    by_content: dict[str, list[Path]] = defaultdict(list)
    for path in recordings(args.source, "hedgewars-data"):
        if path.parent.parent.name == "voices":
            by_content[content(path)].append(path)
    voices = {path.parent.name for paths in by_content.values() for path in paths}
    if len(voices) != VOICES:
        fail(f"{args.source} holds {len(voices)} voices, not {VOICES}: get the package with what --help prints.")
    plan, left_out = Plan("recordings"), 0
    for paths in by_content.values():
        if len({path.parent for path in paths}) > 1:
            left_out += len(paths)
            continue
        line = min(path.stem.rstrip("0123456789").lower() for path in paths)  # Ow1, Ow2, ... are one line
        plan.add("test" if held_out(line) else "train", paths[0].parent.name, paths[0].name, paths[0], line=line)
    plan.write(args.out)
    print(f"{left_out} recordings that several voices have are left out.")


if __name__ == "__main__":
    main()
