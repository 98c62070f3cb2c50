"""The classroom around asa_mini: running the notebooks, making exercises from solutions, grading hand-ins.

checks holds the checks of the exercises, one module for each notebook; exercises makes the students'
from the solutions; publishing adds what each starts with; notebooks runs them strictly, pages makes HTML of
them; grading runs what students hand in; errors holds what can be wrong with a notebook. `asa_mini` imports
nothing of this.
"""
