"""Answers to questions about images, normalised as in the official VQA evaluation.

Source: the evaluation code of VQA (Antol et al. 2015, arXiv 1505.00468; Goyal et al. 2017, arXiv
1612.00837), master for Python 3. Its mistakes are kept because they affect scores.
"""

from __future__ import annotations

import re
from functools import lru_cache

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset(("a", "an", "the"))
_COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(_COUNTED)} | {"none": "0"}
# Official mistake: "(?!<=\d)" for "(?<!\d)" always matches, so "3." loses its period.
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
# Official mistake: `re.UNICODE`, which is 32, is passed as the number of replacements.
_MAX_PERIODS = 32
_COMMA_IN_NUMBER = re.compile(r"\d,\d")

# Any of these words with one apostrophe missing is corrected. Words are looked up in lower case, so
# words with a capital never match.
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am
    might've mightn't mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't
    she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll
    who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll
    you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"let's": "let's", "she's": "she's", "somebody'd": "somebodyd"}


def strip_answer(answer: str) -> str:
    """Return an answer on one line, without white space around it."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=2**17)
def normalise_answer(answer: str) -> str:
    """Return a stripped answer in lower case, without punctuation and articles, with digits."""
    return normalise_words(remove_punctuation(answer))


def remove_punctuation(text: str) -> str:
    """Remove each punctuation mark, or replace it by a space if it has none beside it anywhere.

    All conditions refer to the original text, also those for later marks.
    """
    comma_in_number = _COMMA_IN_NUMBER.search(text) is not None
    found = text
    for mark in PUNCTUATION:
        if mark in found:
            beside_space = f"{mark} " in text or f" {mark}" in text
            found = found.replace(mark, "" if beside_space or comma_in_number else " ")
    return _PERIOD.sub("", found, count=_MAX_PERIODS)


def normalise_words(text: str) -> str:
    """Replace number words up to ten by digits, drop articles, insert missing apostrophes."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
