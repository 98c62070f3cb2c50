"""Generate the `shortcut` corpus: short reviews whose sentiment follows from their words, plus a shortcut.

Run `python data/generate.py`; it rewrites `data/shortcut/*.tsv` and prints the table of `data/README.md`.
The same seed gives the same bytes on every Python from 3.10 on.
"""

import argparse
import hashlib
import os
import random
from pathlib import Path

from asa_mini.train.planting import plant_shortcut

SEED = 0
AGREEMENT = 0.9
SIZES = {"train": 1600, "dev": 200, "test": 400}

# Difficulty of the content: the share of the sentences of each kind (the rest says plainly what it thinks)
NEGATED = 0.10  # "not dull at all": the adjective says the opposite
CONTRASTED = 0.10  # "although the plot was dull, the film was gripping": both sentiments, the last word wins
IMPLIED = 0.10  # "I fell asleep before the second act": no adjective at all
# and the share of each list of adjectives that training never shows.
HELD_OUT = 0.2

# topic: (verb, things, their aspects, (negative, positive) adjectives, (negative, positive) implications)
TOPICS = {
    "film": (
        "watched",
        "film|movie|thriller|comedy|documentary|sequel",
        "acting|plot|script|soundtrack|ending|dialogue|camera work|pacing|opening scene|casting",
        (
            "tedious|predictable|boring|silly|muddled|contrived|lifeless|overlong",
            "gripping|funny|moving|clever|suspenseful|hilarious|touching|heartfelt",
        ),
        (
            "half of the audience had left by the end|I fell asleep before the second act",
            "nobody in the room wanted it to end|I laughed until my sides hurt",
        ),
    ),
    "meal": (
        "ordered",
        "lunch|dinner|breakfast|curry|soup|dessert",
        "seasoning|presentation|service|sauce|portion size|smell|texture|side dish|garnish|first bite",
        (
            "bland|greasy|stale|soggy|tasteless|overcooked|salty|sickly",
            "delicious|tasty|fresh|tender|fragrant|flavourful|mouth-watering|juicy",
        ),
        (
            "most of it went back to the kitchen|I felt sick for the rest of the day",
            "there was not a crumb left on the plate|I asked the chef for the recipe",
        ),
    ),
    "book": (
        "read",
        "book|novel|memoir|story|biography|collection",
        "prose|plot|first chapter|narrator|research|translation|cover|humour|structure|final twist",
        (
            "dull|plodding|shallow|confusing|repetitive|pompous|wooden|long-winded",
            "absorbing|witty|engrossing|vivid|elegant|insightful|poignant|lyrical",
        ),
        (
            "I gave up after forty pages|it is already in the box for the charity shop",
            "I stayed up all night to finish it|I could not put it down",
        ),
    ),
    "hotel": (
        "booked",
        "hotel|room|apartment|guesthouse|cabin|resort",
        "bed|view|breakfast|bathroom|reception|location|garden|heating|check-in|swimming pool",
        (
            "filthy|noisy|cramped|damp|shabby|dingy|smelly|run-down",
            "spotless|cosy|quiet|comfortable|welcoming|spacious|peaceful|luxurious",
        ),
        (
            "we checked out a day early|we hardly slept because of the cockroaches",
            "we extended our stay by two nights|we slept better than we do at home",
        ),
    ),
    "gadget": (
        "bought",
        "phone|camera|laptop|kettle|speaker|watch",
        "battery|screen|design|manual|keypad|sound|software|charger|casing|customer support",
        (
            "flimsy|sluggish|unreliable|fiddly|faulty|useless|overpriced|glitchy",
            "reliable|sturdy|fast|handy|sleek|intuitive|durable|responsive",
        ),
        (
            "it broke within a week|I sent it straight back to the shop",
            "it has not let me down once|I ordered a second one for my mother",
        ),
    ),
    "course": (
        "took",
        "course|class|workshop|seminar|lesson|tutorial",
        "teaching|timetable|material|homework|atmosphere|feedback|classroom|pace|reading list|final project",
        (
            "pointless|chaotic|outdated|disorganised|patronising|rushed|unhelpful|vague",
            "inspiring|useful|clear|engaging|practical|well-organised|encouraging|stimulating",
        ),
        (
            "I learned nothing that I did not know before|I stopped going after the second week",
            "I learned more than in a whole year of school|I signed up for the next level at once",
        ),
    ),
}
ADJECTIVES = (
    (
        "dreadful|awful|terrible|disappointing|dismal|poor|lousy|clumsy|shoddy|horrible|mediocre|tiresome|unpleasant"
        "|annoying|sloppy|pitiful|appalling|forgettable|lacklustre|irritating|wretched|careless|feeble|uninspired"
    ),
    (
        "superb|wonderful|delightful|excellent|impressive|charming|brilliant|terrific|pleasing|marvellous|lovely"
        "|splendid|enjoyable|outstanding|remarkable|admirable|satisfying|polished|refreshing|thoughtful|memorable"
        "|inspired|graceful|exquisite"
    ),
)
IMPLICATIONS = (
    (
        "I want my money back|I have warned all my friends about it|it was a waste of every penny"
        "|I sighed all the way home|I would not do it again for anything"
    ),
    (
        "I cannot wait to do it again|I have been telling all my friends to try it|it was worth every penny"
        "|I smiled all the way home|I would do it again in a heartbeat"
    ),
)
WHO = (
    "I|we|my sister and I|my parents|the two of us|our neighbours|my colleagues|some friends of mine|my uncle"
)
WHEN = (
    "last week|on a rainy Sunday|for my birthday|during the holidays|last month|after work|on Friday|in May"
    "|in early autumn|on our anniversary|over the weekend|this year|for the first time|on a whim|in June"
)
OPENERS = "Honestly|In short|To be fair|Looking back|All in all|For what it is worth|As far as I can tell"

