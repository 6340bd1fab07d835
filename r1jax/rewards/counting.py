"""How instructions compare a count with a number, in their languages."""

AT_LEAST = {"at least", "al menos", "au moins", "以上"}
LESS_THAN = {"less than", "moins de", "未満"}
AT_MOST = {"at most", "como máximo"}


def compare(count: int, relation: str, number: int) -> bool:
  """Whether the count is "at least", "less than" or "at most" the number."""
  if relation in AT_LEAST:
    return count >= number
  if relation in LESS_THAN:
    return count < number
  if relation in AT_MOST:
    return count <= number
  known = sorted(AT_LEAST | LESS_THAN | AT_MOST)
  raise ValueError(
    f"instructions: relation must be one of {known}, got {relation!r}"
  )
