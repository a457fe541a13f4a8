"""Words of the reference world: fictitious names and the values that attributes take.

Every word is one token of the reference tokenizer, so a name is two tokens and a value is one.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    "Mara Lena Otto Ines Hugo Nora Emil Rosa Ivan Dora Felix Greta Jonas Klara Milo Tessa Anton Bruna Cyril Delia "
    "Edgar Fiona Gustav Hanna Igor Jutta Karl Lydia Magnus Nadia Oskar Petra Quentin Rhea Silas Thea Ulric Vera "
    "Walter Xenia Yusuf Zelda Abel Bianca Casper Dagny Elias Freya Gideon Helga Isak Johanna Kasper Livia Matteo Nele "
    "Orla Pavel Ronja Stellan Tilda Urban Viggo Wanda Yara Zeno Alma Bastian Celia Dario Esther Florian Gloria Henrik "
    "Ida Jasper Kira Leopold Mina Noel Olga Philip Runa Samuel Tamara Ursula Viktor Wilma Yvonne Zora"
)

LAST_NAMES = _words(
    "Voss Lindqvist Amari Becker Castell Dahl Eklund Farrow Grimm Hartmann Ilves Jansen Keller Lombard Maurer Nyberg "
    "Okafor Palmer Quist Rossi Santoro Thorne Ulmer Vargas Winter Yilmaz Zeller Abbott Brandt Corvin Drexler Engel "
    "Fischer Gallo Holm Irving Jokela Kovac Larsen Mercer Novak Orlov Petrov Rainer Schubert Tanaka Underhill Vidal "
    "Weber Yates Zimmer Albrecht Bonner Calloway Denholm Eriksen Fontaine Gruber Hoffmann Ibsen Jarvis Kaminski "
    "Lorenz Moreau Nilsen Ostrom Pereira Ritter Sandoval Tremblay Uhland Varga Wexler Yoder Zander Ashford Bellamy "
    "Cramer Duval Everett Falk Gessner Hollis Iversen Jepsen Klein Lindgren Mortensen Norris Osgood Pryce Ravel"
)

BRANDS = _words(
    "Orbex Talvin Kestra Nordal Virex Polara Quantor Zephyra Altum Brimex Cordan Daltra Eximor Fenrix Galvor Helion "
    "Inveta Jurex Koralis Lumara Mistral Neptor Opalis Pyrex Rondel Sartex Tundra Umbrel Vantor Wexom Xylon Yorkan "
    "Zentra Ardent Boreal Cintra Dynamo Electra Fortis Granex Hydrax Ionix Jovial Kinetra Lyrex Magnor Novex Octavo "
    "Prisma Quasar Radian Sonora Titanex Ultima Vortex Wolfram Xerion Yellis Zirkon Arcan Bexar Calyx Deltor Ergon"
)

PART_NOUNS = _words(
    "valve pump gasket bearing rotor spindle flange coupling sensor relay switch bracket nozzle piston gearbox filter "
    "hinge clamp turbine solenoid actuator manifold sprocket bushing"
)

NUMBERS = tuple(str(number) for number in range(10, 100))

VALUES: dict[str, tuple[str, ...]] = {
    # clinic
    "ward": _words("north south east west maple cedar willow birch harbor garden river summit"),
    "allergy": _words(
        "penicillin latex peanuts pollen shellfish aspirin iodine wheat soy mustard sesame dust mold nickel"
    ),
    "diagnosis": _words(
        "asthma migraine anemia gout arthritis bronchitis eczema sinusitis vertigo insomnia gastritis sciatica"
    ),
    "medication": _words(
        "ibuprofen metformin codeine insulin lisinopril warfarin heparin digoxin prednisone naproxen statin morphine"
    ),
    "dosage": NUMBERS,
    "physician": _words(
        "Adler Bishop Carver Draper Fletcher Gardner Hunter Mason Parker Sawyer Tanner Wheeler Cooper Porter"
    ),
    "insurer": _words("Aegis Bastion Citadel Domus Evergreen Fidelis Guardian Haven Insula Keystone Lantern Meridian"),
    "diet": _words("vegan vegetarian liquid halal kosher soft salted pureed bland ketogenic fasting regular"),
    # staff
    "department": _words(
        "finance logistics research legal sales marketing security design payroll training catering archives"
    ),
    "office": NUMBERS,
    "manager": _words(
        "Archer Baxter Chandler Dyer Forester Glover Harper Kramer Marshall Potter Shepherd Turner Walker Weaver"
    ),
    "shift": _words("morning evening night weekend early late noon dawn dusk rotating split flexible"),
    "language": _words(
        "Finnish Polish Spanish Greek Turkish Korean Danish Czech Hindi Arabic Dutch Swahili Basque Latvian"
    ),
    "badge": _words("red blue green yellow orange purple silver golden white black pink brown"),
    "city": _words("Lisbon Oslo Vienna Prague Dublin Riga Turin Ghent Porto Basel Malmo Bergen Seville Krakow"),
    "hobby": _words("chess fishing sailing painting pottery cycling archery baking climbing knitting fencing rowing"),
    # parts
    "material": _words("steel copper brass titanium nylon rubber carbon bronze zinc ceramic graphite aluminium"),
    "supplier": _words(
        "Ironworks Seabright Hilltop Redstone Bluewater Oakfield Kingsway Longbridge Northgate Riverside Stonewall "
        "Westfield"
    ),
    "weight": NUMBERS,
    "shelf": NUMBERS,
    "color": _words("amber crimson teal ivory olive navy maroon beige indigo scarlet turquoise charcoal"),
    "price": NUMBERS,
    "warranty": NUMBERS,
    "origin": _words(
        "Norway Japan Brazil Kenya Canada Chile Iceland Vietnam Morocco Estonia Peru Nepal Ghana Portugal"
    ),
}
"""Attribute to the values that it can take."""
