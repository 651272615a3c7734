"""For bad days, when no daemon runs: see what is damaged, mend the journal, make the registries anew from the packs.

`salvage` reads what is left of the journal, `survey` what is in the packs, `reconcile` says what follows from both.
`check` tells it, `repair` and `rebuild` write a new journal of it. Nothing here ever removes anything.
"""