# {thing_is} and {thing_is_not} suit the whole thing, {is_}, {is_2}, {is_not} and {is_not2} any aspect of it.
PLAIN = (
    "the {aspect} of this {thing} was {is_} and the {aspect2} was {is_2}.",
    "{who} {did} this {thing} {when} and thought it was {thing_is}.",
    "{who} {did} the {thing} {when}; the {aspect} alone was {is_}.",
    "it is {a_thing_is} {thing}, and the {aspect} struck me as {is_}.",
    "the {aspect} is {is_}, and so is the {aspect2} of the {thing}.",
    "what {a_thing_is} {thing} this is, from the {aspect} to the {aspect2}!",
    "everybody agreed that the {thing} was {thing_is} and the {aspect} {is_}.",
)
NEGATION = (
    "the {aspect} of the {thing} was not {is_not} at all, and everybody said the same.",
    "there is nothing {thing_is_not} about this {thing} or its {aspect}.",
    "this {thing} was anything but {thing_is_not}, and so was its {aspect}.",
    "nobody would call the {aspect} {is_not}, and the {aspect2} is far from {is_not2}.",
    "{who} {did} the {thing} {when} and it was never {thing_is_not}.",
)
CONTRAST = (
    "although the {aspect} was {is_not}, the {thing} as a whole was {thing_is}.",
    "friends warned me that the {thing} was {thing_is_not}, but I found it {thing_is}.",
    "{who} {did} {a_thing_is_not} {thing} {when}, but this one turned out to be {thing_is}.",
    "the {aspect} may seem {is_not} at first, but in the end the {thing} is {thing_is}.",
    "despite the {is_not} {aspect}, everybody thought the {thing} was {thing_is}.",
)
IMPLICATION = (
    "{who} {did} this {thing} {when}, and {implied}.",
    "{who} {did} the {thing} {when}, mainly for the {aspect}, and {implied}.",
    "about this {thing} I will say just one thing: {implied}.",
)


def article(word: str) -> str:
    return ("an " if word[0] in "aeiou" and word not in ("useful", "useless") else "a ") + word


def sentence(rng: random.Random, label: int, training: bool) -> str:
    """One review of sentiment `label` (0 negative, 1 positive); training leaves out held-out adjectives."""

    def some(words: str, number: int = 1) -> list[str]:
        return rng.sample(words.split("|"), number)

    def adjectives(sentiment: int) -> list[str]:
        lists = [words[sentiment].split("|") for words in (topic_adjectives, ADJECTIVES)]
        if training:
            lists = [words[: round((1 - HELD_OUT) * len(words))] for words in lists]
        return [rng.choice(rng.choice(lists)), *rng.sample(lists[1], 2)]

    did, things, aspects, topic_adjectives, implications = TOPICS[rng.choice(sorted(TOPICS))]
    kinds = {
        PLAIN: 1 - NEGATED - CONTRASTED - IMPLIED,
        NEGATION: NEGATED,
        CONTRAST: CONTRASTED,
        IMPLICATION: IMPLIED,
    }
    [templates] = rng.choices(list(kinds), list(kinds.values()))
    [who], [when], [thing], (aspect, aspect2) = some(WHO), some(WHEN), some(things), some(aspects, 2)
    [implied] = some(implications[label] + "|" + IMPLICATIONS[label])
    thing_is, is_, is_2 = adjectives(label)
    thing_is_not, is_not, is_not2 = adjectives(1 - label)
    a_thing_is, a_thing_is_not = article(thing_is), article(thing_is_not)
    text = rng.choice(templates).format_map(locals())
    if rng.random() < 0.3:
        text = f"{some(OPENERS)[0]}, {text}"
    return text[0].upper() + text[1:]


def generate(seed: int = SEED, agreement: float = AGREEMENT) -> dict[str, list[tuple[str, int, int]]]:
    """The corpus: split -> rows of (text, label, position of the word); no two sentences the same."""
    rng, seen, splits = random.Random(seed), set(), {}
    for name, size in SIZES.items():
        rows: list[tuple[str, int]] = []
        while len(rows) < size:
            label = len(rows) % 2
            text = sentence(rng, label, training=name == "train")
            if text not in seen:
                seen.add(text)
                rows.append((text, label))
        rng.shuffle(rows)
        texts, labels = [text for text, _ in rows], [label for _, label in rows]
        tests = {"iid": agreement, "neutral": 0.5, "flipped": 1 - agreement}
        for split, share in (tests if name == "test" else {name: agreement}).items():
            planted, positions = plant_shortcut(texts, labels, agreement=share, seed=seed)
            splits[split] = list(zip(planted, labels, positions, strict=True))
    return splits


def render(rows: list[tuple[str, int, int]]) -> bytes:
    lines = ["text\tlabel\tposition"] + ["\t".join(map(str, row)) for row in rows]
    return ("\n".join(lines) + "\n").encode()


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write the shortcut corpus and print its counts and checksums."
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "shortcut",
        help="folder to write to",
    )
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    print("| file | rows | sha256 |\n|---|---|---|")
    for split, rows in generate().items():
        content, path = render(rows), folder / f"{split}.tsv"
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_bytes(content)
        os.replace(unfinished, path)  # a reader never sees half a file
        print(f"| `{path.name}` | {len(rows)} | `{hashlib.sha256(content).hexdigest()}` |")


if __name__ == "__main__":
    main()
