"""All that trains, evaluates, draws figures or makes data. No node needs it; neither wheel nor image ships it."""
