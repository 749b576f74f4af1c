"""Phrases of continued pre-training (PLUM 2.2, Table 1): the text around the SIDs of each schema.

Not a stage: `cpt_examples` writes with them, and `vocabulary` trains or trims its tokenizer on them.
"""

PHRASES = {
    "history": ("wh =", ""),
    "title": ("Item ", " has title: "),
    "topics": ("The topics of item ", " are: "),
    "channel": ("Item ", " is from: "),
    "description": ("Item ", " is described as: "),
    "naming": ("", " is item "),
    "numbers": ("Item ", " in numbers: "),
    "codes": ("Among the items ", " the one with title: ", " goes on: "),
    "topics_of_prefix": ("Most items that begin with ", " have the topic: "),
    "channel_of_prefix": ("Most items that begin with ", " are from: "),
}
"""What stands before, between and behind the parts of each schema.

history: the SIDs. naming: text, SID. numbers: SID, number tokens. codes: first codes of the SID, title, the other
codes. …_of_prefix: first codes, text. All others: SID, text.
"""
