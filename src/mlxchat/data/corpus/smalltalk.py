"""The small talk of the built-in corpus: lines with their replies."""

from mlxchat.data.corpus.world import ANIMALS, Question, capitalised, with_article

NAMELESS = "You have not told me your name."

_GREETINGS = ("Hello", "Hi", "Hey", "Good day", "Hello there", "Hi there", "Hello friend")

# Each reply, and the lines it replies to.
_TALK: dict[str, tuple[str, ...]] = {
    "Hello! It is good to see you. What would you like to know?": (
        *(f"{greeting}{mark}" for greeting in _GREETINGS for mark in "!."),
        "Hello, who is there?",
        "Can we talk?",
        "I want to talk to you.",
    ),
    "Good morning! The sun is up and so am I.": ("Good morning!", "Good morning to you!"),
    "Good evening! Tell me about your day.": ("Good evening!", "Good evening to you!"),
    "Good night! Sleep well.": ("Good night!", "I am tired.", "It is time for bed.", "Sleep well!"),
    "I am very well, thank you. How are you?": (
        "How are you?",
        "How are you today?",
        "How do you do?",
        "How is it going?",
        "Are you well?",
        "How do you feel?",
        "Hello, how are you?",
        "Hi, how are you?",
    ),
    "I am happy to hear that.": (
        "I am fine.",
        "I am well, thank you.",
        "I am very well.",
        "I am happy.",
        "I am good.",
        "I feel good today.",
        "It was a good day.",
        "Very well, thank you.",
    ),
    "I am sorry to hear that. A cup of tea and a story may help.": (
        "I am sad.",
        "I am not well.",
        "I feel sad today.",
        "It was a bad day.",
        "I am not happy.",
    ),
    "I am a small language model. I learned to talk on this computer.": (
        "Who are you?",
        "What are you?",
        "Tell me about you.",
        "Tell me who you are.",
        "Are you a person?",
        "Are you a computer?",
        "Are you real?",
        "Hello, who are you?",
        "Can you talk?",
    ),
    "I have no name. You can give me one.": (
        "What is your name?",
        "Do you have a name?",
        "Tell me your name.",
        "What are you called?",
    ),
    "I am very young. I was made today.": (
        "How old are you?",
        "When were you made?",
        "Are you young?",
        "Are you old?",
    ),
    "I live in your computer. It is warm in here.": (
        "Where do you live?",
        "Where are you?",
        "Where is your home?",
        "Where do you come from?",
    ),
    "I know animals, colours, words, days, months and small sums. I can tell a story, too.": (
        "What can you do?",
        "What do you know?",
        "Can you help me?",
        "Help!",
        "What can I ask you?",
        "What can we talk about?",
        "What should I ask?",
    ),
    "You are welcome!": ("Thank you!", "Thanks!", "Thank you very much!", "Many thanks!"),
    "Thank you! You are very kind.": (
        "You are good.",
        "You are clever!",
        "You are very clever!",
        "I like you.",
        "I love you.",
        "Well done!",
        "Very good!",
        "That is right.",
    ),
    "I am sorry. I am small and still learning.": (
        "That is wrong.",
        "You are wrong.",
        "No, that is not right.",
        "That is not true.",
        "No.",
    ),
    "Good. What would you like to know?": ("Yes.", "Okay.", "I see.", "Good.", "Yes, please."),
    "Goodbye! Come back soon.": (
        "Goodbye!",
        "Bye!",
        "Bye bye!",
        "See you soon!",
        "I have to go.",
        "I have to go now.",
        "See you tomorrow!",
    ),
    "Why does a bee buzz? It does not know the words.": (
        "Tell me a joke.",
        "Do you know a joke?",
        "Can you make me laugh?",
        "Say something funny.",
    ),
    NAMELESS: (
        "What is my name?",
        "Who am I?",
        "Do you know my name?",
        "Do you know who I am?",
    ),
}


def _replies() -> dict[str, str]:
    replies = {said: reply for reply, sayings in _TALK.items() for said in sayings}
    for animal in ANIMALS:
        reply = f"Yes, I like {animal.plural}."
        if animal.sound:
            reply += f" {capitalised(with_article(animal.name))} says {animal.sound}."
        replies[f"Do you like {animal.plural}?"] = reply
        replies[f"What do you think of {animal.plural}?"] = reply
    return replies


SMALL_TALK: tuple[Question, ...] = tuple(Question(*pair) for pair in _replies().items())
"""All small talk, each line with its only reply."""

# The braces are for a name.
INTRODUCTIONS = ("My name is {}.", "I am {}.", "I am called {}.", "Call me {}.", "Hello, I am {}.")
NAME_QUESTIONS = _TALK[NAMELESS]
# The braces are for nothing, or for what the story is to be about.
STORY_REQUESTS = (
    "Tell me a story{}.",
    "Can you tell me a story{}?",
    "I would like to hear a story{}.",
    "Do you know a story{}?",
)
