"""What the voices of the corpus say: short everyday sentences made here, and lines of LJSpeech's transcripts.

People try a speech synthesiser with greetings, questions, numbers and names before they try Victorian prose, which is
what LJSpeech has. `everyday` gives thousands of the former from small tables. All text is English, in ASCII, and as
people write: most numbers in words, some in digits. Nothing here knows voices or audio.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

LONGEST = 150
"""Characters of a line: about ten seconds of speech."""

NAMES = (
    "Anna Ben Carla David Emma Frank Grace Henry Irene Jack Karen Leo Maria Nathan Olivia Peter Rachel Sam Tina Victor "
    "Wendy Adam Bella Chris Diana Eric Fiona George Helen Ivan Julia Kevin Laura Martin Nina Oscar Paula Robert Sarah "
    "Thomas Alice Brian Clara Daniel Ella Felix Gloria Hugo Ingrid James Kate Lucas Megan Noah Rose Simon Vera Walter"
).split()
PLACES = (
    "London Paris Boston Chicago Berlin Madrid Rome Dublin Sydney Toronto Vienna Oxford Cambridge Denver Seattle "
    "Edinburgh Lisbon Prague Glasgow Dallas Houston Bristol Manchester Geneva Athens Cairo Tokyo Delhi Oslo Warsaw"
).split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
COLOURS = "red blue green yellow black white brown grey purple orange pink silver".split()
ANIMALS = "dog cat horse bird rabbit fox mouse cow sheep duck goose bear wolf lion tiger monkey turtle squirrel".split()
FOODS = (
    "bread cheese soup rice pasta salad chicken fish an apple an orange cake pizza toast porridge a sandwich "
    "an omelette pancakes beans potatoes vegetables yoghurt chocolate"
)
FOODS = tuple(re.findall(r"(?:an? )?\w+", FOODS))
DRINKS = "tea coffee water milk orange_juice lemonade hot_chocolate apple_juice ginger_beer".split()
JOBS = (
    "teacher doctor nurse farmer writer painter singer lawyer baker driver pilot student engineer gardener carpenter "
    "plumber scientist waiter judge sailor"
).split()
THINGS = (
    "keys phone umbrella coat wallet bag book ticket glasses hat scarf gloves laptop charger notebook pen camera watch "
    "letter parcel bicycle suitcase jacket passport"
).split()
ROOMS = "kitchen bedroom bathroom garden garage hall office attic cellar study library living_room".split()
SHOPS = (
    "bank bakery library station airport hospital museum chemist post_office supermarket school church park hotel "
    "theatre cinema bus_stop police_station swimming_pool market"
).split()
FAMILY = "mother father sister brother aunt uncle cousin grandmother grandfather daughter son neighbour friend".split()
FEELINGS = "happy sad tired hungry thirsty nervous excited worried proud lonely angry surprised calm bored".split()
WEATHER = "sunny cloudy windy foggy cold warm hot rainy snowy stormy wet dry mild freezing".split()
QUALITIES = (
    "small large old new long short heavy light strange quiet noisy bright dark clean dirty cheap expensive beautiful "
    "simple difficult empty broken soft narrow wide"
).split()
ADVERBS = "quickly slowly quietly carefully loudly gently happily suddenly again alone together early late".split()
VERBS = (
    ("opened", "open"), ("closed", "close"), ("cleaned", "clean"), ("moved", "move"), ("painted", "paint"),
    ("carried", "carry"), ("dropped", "drop"), ("found", "find"), ("sold", "sell"), ("bought", "buy"),
    ("borrowed", "borrow"), ("fixed", "fix"), ("hid", "hide"), ("lost", "lose"), ("washed", "wash"),
)  # fmt: skip
OBJECTS = (
    "door window box table chair lamp bottle basket picture mirror drawer cupboard curtain ladder blanket pillow "
    "kettle spoon plate cup clock radio piano guitar bench fence gate bridge boat wagon"
).split()
SHAPES = "circle square triangle line star cross spiral rectangle".split()

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth"
).split()

TEMPLATES = """
Hello, my name is {name}.
Hello {name}, how are you today?
Hi {name}, it's nice to see you again.
Good morning, {name}. Did you sleep well?
Good morning, everyone.
Good afternoon, and welcome to {place}.
Good evening, ladies and gentlemen.
Good night, {name}. See you {soon}.
Welcome back, {name}.
Nice to meet you, {name}. I'm {name}.
How was your trip to {place}?
How long have you lived in {place}?
Goodbye, {name}, and thank you for everything.
Thank you very much for the {object}.
Thanks, {name}. That was very kind of you.
You're welcome, {name}.
Please say hello to your {family} for me.
I'm sorry, I didn't hear what you said.
Excuse me, could you say that again, please?
Excuse me, where is the nearest {shop}?
Could you tell me the way to the {shop}?
Is there a {shop} near here?
Go straight on, and turn {side} at the {shop}.
Turn {side} after the {shop}, then take the {ordinal} street on the {side}.
The {shop} is on the {side}, next to the {shop}.
The {shop} is about {small} minutes from here.
Walk past the {shop} until you see a {colour} {object}.
The train to {place} leaves at {time}.
The next bus to {place} leaves in {small} minutes.
The flight from {place} to {place} was {quality}.
Our train arrives in {place} at {time}.
Platform {small}, for the {time} train to {place}.
It's {time}.
It's already {time}. We are late!
What time is it in {place}?
The meeting starts at {time} on {day}.
Can we meet at {time} instead of {time}?
I'll be there at {time}, or a little later.
The {shop} opens at {time} and closes at {time}.
Today is {day}, the {ordinal} of {month}.
My birthday is on the {ordinal} of {month}.
We moved to {place} in {year}.
The house was built in {year}.
She was born in {place} on {month} the {ordinal}.
They got married in {month}, {year}.
See you on {day}.
Are you free on {day} evening?
I have been waiting since {day}.
The weather in {place} is {weather} and {weather}.
It will be {weather} on {day}.
It was a {weather} day in {month}.
Will it be {weather} on {day}?
Take an umbrella, it looks {weather} outside.
The temperature is {number} degrees.
Yesterday it was only {small} degrees in {place}.
There are {number} students in the {shop}.
There were {number} people on the {quality} boat.
I counted {number} {colour} {object}s.
She needs {small} {object}s and {small} {object}s.
{Number} and {number} make {sum}.
That will be {price}, please.
The {quality} {object} costs {price}.
How much is the {colour} {object}?
I paid {price} for this {object}.
My telephone number is {digits}.
The code is {digits}.
Please call me back on {digits}.
The answer is {number}.
Page {number}, line {small}.
Chapter {small}.
He lives at number {number}, {name} Street.
She is {age} years old.
My {family} is {age}, and my {family} is {age}.
I would like {food} and {drink}, please.
Would you like some {drink}?
Do you want {food} or {food} for dinner?
We had {food} and {food} for breakfast.
Can I have a cup of {drink}, please?
The {food} was cold, but the {drink} was too hot.
I don't like {food}.
My {family} makes the best {food} in {place}.
There is no more {drink} in the {room}.
Where are my {thing}?
Have you seen my {thing}?
I left my {thing} in the {room}.
Your {thing} is on the {object} in the {room}.
Whose {thing} is this?
Don't forget your {thing}!
Is this your {thing}, {name}?
The {animal} is sleeping in the {room}.
The {colour} {animal} jumped over the {quality} {object}.
A {quality} {animal} sat on the {object}.
Look at that {colour} {animal}!
My {family} has a {animal} called {name}.
The {animal} chased the {animal} round the {room}.
Why is the {animal} in the {room}?
{name} {past} the {quality} {object}.
{name} and {name} {past} the {object} {adverb}.
Who {past} the {colour} {object}?
Did you {verb} the {object} in the {room}?
Please {verb} the {object} {adverb}.
We should {verb} the {object} before {day}.
I can't {verb} this {quality} {object}.
She {past} the {object}, and then she {past} the {object}.
The {job} {past} a {quality} {object}.
The {job} spoke {adverb} to the {job}.
My {family} is a {job} in {place}.
I want to be a {job} when I grow up.
Are you a {job}?
{name} works as a {job} at the {shop}.
I feel {feeling} today.
Are you {feeling}, {name}?
Don't be {feeling}.
My {family} looked {feeling} and a little {feeling}.
Why are you so {feeling}?
What a {quality} {object}!
What a {weather} day!
That's wonderful news, {name}!
Oh no, the {object} is broken!
Watch out for the {animal}!
Happy birthday, {name}!
Congratulations, {name}!
Merry Christmas and a happy New Year!
Well done, {name}. I'm proud of you.
Hurry up, {name}, the bus is here!
Stop! The light is {colour}.
Yes, of course.
Yes, {name}, I think so too.
No, thank you. I'm not {feeling}.
No, it isn't {colour}, it's {colour}.
Maybe {day}, maybe {day}. I don't know yet.
I don't think that's a good idea, {name}.
I'm not sure. What do you think?
Do you speak English?
Can you help me, please?
Can you hear me now?
What is your name, please?
What are you doing on {day}?
What does this word mean?
When does the {shop} close?
Where did you buy that {colour} {object}?
Which one do you like, the {colour} one or the {colour} one?
Who is that {job} over there?
How many {object}s do you need?
How far is it from {place} to {place}?
Why did {name} go to {place}?
Tell me about your {family}.
Let me show you the {room}.
Let's go to the {shop} together.
Let's meet at the {shop} at {time}.
If it is {weather} on {day}, we will stay at home.
When I was {age}, I lived in {place} with my {family}.
Before you go, please {verb} the {object}.
After dinner, {name} {past} the {object}.
Although it was {weather}, we walked to the {shop}.
Because the {object} was {quality}, {name} bought it.
I think that the {quality} {object} belongs in the {room}.
{name} said that the {shop} was too {quality}.
Turn the {object} to the {side}, and press it {adverb}.
Draw a {colour} {shape} next to the {quality} {shape}.
The {shape} is inside the {shape}.
Once upon a time, there was a {quality} {animal} in {place}.
The quick {colour} {animal} jumps over the lazy {animal}.
This is a test of the {quality} {object}.
This message is for {name} {name}.
You have {small} new messages.
Your appointment is on {day}, {month} the {ordinal}, at {time}.
Your order will arrive on {day} between {time} and {time}.
The museum is closed on {day}s.
Doors open at {time}. Please have your ticket ready.
The story begins in {place}, in the year {year}.
Here is the news for {day}, the {ordinal} of {month}.
""".strip().splitlines()

HARVARD = """
The birch canoe slid on the smooth planks.
Glue the sheet to the dark blue background.
It's easy to tell the depth of a well.
These days a chicken leg is a rare dish.
Rice is often served in round bowls.
The juice of lemons makes fine punch.
The box was thrown beside the parked truck.
The hogs were fed chopped corn and garbage.
Four hours of steady work faced us.
A large size in stockings is hard to sell.
The boy was there when the sun rose.
A rod is used to catch pink salmon.
The source of the huge river is the clear spring.
Kick the ball straight and follow through.
Help the woman get back to her feet.
A pot of tea helps to pass the evening.
Smoky fires lack flame and heat.
The soft cushion broke the man's fall.
The salt breeze came across from the sea.
The girl at the booth sold fifty bonds.
The small pup gnawed a hole in the sock.
The fish twisted and turned on the bent hook.
Press the pants and sew a button on the vest.
The swan dive was far short of perfect.
The beauty of the view stunned the young boy.
Two blue fish swam in the tank.
Her purse was full of useless trash.
The colt reared and threw the tall rider.
It snowed, rained, and hailed the same morning.
Read verse out loud for pleasure.
Hoist the load to your left shoulder.
Take the winding path to reach the lake.
Note closely the size of the gas tank.
Wipe the grease off his dirty face.
Mend the coat before you go out.
The wrist was badly strained and hung limp.
The stray cat gave birth to kittens.
The young girl gave no clear response.
The meal was cooked before the bell rang.
What joy there is in living.
""".strip().splitlines()
"""Lists 1 to 4 of the Harvard sentences (IEEE, 1969): never in the corpus, a second test."""


def number(n: int) -> str:
    """0 to 9999 in words, as the British say them."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10 - 2] + (f"-{ONES[n % 10]}" if n % 10 else "")
    if n < 1000:
        return f"{ONES[n // 100]} hundred" + (f" and {number(n % 100)}" if n % 100 else "")
    rest = n % 1000
    return f"{number(n // 1000)} thousand" + (f" {'and ' if rest < 100 else ''}{number(rest)}" if rest else "")


