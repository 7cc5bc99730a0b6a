"""NoduleNet as the node runs it: proposals, boxes and masks in three dimensions."""
