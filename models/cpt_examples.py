"""Examples of continued pre-training (PLUM 2.2, Table 1): half behaviour, half metadata; every token is a target."""

import numpy as np

from models.examples import Examples, ExamplesBuilder
from models.material import CorpusParams, Material
from models.vocabulary import PHRASES


def cpt_examples(params: CorpusParams, material: Material, rng: np.random.Generator) -> Examples:
    """As many behaviour as metadata examples (only one sort if there is nothing to make the other of)."""
    words, events, stream, texts = material.words, material.events, material.stream, material.texts
    builder = ExamplesBuilder()
    bos, eos = words.control["<bos>"], words.control["<eos>"]
    phrase = {name: [words.encode_phrase(part) for part in parts] for name, parts in PHRASES.items()}
    encoded = {
        name: dict(zip(column, words.encode_untrusted_batch(column.values(), params.max_text_tokens), strict=True))
        for name, column in texts.items()
    }
    # 1. Behaviour: consecutive windows of every history, the last one ending with the last event.
    levels, longest = words.space.num_levels, words.shape.max_history
    opening = np.array([bos, *phrase["history"][0]], dtype=np.int32)
    channels = {row: np.array(ids, dtype=np.int32) for row, ids in encoded["channel"].items()}
    num_behaviour = 0
    for begin, end in zip(events.user_starts[:-1], events.user_starts[1:], strict=True):
        for stop in range(end, begin + 1, -longest):  # a window of one event predicts nothing
            start = max(begin, stop - longest)
            skip = stream.starts[start + 1] - levels  # a first item has no gap before it
            if channels and rng.random() < params.channel_share:
                parts = [opening]
                for event in range(start, stop):
                    parts.append(stream.tokens[max(skip, stream.starts[event]) : stream.starts[event + 1]])
                    parts.append(channels.get(events.rows[event], opening[:0]))
                tokens = np.concatenate(parts)[: params.max_tokens]
            else:
                tokens = np.concatenate([opening, stream.tokens[skip : stream.starts[stop]]])[: params.max_tokens]
            builder.add_sequence(tokens, "behaviour")
            num_behaviour += 1
    # 2. Metadata: every item with every schema that it has a text for, shuffled, taken round and round.
    schemas = [
        (name, column, row) for column in encoded for row in sorted(encoded[column]) for name in (column, "naming")
    ]
    order = rng.permutation(len(schemas)) if schemas else np.zeros(0, dtype=np.int64)
    wanted = num_behaviour or len(schemas)
    sid_ids = words.sid_token_ids(material.sids.codes).tolist()
    for place in np.resize(order, wanted if len(schemas) else 0):
        name, column, row = schemas[place]
        before, after = phrase[name]
        if name == "naming":
            ids = [bos, *before, *encoded[column][row], *after, *sid_ids[row], eos]
        else:
            ids = [bos, *before, *sid_ids[row], *after, *encoded[column][row], eos]
        builder.add_sequence(np.array(ids, dtype=np.int32), "metadata")
    return builder.build()
