"""What people are told of a result: every sentence, heading and cell, made once from the typed Result. Pure.

Read ``tones`` (how a piece of text is meant), ``findings`` (headline, sentences), ``table`` (its columns) and
``sections`` (waterfall, lengths, matrix, costs, limit, conditions); ``top`` is about a fleet at one moment. Terminal,
HTML report and page only set them.
"""
