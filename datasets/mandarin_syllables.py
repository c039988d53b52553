"""Mandarin syllables as a folder of links, train/INITIAL/ and test/INITIAL/: the consonant that a syllable begins with.

    python datasets/mandarin_syllables.py --source FOLDER --out data/mandarin [--test-voice 5]

Card
    Content  2,358 syllables, 13.7 minutes, said by two voices, ogg, 44.1 kHz mono; 22 initials (21 consonants, none).
    Source   Debian's package gcin-voice 0~20170223-3.
    Licence  Voice 3: GPL-3 or LGPL-3; voice 5: CC BY 3.0 (usr/share/doc/gcin-voice/copyright in the package).
    Splits   By syllable: one that is in test is there with all its tones and both voices. train 1,700, test
             658; .091 of test is the commonest class.
             --test-voice 3 or 5 trains on the other voice instead, which is hard: a linear classifier on log-mel
             statistics gives .13 there, .445 with held-out syllables, and .11 is the commonest class.
             Tones are in OUT/metadata.csv, but do not use them as labels: within a voice they are read off the
             duration.
    Disk     7.7 MB packed; the unpacked files stay where they are.

FOLDER holds, at any depth, what these commands leave (no root needed):
    apt-get download gcin-voice
    dpkg -x gcin-voice_*.deb .
Labels are pinyin; "none" is a syllable that begins with its vowel. Columns of OUT/metadata.csv: voice, syllable (in
bopomofo), tone.
"""

import argparse
import unicodedata
from pathlib import Path

from organise import Plan, fail, held_out, recordings

PINYIN = ("b", "p", "m", "f", "d", "t", "n", "l", "g", "k", "h", "j", "q", "x", "zh", "ch", "sh", "r", "z", "c", "s")
INITIALS = dict(zip("ㄅㄆㄇㄈㄉㄊㄋㄌㄍㄎㄏㄐㄑㄒㄓㄔㄕㄖㄗㄘㄙ", PINYIN, strict=True))
VOICES = {"3": 1200, "5": 1158}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the unpacked package")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/ and test/")
    parser.add_argument("--test-voice", choices=VOICES, help="test on this voice (default: on held-out syllables)")
    args = parser.parse_args(argv)
    plan, counts = Plan("recordings"), dict.fromkeys(VOICES, 0)
    for path in recordings(args.source, "gcin-voice"):
        folder, voice = unicodedata.normalize("NFC", path.parent.name), path.stem
        if voice not in VOICES or path.parent.parent.name != "ogg":
            continue
        counts[voice] += 1
        syllable, tone = (folder[:-1], folder[-1]) if folder[-1].isdigit() else (folder, "")
        test = held_out(syllable) if args.test_voice is None else voice == args.test_voice
        initial = INITIALS.get(syllable[0], "none")
        known = {"voice": voice, "syllable": syllable, "tone": tone}
        plan.add("test" if test else "train", initial, path.name, path, as_name=f"{folder}-{path.name}", **known)
    if counts != VOICES:
        fail(
            f"{args.source} holds {counts['3']:,} and {counts['5']:,} syllables of the two voices, not "
            f"{VOICES['3']:,} and {VOICES['5']:,}: get the package with the commands that --help prints."
        )
    plan.write(args.out)


if __name__ == "__main__":
    main()
