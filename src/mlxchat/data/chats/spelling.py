"""Conversations that spell words and count their letters, generated from a seed.

After nanochat's SpellingBee and SimpleSpelling (tasks/spellingbee.py): a model sees tokens, not
letters, so it is shown how to take a word apart, how to count its letters one by one, and how to
confirm the count with the calculator. The wording is our own. A line of counting consists of the
number, the letter and the count so far, without spaces, so that a letter is always the same token.

Each pair of a word and a letter is either trained on or held out, by a hash of the two.
"""

from collections.abc import Iterator
from random import Random
from string import ascii_lowercase

from mlxchat.data.questions.question import ANSWER, is_question_held_out
from mlxchat.tokenizer.messages import Conversation, Message, Part

WORDS: tuple[str, ...] = tuple(
    """
    able about above accident account across action address adventure afternoon again agreement
    airplane alphabet already although always amazing among ancient angry animal announce another
    answer antenna apartment apple appointment apricot architect argument arithmetic arrange
    arrival artist assembly astronaut attention audience autumn avenue awake
    baggage bakery balance balloon banana bandage barrel baseball basket battery beautiful because
    bedroom beginning believe belong between bicycle billion biscuit blanket blossom blueberry
    bookkeeper borrow bottle boundary bracelet branch breakfast bridge brilliant brother bubble
    bucket building bulldozer business butterfly button
    cabbage calendar camera candle capital captain caramel carpenter carpet carriage carrot castle
    catalogue ceiling celebrate cellar center century certain challenge champion channel character
    cheese chemistry cherry chicken children chimney chocolate cinnamon circle classroom climate
    coconut coffee collect college colour comfortable committee company compass computer concert
    connect consonant continue cookie copper corner cottage cotton country courage cousin creature
    cricket crocodile crossroads crystal cucumber curious curtain customer
    damage dangerous daughter december decision delicious deliver depend describe desert dessert
    detail develop diamond dictionary different difficult dinner direction disappear discover
    discussion distance doctor dolphin donkey double dragon drawer dressing driver during
    eagle early earth eastern echo education effect effort eleven elephant elevator embarrass
    emerald empty encourage engine english enormous enough entrance envelope environment equal
    escape evening everybody example excellent except exercise expensive experience explain explore
    factory familiar family famous farmer fashion feather february festival fiction fifteen figure
    finger finish firefly fisherman flavour flower follow football foreign forest forever forget
    fortune forward fountain freedom freeze friend frighten frozen furniture future
    gallery garage garden garlic gather general gentle geography giraffe glacier glasses glitter
    glove goggles golden goodbye grammar grandmother grape grasshopper gravity grocery ground group
    guitar gymnasium
    habit half hammer handkerchief handle happen happiness harbour harvest headache healthy heaven
    helicopter hello helmet history holiday hollow honey horizon hospital hotel however hundred
    hungry hurricane husband
    iceberg idea imagine important impossible improve include increase independent infinite
    information ingredient insect inside instead instrument interesting invent invisible island
    jacket january jellyfish jewellery journey juggle july jungle junior justice
    kangaroo kettle keyboard kindergarten kingdom kitchen kitten knife knock knowledge
    ladder ladybird language lantern laugh laundry lawyer leather lemonade leopard lesson letter
    library lightning limousine liquid listen little lizard lobster lonely lullaby luggage luxury
    machine magazine magic magnet mailbox mammal manner marble market marmalade marriage marvellous
    material mathematics meadow measure medicine melody melon member memory message metal middle
    midnight million minute mirror mississippi mistake mixture moment monkey monster month morning
    mosquito mother motor mountain mouse muscle museum mushroom music mustard mystery
    napkin narrow nation natural necessary necklace needle neighbour nephew nervous never newspaper
    nickname night noodle normal notebook nothing notice november number nursery
    object observe occasion occurrence ocean october octopus office often onion opinion opposite
    orange orchestra ordinary organize original ostrich outside overlook oxygen
    package paddle painter palace pancake panther paper parachute paragraph parallel parents parrot
    passenger pattern peaceful peanut pebble pelican pencil penguin people pepper perfect perhaps
    person piano picture pigeon pillow pineapple planet plastic platform playground pleasure pocket
    poem police possess possible postcard potato powder practice prepare present president pretty
    prince problem professor program promise pronounce protect pumpkin puppet purple puzzle pyramid
    quality quarter queen question quick quiet quilt
    rabbit raccoon railway rainbow raspberry reason receive recipe record rectangle referee
    refrigerator remember repeat reptile rescue restaurant result return rhinoceros rhythm ribbon
    riddle river robot rocket roller romantic rubber
    saddle sailor salad salmon sandwich saturday sausage scarecrow school science scissors secret
    seesaw selfish sentence separate september seven several shadow shampoo shelter sheriff
    shoulder sidewalk silence silver simple sister skeleton slipper smooth snowball soccer society
    soldier someone sorry spaghetti special spelling spider spinach spring squirrel staircase
    station statue stomach storm strawberry street strength stubborn student success sudden sugar
    suggest summer sunflower supper surprise sweater swimming syllable symbol system
    table tailor target teacher telephone television temperature tennis terrible theatre thirteen
    thousand thread through thunder ticket tiger tobacco together tomato tomorrow tongue toothbrush
    tornado tortoise tower traffic trampoline travel treasure triangle trouble trumpet tunnel
    turkey turtle twelve twilight typewriter
    umbrella uncle under understand uniform universe unusual upstairs useful usual
    vacation valley vanilla vegetable velvet verb village vinegar violet violin visitor vitamin
    volcano volleyball voyage vowel
    waffle waiter walnut wander warrior watermelon weather wednesday weekend weird welcome western
    whale whatever wheelbarrow whisper whistle wilderness willow window winter wisdom without
    wizard wonderful wooden woodpecker world worry wrestle
    yellow yesterday yoghurt young zebra zigzag zipper
    """.split()
)


