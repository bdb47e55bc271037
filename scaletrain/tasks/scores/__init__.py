"""How good predictions are: pure functions from predictions and references to numbers with the field's names.

Of labels, tags and entities a score is a share from 0 to 1, as scikit-learn and seqeval tell it; of texts and answers
it is 0 to 100, as sacrebleu, SQuAD's script and papers on ROUGE tell it. What is not defined is left out, never nan.
"""
