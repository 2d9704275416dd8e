"""From a run to a result: fit a model to one's own examples, adapt a policy to one's own environment, save, export.

Start reading in ``fewshot`` (models of labelled examples) and ``policy`` (adapted policies). ``inputs`` reads arrays,
image files, folders and tables; ``labels`` numbers classes of any kind; ``native`` stands between a policy and an
environment's own spaces; ``playing`` runs and records episodes; ``saved`` writes and reads model files; ``exporting``
makes programs that need no metarl; ``card`` says where a model comes from.
"""
