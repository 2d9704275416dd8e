"""First and second derivatives written by hand, where autograd's would be slow; each is checked against autograd.

Nothing but torch comes in. Start reading in ``linear``.
"""
