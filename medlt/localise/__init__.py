"""Where a finding is: given masks and boxes, maps of classifiers, and the usual place of a finding."""
