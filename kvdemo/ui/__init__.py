"""``kvdemo ui``: a web page on which to ask, race and measure. It shows what the stories yield.

Read ``conversation``, ``prompts`` and ``download`` (what is on the page), ``engines``, ``race`` and ``run`` (what it
does), ``hosts`` (who may ask), ``look`` and ``parts``, the panels ``ask``, ``turns``, ``document``, ``history`` and
``bench``, the line above them ``strip``, then ``web``.
"""
