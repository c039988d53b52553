"""Dialogues of a puzzle game as a folder of links, train/VOICE/ and test/VOICE/, with transcripts.

    python datasets/fillets.py --source FOLDER --out data/fillets [--languages cs nl]

Card
    Content  3,491 lines, 201 minutes: 1,875 in Czech, 1,616 in Dutch, ogg, 22.05 or 44.1 kHz, mono and stereo; 3,433
             have a transcript. Seven more are the same recordings in another level.
    Source   Debian's packages fillets-ng-data-cs, fillets-ng-data-nl (sound) and fillets-ng-data (transcripts)
             1.0.1-1.1; http://fillets.sourceforge.net.
    Licence  GPL-2: usr/share/doc/*/copyright in the packages.
    Splits   By level of the game, for both languages alike, so that no line is on both sides: train 2,156, test
             1,335; .210 of test is the commonest class.
             Labels are language and voice, by the files' names: cs-m is the small fish in Czech, cs-v the big one;
             everybody else is "other".
    Disk     72 MB packed, and 71 MB for the transcripts (nearly all of it other files of the game); the unpacked files
             stay where they are.

FOLDER holds, at any depth, what these commands leave (no root needed):
    apt-get download fillets-ng-data fillets-ng-data-cs fillets-ng-data-nl
    for package in fillets-ng-data*.deb; do dpkg -x $package .; done
Columns of OUT/metadata.csv: text (as subtitled, which is nearly what is said), english, language, level, line. The same
line in the other language has the same level and line.
"""

import argparse
import re
from pathlib import Path

from organise import Plan, content, fail, held_out, recordings

LANGUAGES = {"cs": 1882, "nl": 1616}
DIALOGUE = re.compile(r'dialogId\(\s*"([^"]+)"\s*,\s*"[^"]*"\s*,\s*"((?:[^"\\]|\\.)*)"\s*\)')
SUBTITLE = re.compile(r'dialogStr\(\s*"((?:[^"\\]|\\.)*)"\s*\)')


def dialogues(path: Path) -> dict[str, tuple[str, str]]:
    """{line: (text, English)} of a dialogs_LANGUAGE.lua."""
    script = path.read_text(encoding="utf-8")
    found = {}
    starts = list(DIALOGUE.finditer(script))
    for number, start in enumerate(starts):
        until = starts[number + 1].start() if number + 1 < len(starts) else len(script)
        if subtitle := SUBTITLE.search(script, start.end(), until):
            found[start[1]] = (_plain(subtitle[1]), _plain(start[2]))
    return found


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"\\(.)", lambda match: " " if match[1] == "n" else match[1], text)).strip()


def voice_of(line: str) -> str:
    """m, v, or other: LEVEL-VOICE-line."""
    parts = line.split("-")
    return parts[1] if len(parts) > 2 and parts[1] in ("m", "v") else "other"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the unpacked packages")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/ and test/")
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=list(LANGUAGES), help="default: both")
    args = parser.parse_args(argv)
    found = recordings(args.source, "fillets-ng-data")
    plan, words, known_sound = Plan("recordings"), dict[tuple[str, str], tuple[str, str]](), set[str]()
    for language in args.languages:
        own = [path for path in found if path.parent.name == language and "sound" in path.parts]
        if len(own) != LANGUAGES[language]:
            fail(
                f"{args.source} holds {len(own):,} lines in {language}, not {LANGUAGES[language]:,}: get the packages "
                "with the commands that --help prints."
            )
        for path in sorted(args.source.rglob(f"*dialogs_{language}.lua")):
            words |= {(language, line): texts for line, texts in dialogues(path).items()}  # lines name their level
        for path in own:
            if (digest := content(path)) in known_sound:  # some levels share lines, and would be on both sides
                continue
            known_sound.add(digest)
            level, line = path.parent.parent.name, path.stem
            text, english = words.get((language, line), ("", ""))
            known = {"text": text, "english": english, "language": language, "level": level, "line": line}
            name, label = f"{level}-{path.name}", f"{language}-{voice_of(line)}"
            plan.add("test" if held_out(level) else "train", label, name, path, as_name=name, **known)
    if not words:
        fail(f"{args.source} holds no dialogs_*.lua: get the package fillets-ng-data as well, as --help prints.")
    plan.write(args.out)
    print(f"{sum(bool(known['text']) for known in plan.metadata.values()):,} of them have transcripts.")


if __name__ == "__main__":
    main()