def _either(rng: random.Random, n: int, words: str | None = None) -> str:
    """A number in words, or now and then in digits."""
    return str(n) if rng.random() < 0.25 else words or number(n)


def _time(rng: random.Random) -> str:
    hour, minute = rng.randint(1, 12), rng.choice((0, 5, 10, 15, 20, 25, 30, 40, 45, 50))
    if rng.random() < 0.25:
        return f"{hour}:{minute:02d}"
    if minute == 0:
        return f"{number(hour)} o'clock"
    if rng.random() < 0.3 and minute in (15, 30, 45):
        part = {15: "a quarter past", 30: "half past", 45: "a quarter to"}[minute]
        return f"{part} {number(hour if minute < 45 else hour % 12 + 1)}"
    return f"{number(hour)} {'oh five' if minute == 5 else number(minute)}"


def _year(rng: random.Random) -> str:
    year = rng.randint(1801, 2030)
    first, last = divmod(year, 100)
    if last == 0:
        return _either(rng, year, f"{number(first)} hundred" if first != 20 else "two thousand")
    if 2000 < year < 2010:
        return _either(rng, year, f"two thousand and {number(last)}")
    return _either(rng, year, f"{number(first)} {f'oh {ONES[last]}' if last < 10 else number(last)}")


def _price(rng: random.Random) -> str:
    whole, cents = rng.randint(1, 120), rng.choice((0, 0, 20, 50, 75, 99))
    dollars = rng.random() < 0.6
    if rng.random() < 0.25:
        return f"{'$' if dollars else '£'}{whole}" + (f".{cents:02d}" if cents else "")
    unit = ("dollar" if dollars else "pound") + ("s" if whole > 1 else "")
    return f"{number(whole)} {unit}" + (f" {number(cents)}" if cents else "")