SPELLED = 1 / 4  # share of conversations that spell a word and count nothing
FOREIGN_LETTER = 1 / 8  # share of letters that are drawn from the alphabet, not from the word
LAZY = 1 / 3  # share of questions that are typed without capitals
UNMARKED = 1 / 3  # share of questions without their mark at the end
PAIRS_PER_HELD_OUT = 10  # how many pairs of word and letter there are for each that is held out

COUNTING = (
    "How many times is the letter {letter} in {word}?",
    "How many {letter} are there in {word}?",
    "How many {letter}s are in the word {word}?",
    "How many letters {letter} has {word}?",
    "How often does {letter} occur in {word}?",
    "How often do I write {letter} when I write {word}?",
    "How often is {letter} used in {word}?",
    "Count the {letter}s in {word}.",
    "Count every {letter} of the word {word}.",
    "Please count how often {letter} comes up in {word}.",
    "Please tell me how many {letter} the word {word} has.",
    "Can you tell how many {letter} {word} contains?",
    "Can you count the letter {letter} in {word} for me?",
    "Could you look how many {letter} there are in {word}?",
    "I need the number of {letter} in {word}.",
    "I wonder how many {letter} {word} has.",
    "Do you know how many {letter} {word} is written with?",
    "What number of {letter} does {word} have?",
    "Take the word {word}: how many {letter}?",
    "Look at {word}. How many {letter} do you see?",
    "{word}: how many {letter}?",
    "{word} - number of {letter}?",
    "Is there a {letter} in {word}, and how many?",
    "With how many {letter} do you spell {word}?",
    "Of the letters of {word}, how many are {letter}?",
    "In {word}, how often does one find {letter}?",
    "Number of times {letter} stands in {word}?",
    "Wie viele {letter} hat das Wort {word}?",
    "Wie oft steht {letter} in {word}?",
    "Combien de {letter} y a-t-il dans le mot {word} ?",
    "Combien de fois trouve-t-on {letter} dans {word} ?",
    "¿Cuántas veces está {letter} en la palabra {word}?",
    "¿Cuántas {letter} tiene {word}?",
    "Quante {letter} ci sono nella parola {word}?",
    "Quantas letras {letter} há em {word}?",
    "Hoeveel {letter} zitten er in {word}?",
)
SPELLING = (
    "Spell {word}.",
    "How do you spell {word}?",
    "How is {word} spelled?",
    "Please spell the word {word} for me.",
    "Which letters make up {word}?",
    "Write {word} letter by letter.",
    "Take the word {word} apart.",
    "Can you spell {word}?",
    "The letters of {word}, one by one, please.",
    "I want to learn to spell {word}.",
)
_QUOTES = ("", "", "'", '"')


