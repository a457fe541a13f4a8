"""Words of the reference world: fictitious names and the values that attributes take.

Every word is one token of the reference tokenizer, so a name is two tokens and a value is one.
"""

FIRST_NAMES = (
    "Mara Lena Otto Ines Hugo Nora Emil Rosa Ivan Dora Felix Greta Jonas Klara Milo Tessa Anton Bruna Cyril Delia "
    "Edgar Fiona Gustav Hanna Igor Jutta Karl Lydia Magnus Nadia Oskar Petra Quentin Rhea Silas Thea Ulric Vera Walter "
    "Xenia Yusuf Zelda Abel Bianca Casper Dagny Elias Freya Gideon Helga Isak Johanna Kasper Livia Matteo Nele Orla "
    "Pavel Ronja Stellan Tilda Urban Viggo Wanda Yara Zeno Alma Bastian Celia Dario Esther Florian Gloria Henrik Ida "
    "Jasper Kira Leopold Mina Noel Olga Philip Runa Samuel Tamara Ursula Viktor Wilma Yvonne Zora"
).split()

LAST_NAMES = (
    "Voss Lindqvist Amari Becker Castell Dahl Eklund Farrow Grimm Hartmann Ilves Jansen Keller Lombard Maurer Nyberg "
    "Okafor Palmer Quist Rossi Santoro Thorne Ulmer Vargas Winter Yilmaz Zeller Abbott Brandt Corvin Drexler Engel "
    "Fischer Gallo Holm Irving Jokela Kovac Larsen Mercer Novak Orlov Petrov Rainer Schubert Tanaka Underhill Vidal "
    "Weber Yates Zimmer Albrecht Bonner Calloway Denholm Eriksen Fontaine Gruber Hoffmann Ibsen Jarvis Kaminski "
    "Lorenz Moreau Nilsen Ostrom Pereira Ritter Sandoval Tremblay Uhland Varga Wexler Yoder Zander Ashford Bellamy "
    "Cramer Duval Everett Falk Gessner Hollis Iversen Jepsen Klein Lindgren Mortensen Norris Osgood Pryce Ravel"
).split()

BRANDS = (
    "Orbex Talvin Kestra Nordal Virex Polara Quantor Zephyra Altum Brimex Cordan Daltra Eximor Fenrix Galvor Helion "
    "Inveta Jurex Koralis Lumara Mistral Neptor Opalis Pyrex Rondel Sartex Tundra Umbrel Vantor Wexom Xylon Yorkan "
    "Zentra Ardent Boreal Cintra Dynamo Electra Fortis Granex Hydrax Ionix Jovial Kinetra Lyrex Magnor Novex Octavo "
    "Prisma Quasar Radian Sonora Titanex Ultima Vortex Wolfram Xerion Yellis Zirkon Arcan Bexar Calyx Deltor Ergon"
).split()

PART_NOUNS = (
    "valve pump gasket bearing rotor spindle flange coupling sensor relay switch bracket nozzle piston gearbox filter "
    "hinge clamp turbine solenoid actuator manifold sprocket bushing"
).split()

NUMBERS = tuple(str(number) for number in range(10, 100))

VALUES: dict[str, tuple[str, ...]] = {
    # clinic
    "ward": tuple("north south east west maple cedar willow birch harbor garden river summit".split()),
    "allergy": tuple(
        "penicillin latex peanuts pollen shellfish aspirin iodine wheat soy mustard sesame dust mold nickel".split()
    ),
    "diagnosis": tuple(
        "asthma migraine anemia gout arthritis bronchitis eczema sinusitis vertigo insomnia gastritis sciatica".split()
    ),
    "medication": tuple(
        "ibuprofen metformin codeine insulin lisinopril warfarin heparin digoxin prednisone naproxen statin morphine".split()
    ),
    "dosage": NUMBERS,
    "physician": tuple(
        "Adler Bishop Carver Draper Fletcher Gardner Hunter Mason Parker Sawyer Tanner Wheeler Cooper Porter".split()
    ),
    "insurer": tuple(
        "Aegis Bastion Citadel Domus Evergreen Fidelis Guardian Haven Insula Keystone Lantern Meridian".split()
    ),
    "diet": tuple("vegan vegetarian liquid halal kosher soft salted pureed bland ketogenic fasting regular".split()),
    # staff
    "department": tuple(
        "finance logistics research legal sales marketing security design payroll training catering archives".split()
    ),
    "office": NUMBERS,
    "manager": tuple(
        "Archer Baxter Chandler Dyer Forester Glover Harper Kramer Marshall Potter Shepherd Turner Walker Weaver".split()
    ),
    "shift": tuple("morning evening night weekend early late noon dawn dusk rotating split flexible".split()),
    "language": tuple(
        "Finnish Polish Spanish Greek Turkish Korean Danish Czech Hindi Arabic Dutch Swahili Basque Latvian".split()
    ),
    "badge": tuple("red blue green yellow orange purple silver golden white black pink brown".split()),
    "city": tuple("Lisbon Oslo Vienna Prague Dublin Riga Turin Ghent Porto Basel Malmo Bergen Seville Krakow".split()),
    "hobby": tuple("chess fishing sailing painting pottery cycling archery baking climbing knitting fencing rowing".split()),
    # parts
    "material": tuple("steel copper brass titanium nylon rubber carbon bronze zinc ceramic graphite aluminium".split()),
    "supplier": tuple(
        "Ironworks Seabright Hilltop Redstone Bluewater Oakfield Kingsway Longbridge Northgate Riverside Stonewall Westfield".split()
    ),
    "weight": NUMBERS,
    "shelf": NUMBERS,
    "color": tuple("amber crimson teal ivory olive navy maroon beige indigo scarlet turquoise charcoal".split()),
    "price": NUMBERS,
    "warranty": NUMBERS,
    "origin": tuple("Norway Japan Brazil Kenya Canada Chile Iceland Vietnam Morocco Estonia Peru Nepal Ghana Portugal".split()),
}
"""Attribute to the values that it can take."""
