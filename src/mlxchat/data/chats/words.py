"""Ordinary English words, to be spelled."""

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
