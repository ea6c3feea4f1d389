"""The words by which prompts are read (phrases.py) and captions told apart (labels.py)."""


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _list(text: str) -> frozenset[str]:
    return frozenset(text.split(", "))


DETERMINERS = _set(
    "a an the my your his her its our their this that these those some any each every another one two three four five "
    "six seven eight nine ten twelve several many few both all single dozen"
)
STOPS = _set(
    "in on at under over with without by near from for behind beside between above below inside outside through to "
    "into onto against around during like as that who which is are was were has have while among across along amid "
    "amidst before after next off up down beneath underneath towards toward within upon atop"
)
"""After these a prompt no longer speaks of its subject."""
CARRYING = _set("wearing holding riding carrying")
AFTER = _set(
    "made drawn built seen shown asleep awake alone together outdoors indoors fast quickly away out around back "
    "outside high low"
)
"""What may stand after a noun without being its head."""
SEEN_AS = _set(
    "portrait painting picture photo photograph drawing sketch illustration icon image render rendering closeup up "
    "emoji sticker logo print poster watercolor watercolour silhouette pair couple group herd flock pack bunch pile "
    "heap lot dozen hundred slice piece loaf stack bowl cup mug plate view shot depiction symbol doodle cartoon "
    "artwork version"
)
"""What may stand before "of" without being the thing."""
HOLDERS = _set("basket bucket jar bouquet")
"""What is the thing before "of"; "a house of cards" is no house."""
STYLE = _set(
    "style pixel art line lineart ink watercolor watercolour cartoon anime manga comic vector clip clipart doodle "
    "sketch icon logo sticker emoji drawing painting illustration portrait photo photograph picture image render "
    "rendering artwork wallpaper 3d 2d 4k 8k hd 8 16 32 bit isometric lowpoly poly cyberpunk steampunk abstract "
    "minimal minimalist realistic photorealistic surreal gothic retro vintage pop graffiti neon woodcut linocut "
    "engraving charcoal pastel masterpiece best quality detailed highly very ultra photography digital oil acrylic"
)
COLOURS = _set(
    "red orange yellow green blue purple pink brown black white grey gray violet golden gold silver bronze turquoise "
    "teal cyan magenta beige cream crimson scarlet"
)
QUALITIES = _set(
    "colorful multicolored dark light bright pale vivid shiny glossy transparent big small large little tiny huge "
    "giant gigantic mini miniature tall short long wide thin thick fat chubby slim round square flat young old "
    "ancient new modern antique baby adult male female happy sad angry sleepy tired cute adorable kawaii pretty "
    "beautiful gorgeous lovely handsome ugly funny silly goofy crazy scary creepy spooky evil friendly fierce "
    "ferocious wild tame lazy grumpy brave proud noble royal regal magic magical mystic mythical cosmic epic fluffy "
    "furry hairy fuzzy bald curly spiky soft hard hot cold warm wet dry fresh ripe juicy raw sweet sour spicy "
    "delicious tasty rotten clean dirty dusty rusty muddy snowy icy sunny rainy cloudy stormy foggy misty wooden wood "
    "metal metallic plastic leather ceramic porcelain stone marble woolen woollen plush simple plain fancy elegant "
    "ornate luxurious cheap classic fantasy futuristic medieval victorian arctic tropical american european japanese "
    "chinese indian african french italian german british english spanish siamese persian bengal great good bad "
    "perfect nice cool strange weird lonely lone lost empty full open closed broken half whole fast slow quick heavy "
    "electric elderly majestic sly curious dead alive sharp grizzly emperor humpback enormous massive colourful "
    "multicoloured close lit low"
)
QUALITY_END = ("ful", "less", "ous", "istic", "ical")
NOUNS = _set(
    "string spring building ceiling wedding clothing railing earring evening morning viking sibling duckling gosling "
    "dumpling seedling sapling pudding crossing herring lightning stocking bowling speed breed steed hundred walrus "
    "octopus"
)
"""No verbs, though they end in -ing or -ed; no qualities, though they end in -ous."""
ANOTHER_THING = _set(
    "fried grilled roast roasted baked smoked stuffed scrambled iced pickled canned rocking boxing wrestling steering "
    "spinning gaming wireless optical"
)
"""Before a name they make it another thing: a rocking horse, fried chicken."""
OTHERS = _list(
    "bearded dragon, big wheel, black eye, black hole, evil eye, flying fox, green onion, magic mouse, metal bat, "
    "plastic bat, red panda, silver fish, sweet bread, sweet pea, wood bat, wooden bat"
)
"""So do these before this one name."""
IRREGULAR = {"mice": "mouse", "geese": "goose", "men": "man", "women": "woman", "children": "child", "teeth": "tooth"}
IRREGULAR |= {"oxen": "ox", "wolves": "wolf", "leaves": "leaf", "knives": "knife", "elves": "elf", "loaves": "loaf"}
NO_PLURAL = _set("glass short brief jean book")
"""Their plural is another thing."""
NAMING = _set(
    "poop poo clown heart lips grandma cop spy santa pedestrian runner dancer fencer golfer surfer swimmer bicyclist "
    "juggler wrestlers racehorse sheep rhino hippo blackbird trex shell bee ladybug germ leaves nest orange mandarin "
    "apple blueberry kiwifruit aubergine corn ginger pea cheese fries hotdog paella stew salad bento rice curry ramen "
    "icecream pudding flan milk coffee tea champagne cocktail beer whisky knife beach island car suv lorry wheelchair "
    "bike kayak motorboat hourglass saturn flame gift ski dart yoyo wand controller jigsaw pinata palette spool "
    "eyeglasses tie shirt tshirt sneaker tophat gem headphones iphone fax projector bulb moneybag trashcan lock couch "
    "saw urn bandaid xray moyai bullettrain lifebuoy bricks fist"
)
"""The captions of one word that name what the label shows."""
NOT_NAMING = _list(
    "all good, basketball player, blue car, call me, champagne glass, city sunrise, cold sweat, direct hit, dizzy "
    "eyes, dizzy star, face massage, first place, happy kiss, heart eyes, high five, in bed, in clouds, knocked out, "
    "loving kiss, mountain snow, nail care, no good, no mouth, no sound, open mouth, optical disc, personal computer, "
    "point forward, raised eyebrow, recreational vehicle, robot face, roll eyes, rolling eyes, second place, sleeping "
    "symbol, sound wave, stuck out tongue, sun and rain, third place, tongue out, too cool, upside down, watery eyes"
)
"""The captions of several words that do not."""
SAME = {"fire truck": "fire engine", "firetruck": "fire engine", "burger": "hamburger", "donut": "doughnut"}
SAME |= {"plane": "airplane", "aeroplane": "airplane", "bunny": "rabbit", "tv": "television", "ladybird": "lady beetle"}
SAME |= {"smartphone": "mobile phone", "cell phone": "mobile phone", "sofa": "couch and lamp"}
SAME |= {"school bus": "bus", "steam train": "locomotive", "sea turtle": "turtle", "koala bear": "koala"}
SAME |= {"honey bee": "honeybee", "wedding dress": "dress", "house cat": "cat", "sailing boat": "sailboat"}
"""Other words for a label."""
