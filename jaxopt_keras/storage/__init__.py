"""How arrays are kept between steps: fewer bits for slots, and bfloat16 parameters that move.

Rules know nothing of it: the pipeline opens what is stored before the rule, and stores what the rule returns. The form
of a slot is chosen once, when it is made (`forms.choose`); from then on a stored slot says itself how it is read.
"""
