"""Make the models of the profiles without a GPU. These modules run in the engines' interpreter: ``python -m``.

kvdemo itself imports none of them, since it need not have numpy and tokenizers; each uses only those and the standard
library.
"""
