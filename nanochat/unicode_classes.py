"""Letters, digits and whitespace: the class of every code point, the same on every Python.

In: `unicodedata`, and what was assigned after the oldest version of it that a supported Python has.
Out: a table by code point, as Unicode 16 has it (tiktoken's version too).
"""

import functools
import unicodedata

import numpy as np

OTHER, LETTER, NUMBER, SPACE, NEWLINE = np.arange(5, dtype=np.uint8)

# Letters and digits assigned after Unicode 13, the version of Python 3.10.
NEW_LETTERS = """870-887 889-88E 8B5 8C8-8C9 C5D CDD 170D 171F 1B4C 1C89-1C8A 2C2F 2C5F 9FFD-9FFF A7C0-A7C1 A7CB-A7CD
A7D0-A7D1 A7D3 A7D5-A7DC A7F2-A7F4 10570-1057A 1057C-1058A 1058C-10592 10594-10595 10597-105A1 105A3-105B1 105B3-105B9
105BB-105BC 105C0-105F3 10780-10785 10787-107B0 107B2-107BA 10D4A-10D65 10D6F-10D85 10EC2-10EC4 10F70-10F81 11071-11072
11075 1123F-11240 11380-11389 1138B 1138E 11390-113B5 113B7 113D1 113D3 11740-11746 11AB0-11ABF 11BC0-11BE0 11F02
11F04-11F10 11F12-11F33 12F90-12FF0 1342F 13441-13446 13460-143FA 16100-1611D 16A70-16ABE 16D40-16D6C 18CFF 1AFF0-1AFF3
1AFF5-1AFFB 1AFFD-1AFFE 1B11F-1B122 1B132 1B155 1DF00-1DF1E 1DF25-1DF2A 1E030-1E06D 1E290-1E2AD 1E4D0-1E4EB 1E5D0-1E5ED
1E5F0 1E7E0-1E7E6 1E7E8-1E7EB 1E7ED-1E7EE 1E7F0-1E7FE 2A6DE-2A6DF 2B735-2B739 2EBF0-2EE5D 31350-323AF"""
NEW_NUMBERS = """10D40-10D49 116D0-116E3 11BF0-11BF9 11F50-11F59 16130-16139 16AC0-16AC9 16D70-16D79 1CCF0-1CCF9
1D2C0-1D2D3 1E4F0-1E4F9 1E5F1-1E5FA"""


@functools.cache
def char_classes() -> np.ndarray:
    r"""(0x110000,) uint8: the class of every code point. SPACE is `\s` without `\r\n`, which are NEWLINE."""
    classes = np.zeros(0x110000, np.uint8)
    assigned = 0x323B0  # no letter or number lies beyond
    categories = "".join(map(unicodedata.category, map(chr, range(assigned)))).encode()  # "Lu" for "A", and so on
    categories = np.frombuffer(categories, np.uint8)[::2]
    classes[:assigned][categories == ord("L")] = LETTER
    classes[:assigned][categories == ord("N")] = NUMBER
    for ranges, kind in ((NEW_LETTERS, LETTER), (NEW_NUMBERS, NUMBER)):
        for span in ranges.split():
            first, last = int(span.split("-")[0], 16), int(span.split("-")[-1], 16)
            classes[first : last + 1] = kind
    for first, last in ((9, 13), (32, 32), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A)):
        classes[first : last + 1] = SPACE
    classes[[0x2028, 0x2029, 0x202F, 0x205F, 0x3000]] = SPACE
    classes[[10, 13]] = NEWLINE
    classes.flags.writeable = False
    return classes