def _sentence(template: str, rng: random.Random) -> str:
    a, b = rng.randint(1, 50), rng.randint(1, 50)
    past, verb = rng.choice(VERBS)
    fields: dict[str, Callable[[], str]] = {
        "time": lambda: _time(rng),
        "year": lambda: _year(rng),
        "price": lambda: _price(rng),
        "small": lambda: _either(rng, rng.randint(2, 20)),
        "age": lambda: _either(rng, rng.randint(3, 95)),
        "number": lambda: _either(rng, rng.randint(2, rng.choice((100, 999, 9999)))),
        "digits": lambda: " ".join(ONES[rng.randint(0, 9)] for _ in range(rng.randint(3, 6))),
        "past": lambda: past,
        "verb": lambda: verb,
        "ordinal": lambda: rng.choice(ORDINALS),
        "soon": lambda: rng.choice(("tomorrow", "soon", "next week", f"on {rng.choice(DAYS)}", "in the morning")),
        "side": lambda: rng.choice(("left", "right")),
    }
    tables = {
        "name": NAMES, "place": PLACES, "day": DAYS, "month": MONTHS, "colour": COLOURS, "animal": ANIMALS,
        "food": FOODS, "drink": DRINKS, "job": JOBS, "thing": THINGS, "room": ROOMS, "shop": SHOPS, "family": FAMILY,
        "feeling": FEELINGS, "weather": WEATHER, "quality": QUALITIES, "adverb": ADVERBS, "object": OBJECTS,
        "shape": SHAPES,
    }  # fmt: skip
    if "{sum}" in template:
        return f"{number(a).capitalize()} and {number(b)} make {number(a + b)}."
    used: set[str] = set()

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name in fields:
            return fields[name]()
        left = [word for word in tables[name] if word not in used]
        word = rng.choice(left)
        used.add(word)
        return word.replace("_", " ")

    text = re.sub(r"\{(\w+)\}", fill, template)
    text = re.sub(r"\b(a|A) (?=[aeiou])", r"\1n ", text)  # "a old gate"
    text = re.sub(r"(?<=\b[Tt]he )an? |(?<=makes the best )an? ", "", text)  # "the an apple was cold"
    text = re.sub(r"\bthis (gloves|glasses|keys)\b", r"these \1", text)
    text = re.sub(r"\b(gloves|glasses|keys) is\b", r"\1 are", text)
    text = re.sub(r"(s|x|ch|sh)s\b(?=[ .])", lambda m: m[1] + "es", text) if "{object}s" in template else text
    return text[0].upper() + text[1:]


