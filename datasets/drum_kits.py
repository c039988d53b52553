"""Hits of 14 drum kits as a folder of links, train/SORT/ and test/SORT/, with whole kits held out.

    python datasets/drum_kits.py --source FOLDER --out data/drum-kits

Card
    Content  494 hits of 13 of the kits (one has none of these), 14 minutes, 44.1 or 48 kHz, mono and stereo, in wav,
             flac and aiff: kick, snare, hat, tom, cymbal and clap.
    Source   Debian's package hydrogen-drumkits 2017.09.19~dfsg-1; http://www.hydrogen-music.org.
    Licence  By kit, GPL-2, CC BY-SA and others: usr/share/doc/hydrogen-drumkits/copyright in the package names each.
    Splits   By kit, since hits of a kit share its room and its microphones: train 321 hits of nine, test 173 of
             BJA_Pacific, ColomboAcousticDrumkit, ElectricEmpireKit and Millo_MultiLayered3; .254 of test is the
             commonest sort, and only two claps are in it.
             Labels are the names that the kits give their instruments (drumkit.xml), sorted by the words below: they
             are no listener's. Hits of other instruments (bells, congas, effects, loops) are left out. The same
             recording under two names counts once.
    Disk     143 MB packed; the unpacked files stay where they are.

FOLDER holds, at any depth, what these commands leave (no root needed):
    apt-get download hydrogen-drumkits
    dpkg -x hydrogen-drumkits_*.deb .
Columns of OUT/metadata.csv: kit and instrument.
"""

import argparse
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from organise import Plan, content, fail, recordings

SORTS = {
    "clap": r"clap|snap",
    "hat": r"\bhi ?hats?\b|hh\b|\bhh|\bhat",
    "cymbal": r"crash|ride|cymbal|splash|china",
    "snare": r"snare|rim|side ?stick|\bstick|\bsn\b|\bsd\b",
    "tom": r"\btoms?\b|tom\d",
    "kick": r"kick|bass ?drum|\bbd\b",
}
"""Words that tell a sort, in the instrument's name; the first sort that fits counts."""
OTHER = r"bell|cow|conga|bongo|djembe|whistle|click|loop|empty"
TEST = ("BJA_Pacific", "ColomboAcousticDrumkit", "ElectricEmpireKit", "Millo_MultiLayered3")
KITS = 14


def sort_of(instrument: str) -> str | None:
    """The sort of drum that an instrument's name tells; None where it is another or none."""
    name = re.sub(r"[\W_]+", " ", instrument.lower()).strip()
    if re.search(OTHER, name):
        return None
    return next((sort for sort, words in SORTS.items() if re.search(words, name)), None)


def instruments(path: Path) -> dict[str, str]:
    """{file: instrument} of a drumkit.xml; of a file that several instruments have, the first."""
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        fail(f"{path} cannot be read ({error}): unpack the package again.")
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    found: dict[str, str] = {}
    for instrument in root.iter("instrument"):
        for file in instrument.iter("filename"):
            found.setdefault((file.text or "").strip(), (instrument.findtext("name") or "").strip())
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder that holds the unpacked package")
    parser.add_argument("--out", type=Path, required=True, help="new folder for train/ and test/")
    args = parser.parse_args(argv)
    recordings(args.source, "hydrogen-drumkits")
    kits = sorted(args.source.rglob("drumkit.xml"))
    if len(kits) != KITS:
        fail(f"{args.source} holds {len(kits)} drumkit.xml, not {KITS}: get the package with what --help prints.")
    plan, known, other = Plan("recordings"), set[str](), 0
    for path in kits:
        kit = path.parent.name
        for file, instrument in sorted(instruments(path).items()):
            sort, hit, side = sort_of(instrument), path.parent / file, "test" if kit in TEST else "train"
            if sort is None:
                other += 1
            elif not hit.is_file():
                plan.add(side, sort, f"{kit}/{file}", None)
            elif (digest := content(hit)) in known:
                other += 1
            else:
                known.add(digest)
                name = f"{kit} {file}".replace(" ", "-")
                plan.add(side, sort, file, hit, as_name=name, kit=kit, instrument=instrument)
    plan.write(args.out)
    print(f"{other} hits of other instruments, or there twice, are left out.")


if __name__ == "__main__":
    main()
