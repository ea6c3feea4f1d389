"""Colours by names used in captions: name -> (r, g, b), 0..255."""

from functools import cache

RGB = tuple[int, int, int]

DARK: dict[str, RGB] = {
    "black": (12, 12, 14),
    "charcoal": (44, 46, 52),
    "navy": (18, 28, 76),
    "indigo": (46, 26, 108),
    "dark plum": (56, 20, 58),
    "maroon": (94, 18, 32),
    "chocolate brown": (68, 38, 24),
    "forest green": (20, 68, 42),
    "dark teal": (8, 66, 74),
    "slate": (56, 68, 86),
}
MIDDLE: dict[str, RGB] = {
    "grey": (134, 136, 140),
    "olive": (116, 120, 44),
    "sage green": (142, 164, 128),
    "dusty rose": (190, 126, 132),
    "terracotta": (196, 98, 66),
    "ochre": (202, 146, 46),
    "steel blue": (84, 122, 164),
    "mauve": (152, 112, 158),
}
VIVID: dict[str, RGB] = {
    "red": (222, 34, 40),
    "crimson": (176, 16, 58),
    "orange": (246, 132, 24),
    "amber": (252, 184, 20),
    "yellow": (252, 226, 40),
    "lime green": (156, 214, 36),
    "green": (42, 160, 64),
    "emerald": (10, 146, 104),
    "teal": (12, 134, 140),
    "turquoise": (52, 204, 196),
    "cyan": (30, 206, 240),
    "sky blue": (98, 182, 240),
    "blue": (34, 84, 212),
    "violet": (112, 58, 204),
    "purple": (146, 44, 164),
    "magenta": (222, 28, 150),
    "hot pink": (252, 84, 164),
    "coral": (250, 112, 92),
}
LIGHT: dict[str, RGB] = {
    "white": (255, 255, 255),
    "cream": (252, 244, 218),
    "sand": (226, 206, 166),
    "peach": (252, 214, 184),
    "pale pink": (250, 212, 222),
    "lavender": (212, 202, 244),
    "powder blue": (196, 222, 244),
    "mint green": (192, 236, 210),
    "pale yellow": (252, 244, 170),
    "light grey": (214, 216, 220),
}
NAMED: dict[str, RGB] = DARK | MIDDLE | VIVID | LIGHT

# Plain backgrounds for captions: "on a navy background".
BACKGROUNDS: dict[str, RGB] = {
    name: NAMED[name]
    for name in (
        *("black", "charcoal", "navy", "maroon", "forest green", "grey", "red", "orange", "yellow", "lime green"),
        *("teal", "sky blue", "blue", "purple", "hot pink", "cream", "sand", "lavender", "mint green", "light grey"),
    )
}

GROUNDS: dict[str, tuple[str, ...]] = {
    "white": ("white",),
    "coloured": ("sky blue", "yellow", "lime green", "hot pink", "orange", "lavender", "sand", "turquoise"),
    "dark": ("navy", "maroon", "forest green", "charcoal"),
}
"""Plain grounds of references whose captions do not name them, by kind. Black ink cannot be seen on dark ones."""


@cache
def luminance(rgb: RGB) -> float:
    """0.299 r + 0.587 g + 0.114 b, in 0..1."""
    return (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]) / 255