def spelling_conversations(seed: int, count: int) -> Iterator[Conversation]:
    """Yield ``count`` conversations to train on; three in four count letters, the rest spell."""
    for number in range(count):
        rng = Random(f"spelling/{seed}/{number}")
        if rng.random() < SPELLED:
            yield spelling_conversation(rng, rng.choice(WORDS))
        else:
            yield counting_conversation(rng, *_drawn(rng, wanted=False))


def held_out_conversations(count: int, seed: int = 0) -> list[Conversation]:
    """Return ``count`` conversations that count letters, each about a pair never trained on."""
    rng = Random(f"spelling/held out/{seed}")
    return [counting_conversation(rng, *_drawn(rng, wanted=True)) for _ in range(count)]


def is_pair_held_out(word: str, letter: str) -> bool:
    """Return whether a word and a letter to count are held out of training: one pair in ten."""
    return is_question_held_out(f"{word} {letter}", PAIRS_PER_HELD_OUT)


def final_answer(conversation: Conversation) -> str:
    """Return the final answer of a conversation that counts: the text after the last `ANSWER`."""
    return conversation.messages[-1].text.rpartition(ANSWER)[2].strip()


def _drawn(rng: Random, wanted: bool) -> tuple[str, str]:
    """Draw a word and a letter that are held out or not, as ``wanted``."""
    while True:
        word = rng.choice(WORDS)
        letter = rng.choice(ascii_lowercase if rng.random() < FOREIGN_LETTER else word)
        if is_pair_held_out(word, letter) == wanted:
            return word, letter


def counting_conversation(rng: Random, word: str, letter: str) -> Conversation:
    """Return a conversation that counts a letter in a word, asked in one of many ways."""
    fields = {"word": quoted(rng, word), "letter": quoted(rng, letter)}
    lines = "".join(
        f"{number}:{found}={word[:number].count(letter)}\n" for number, found in enumerate(word, 1)
    )
    total = word.count(letter)
    reply = (
        Part(
            "text", f"{_taken_apart(word)}\n\nNow I count {letter}:\n{lines}\nSo {total}. Python:\n"
        ),
        Part("python", f"'{word}'.count('{letter}')"),
        Part("python_output", str(total)),
        Part("text", f"\n\n{ANSWER}{total}"),
    )
    asked = typed(rng, rng.choice(COUNTING)).format(**fields)
    return Conversation((Message("user", asked), Message("assistant", reply)))


def spelling_conversation(rng: Random, word: str) -> Conversation:
    """Return a conversation that spells a word, asked for in one of many ways."""
    asked = typed(rng, rng.choice(SPELLING)).format(word=quoted(rng, word))
    return Conversation((Message("user", asked), Message("assistant", _taken_apart(word))))


def _taken_apart(word: str) -> str:
    return f"{word}:{','.join(word)}"


def typed(rng: Random, template: str) -> str:
    """Vary a question's capitals and final mark, as people do when they type."""
    if rng.random() < LAZY:
        template = template.lower()
    return template.rstrip(" .?") if rng.random() < UNMARKED else template


def quoted(rng: Random, text: str) -> str:
    """Put a word in quotation marks, or leave it without."""
    quote = rng.choice(_QUOTES)
    return f"{quote}{text}{quote}"