def everyday(seed: int = 0) -> Iterator[str]:
    """Different everyday sentences, without end, until the tables hold no more."""
    rng = random.Random(f"everyday {seed}")
    seen: set[str] = set()
    misses = 0
    while misses < 10_000:
        order = list(TEMPLATES)
        rng.shuffle(order)
        for template in order:
            text = _sentence(template, rng)
            if text in seen:
                misses += 1
                continue
            misses = 0
            seen.add(text)
            yield text


def transcripts(path: Path) -> Iterator[str]:
    """Lines of LJSpeech's transcripts (id, tab, text) of at most `LONGEST` characters, in their order, cleaned.

    Lines are pieces of longer sentences; a piece that ends without a mark gets a full stop, so that a mark always ends
    what is said.
    """
    marks = str.maketrans("”“’éêèàâüÜ", '""\'eeeaauU')
    for line in path.read_text("utf-8").splitlines():
        text = line.partition("\t")[2].translate(marks)
        text = " ".join(re.sub(r'["\[\]()]', "", text).split())
        if not 20 <= len(text) <= LONGEST or not text.isascii():
            continue
        if text[-1] not in ".?!":
            text = text.rstrip(",;:-") + "."
        yield text[0].upper() + text[1:]


def take(n: int, source: Iterator[str], without: set[str]) -> list[str]:
    """The next `n` sentences of a source that are not among some others."""
    return list(itertools.islice((text for text in source if text not in without), n))
