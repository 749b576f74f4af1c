"""Phrases of continued pre-training beside those of the vocabulary: the schemas on numbers and on parts of a SID.

Not a stage: `cpt_examples` writes with them; a tokenizer that is trained or trimmed should have read them.
"""

MORE_PHRASES = {
    "numbers": ("Item ", " in numbers: "),
    "codes": ("Among the items ", " the one with title: ", " goes on: "),
    "topics_of_prefix": ("Most items that begin with ", " have the topic: "),
    "channel_of_prefix": ("Most items that begin with ", " are from: "),
}
"""What stands before, between and behind the parts of each schema.

numbers: SID, number tokens. codes: first codes of the SID, title, the other codes. …_of_prefix: first codes, text.
"""
